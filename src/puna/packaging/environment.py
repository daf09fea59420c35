"""An app's Python environment: a uv venv per digest of what was asked for, complete or absent."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from puna.artifacts import SHORT, write_json, write_text
from puna.config.runtime import RuntimeSpec, has_nvidia
from puna.errors import BuildError, NotFoundError
from puna.home import Home
from puna.packaging import command, inventory, surroundings
from puna.packaging.command import BuildCancelledError, BuildLimits, BuildWatch
from puna.packaging.inventory import Damage
from puna.packaging.surroundings import BuilderUser
from puna.process.locks import locked

MARKER = "environment.json"
_REMOVED, _ASIDE = ".gone-", ".damaged-"
_WORKPLACES = ("venv", "scratch", "run")
"""Folders that a build writes to, below its environment's folder."""
_TAIL_LINES = 20
_UV_OPTIONS = {"--pre": ["--prerelease", "allow"], "--trusted-host": ["--allow-insecure-host"]}
_DROPPED = ("--no-cache-dir", "--prefer-binary", "--quiet")  # speed and taste, not meaning


@dataclass(frozen=True)
class Environment:
    """A finished environment; `packages` are `name==version` lines."""

    path: Path
    digest: str
    python: Path
    packages: tuple[str, ...]

    @classmethod
    def open(cls, path: Path) -> Environment:
        """Read the environment at `path`.

        Raises:
            NotFoundError: there is none, or its build never ended.
        """
        try:
            about = json.loads((path / MARKER).read_text())
            packages = tuple((path / "packages.txt").read_text().splitlines())
        except (FileNotFoundError, ValueError):
            raise NotFoundError(f"{path} holds no finished environment", "deploy again to build it") from None
        return cls(path, about["digest"], path / "venv" / "bin" / "python", packages)


@dataclass
class _Build:
    """One build under way."""

    spec: RuntimeSpec
    path: Path
    env: dict[str, str]
    log: Callable[[str], None]
    cancelled: Callable[[], bool]
    limits: Sequence[str] = ()
    """The words that a command begins with to be held to its limits."""
    uv: list[str] = field(default_factory=list)
    user: BuilderUser | None = None
    python: str = ""

    def call(self, argv: Sequence[str], folder: Path | None = None, *, quiet: bool = False) -> tuple[int, list[str]]:
        log = (lambda line: None) if quiet else self.log
        words = [*self.limits, *argv]
        if self.user is not None:
            cache, prefix = Path(self.env["UV_CACHE_DIR"]), Path(self.python).parent.parent
            writable = [cache, *(self.path / name for name in _WORKPLACES)]
            words = [*self.user.words(self.env, folder or self.path, writable, [Path(self.uv[0]), prefix]), *words]
        return command.run(words, self.env, folder or self.path, log=log, cancelled=self.cancelled)


def build(
    spec: RuntimeSpec, home: Home, log: Callable[[str], None], *, cancelled: Callable[[], bool] = lambda: False
) -> Environment:
    """The environment of `spec`, built unless it is there; of several builders one works and the others wait.

    Raises:
        BuildError: a package cannot be found or installed, a `run` line failed, uv or the Python asked for is missing,
            or it takes too long or too much of the disk.
        MachineError: the disk is nearly full.
        BuildCancelledError: `cancelled()` became true.
    """
    path = home.environments / spec.digest[:SHORT]
    with locked(home.environments / f".{path.name}.lock", waiting=_wait(log, cancelled)):
        if (path / MARKER).is_file():
            found = inventory.damage(path)
            if found:
                log(f"environment {path.name} is damaged: {found}; it is built again")
                return _mend(spec, path, found, log, cancelled)
            log(f"environment {path.name} is there already")
            os.utime(path / MARKER)  # when it was used last
            return Environment.open(path)
        # Built in place: scripts that pip or a `run` line writes hold the path, so a finished venv must not move.
        # The marker, written last, is what makes it finished; a crash leaves none, and the next try starts afresh.
        _clear(path)
        path.mkdir(mode=0o700)
        try:
            return _build(spec, path, log, cancelled)
        except BaseException:  # the caller sees it; only the half environment goes
            _clear(path)
            raise


def _mend(
    spec: RuntimeSpec, path: Path, found: Damage, log: Callable[[str], None], cancelled: Callable[[], bool]
) -> Environment:
    """Build a damaged environment again; when that fails it is what it was: some of its apps may not miss a thing."""
    aside = path.with_name(f"{_ASIDE}{path.name}")
    shutil.rmtree(aside, ignore_errors=True)  # a process that was killed has left it
    _forget_cached(path, found.changed, log)
    path.rename(aside)
    path.mkdir(mode=0o700)
    try:
        built = _build(spec, path, log, cancelled)
    except BaseException:  # the caller sees it
        _clear(path)
        aside.rename(path)
        raise
    _clear(aside)
    log(f"environment {path.name} is whole again")
    return built


def _forget_cached(path: Path, changed: tuple[str, ...], log: Callable[[str], None]) -> None:
    """Drop changed files from uv's cache as well, where they are one file with two names."""
    if packages := sorted(inventory.owners(path, changed)):
        log(f"taken out of the cache, which has the same files: {', '.join(packages)}")
        env = {**os.environ, "UV_CACHE_DIR": surroundings.uv_cache(), "NO_COLOR": "1"}
        subprocess.run([*find_uv(), "cache", "clean", "-q", *packages], env=env, capture_output=True, check=False)


def _clear(path: Path) -> None:
    """Take a half environment out of the way at once; its files, which may be tens of thousands, go meanwhile."""
    removed = [*path.parent.glob(f"{_REMOVED}*")]  # a process that was killed has left them
    if path.exists():
        removed.append(path.rename(path.with_name(f"{_REMOVED}{path.name}-{uuid.uuid4().hex[:8]}")))
    for folder in removed:
        threading.Thread(target=shutil.rmtree, args=(folder, True), name="clear").start()


def _wait(log: Callable[[str], None], cancelled: Callable[[], bool]) -> Callable[[], None]:
    """A callback for the time in which another builds the same environment."""
    once = iter(["the same environment is being built already: waiting for it"])

    def waiting() -> None:
        for line in once:
            log(line)
        if cancelled():
            raise BuildCancelledError("the build was cancelled", "start it again when ready")

    return waiting


def _build(spec: RuntimeSpec, path: Path, log: Callable[[str], None], cancelled: Callable[[], bool]) -> Environment:
    started = time.monotonic()
    with (path / "build.log").open("a", encoding="utf-8", buffering=1) as file:

        def both(line: str) -> None:
            line = command.masked(line)
            file.write(line + "\n")
            log(line)

        scratch = path / "scratch"  # HOME and TMPDIR; inside, so that a crash leaves nothing elsewhere
        limits = BuildLimits.of_environment()
        watch, env = BuildWatch(path, limits, cancelled), surroundings.build_environment(scratch, path / "venv")
        user = surroundings.build_user()
        if user is not None:
            both(f"this build runs as {user.name}")
            env = _workplaces(user, path, env)
        elif os.geteuid() == 0:
            both(f"this build runs as root; {surroundings.USER}=nobody for `puna up` gives it a user without rights")
        work = _Build(spec, path, env, both, watch, limits.words(own_user=user is not None), find_uv(), user)
        if not work.limits:
            both("warning: no prlimit here, so nothing limits what files this build opens and writes")
        write_text(path / "spec.yaml", spec.as_yaml(), 0o600)
        warn_of_driver(spec.cuda_version, both)
        _ensure_packages(work)
        _make_venv(work)
        _install(work)
        _run_lines(work)
        packages = _freeze(work)
        if user is not None:
            for name in _WORKPLACES:
                user.give_back(path / name)
        shutil.rmtree(scratch, ignore_errors=True)
        seconds = time.monotonic() - started
        both(f"environment {path.name}: {len(packages)} packages in {seconds:.1f} s")
    about = {"digest": spec.digest, "seconds": seconds, "packages": len(packages), "cuda_version": spec.cuda_version}
    inventory.record(path)
    write_json(path / MARKER, about)
    return Environment.open(path)


def _workplaces(user: BuilderUser, path: Path, env: dict[str, str]) -> dict[str, str]:
    """Folders for the build in a folder of root's: what root writes beside them nobody can put a link in place of."""
    path.chmod(0o755)
    for name in _WORKPLACES:
        (path / name).mkdir(exist_ok=True)
    adapted = user.adapt(env, path / "scratch", path.parent)
    user.own([*(path / name for name in _WORKPLACES), path / "scratch" / "home", path / "scratch" / "tmp"])
    return adapted


def find_uv() -> list[str]:
    """The command that starts uv: the one in Puna's own environment, else the one on PATH.

    Raises:
        BuildError: there is none.
    """
    if importlib.util.find_spec("uv") is not None:
        from uv import find_uv_bin  # lazy: only the server extra brings it

        return [str(find_uv_bin())]
    found = shutil.which("uv")
    if found is None:
        raise BuildError("uv is not installed, and environments are built with it", "pip install 'puna[server]'")
    return [found]


def _make_venv(work: _Build) -> None:
    python = find_python(work.spec.python_version, work.uv, work.env)
    if work.user is not None:  # the interpreter itself, with its library beside it: no link through closed folders
        python = work.python = str(Path(python).resolve())
    # pip is there for `run` lines that call it; an empty environment needs nothing from an index.
    seed = ["--seed"] if work.spec.python_packages or work.spec.run else []
    venv = str(work.path / "venv")
    status, lines = work.call([*work.uv, "venv", "--python", python, *seed, "--no-project", venv])
    if status != 0:
        raise _failure("the environment cannot be made", lines, "is the package index within reach? see the log")


def find_python(version: str | None, uv: Sequence[str], env: dict[str, str]) -> str:
    """An interpreter of this version on this machine; none is downloaded.

    Raises:
        BuildError: there is none.
    """
    running = (sys.version_info.major, sys.version_info.minor, sys.version_info.micro)
    if version is None or tuple(map(int, version.split("."))) == running[: version.count(".") + 1]:
        return sys.executable
    find = [*uv, "python", "find", "--no-python-downloads", "--no-project", "--system", version]
    env = {**env, "PATH": surroundings.python_path(env["PATH"])}
    found = subprocess.run(find, capture_output=True, text=True, env=env, check=False)
    if found.returncode != 0:
        raise BuildError(
            f"there is no Python {version} on this machine",
            f"uv python install {version}, or drop `python_version` to use {'.'.join(map(str, running))}",
            found.stderr.strip(),
        )
    return found.stdout.strip()


def _install(work: _Build) -> None:
    if not work.spec.python_packages:
        work.log("no Python packages asked for")
        return
    install = [*work.uv, "pip", "install", "--python", str(work.path / "venv" / "bin" / "python")]
    install += [*_uv_options(work.spec.pip_options)]
    packages = ["--", *work.spec.python_packages]
    hint = "correct python_packages in the runtime file"
    if not has_nvidia():
        status, lines = work.call([*install, "--dry-run", *packages], quiet=True)
        if status != 0:
            for line in lines:
                work.log(line)
            raise _failure("the packages do not fit together", lines, hint)
        if any(re.match(r"\s*\+ nvidia-", line) for line in lines):
            work.log("no NVIDIA GPU here: torch comes in its CPU build (--torch-backend cpu) instead of with CUDA")
            install += ["--torch-backend", "cpu"]
            hint = "torch's CPU build was looked for: point PIP_FIND_LINKS at a folder that has its wheel, or correct "
            hint += "python_packages"
    status, lines = work.call([*install, *packages])
    if status != 0:
        raise _failure("the packages cannot be installed", lines, hint)


def _uv_options(options: Sequence[str]) -> list[str]:
    """pip's options in uv's words."""
    words: list[str] = []
    for option in options:
        words += [] if option in _DROPPED else _UV_OPTIONS.get(option, [option])
    if "--extra-index-url" in words:
        # pip takes the best version of all indexes; uv by itself only looks at the first that has the name.
        words += ["--index-strategy", "unsafe-best-match"]
    return words


def _run_lines(work: _Build) -> None:
    total = len(work.spec.run)
    folder = work.path / "run"  # one for all lines: what the first downloads, the second finds
    folder.mkdir(exist_ok=True)
    for number, line in enumerate(work.spec.run, 1):
        # The line itself stays out of the log: people write credentials in them.
        work.log(f"run line {number} of {total}")
        status, lines = work.call(["/bin/sh", "-c", line], folder)
        if status != 0:
            hint = f"correct line {number} under `run:`; each line is a shell of its own"
            raise _failure(f"run line {number} of {total} ended with status {status}", lines, hint)


def _freeze(work: _Build) -> list[str]:
    freeze = [*work.uv, "pip", "freeze", "-q", "--python", str(work.path / "venv" / "bin" / "python")]
    status, lines = work.call(freeze, quiet=True)
    if status != 0:
        raise _failure("the packages cannot be listed", lines, "")
    write_text(work.path / "packages.txt", "".join(line + "\n" for line in lines))
    return lines


def _failure(what: str, lines: Sequence[str], hint: str) -> BuildError:
    """The error of a failed step: the line that says why, and the last lines as evidence."""
    why = _sentence(lines)
    why = why or next((_with_cause(lines, i) for i, x in enumerate(lines) if re.match(r"\s*(error|ERROR|E):", x)), "")
    why = why or next((line for line in reversed(lines) if line.strip()), "")
    why = re.sub(r"^\W*(cause|error|╰─▶)?:?\s*", "", why.strip())
    # uv's own hint says which package wanted the one that failed.
    own = next((line.removeprefix("hint:").strip() for line in lines if line.startswith("hint:")), "")
    return BuildError(
        f"{what}: {why}" if why else what, " / ".join(filter(None, (hint, own))), "\n".join(lines[-_TAIL_LINES:])
    )


def _with_cause(lines: Sequence[str], number: int) -> str:
    """An error's line and the first cause below it: `Request failed: Failed to fetch: https://...`."""
    cause = next((line.strip() for line in lines[number + 1 : number + 2] if line.strip().startswith("cause:")), "")
    return lines[number].strip() + cause.replace("cause:", ":", 1)


def _sentence(lines: Sequence[str]) -> str:
    """The resolver's reasoning, which may go over several lines."""
    found = [i for i, line in enumerate(lines) if "Because" in line]
    if not found:
        return ""
    words = [lines[found[0]]]
    for line in lines[found[0] + 1 :]:
        if not line.strip() or line.startswith("hint"):
            break
        words.append(line.strip())
    return " ".join(words)


# -- system packages and the driver

# Names that distributions have dropped since the apps were written, and what carries their files now.
RENAMED = {"libgl1-mesa-glx": "libgl1", "libglib2.0-0": "libglib2.0-0t64"}

# Patterns off: a name that no package has is not taken for a regular expression that half of them match.
INSTALL = ("apt-get", "-o", "APT::Cmd::Pattern-Only=true", "install", "-y", "-q", "--no-install-recommends")


def _ensure_packages(work: _Build) -> None:
    """Install the apt packages that are missing, where that is allowed.

    Raises:
        BuildError: packages are missing and may not be installed, or apt failed.
    """
    names, env, log = work.spec.system_packages, work.env, work.log
    if not names:
        return
    if shutil.which("dpkg-query", path=env["PATH"]) is None:
        log(f"warning: no dpkg here, so nobody looked for the system packages {', '.join(names)}")
        return
    missing = [name for name in names if not _is_installed(name, env)]
    for name in [n for n in missing if n in RENAMED and _is_installed(RENAMED[n], env)]:
        log(f"system package {name}: {RENAMED[name]} is its name on this machine, and is installed")
        missing.remove(name)
    if not missing:
        log(f"system packages: {', '.join(names)} are installed")
        return
    by_hand = f"sudo apt-get update && sudo apt-get install -y {' '.join(missing)}"
    allowed = os.environ.get("PUNA_APT", "1" if os.geteuid() == 0 else "0") == "1"
    if not allowed or shutil.which("apt-get", path=env["PATH"]) is None:
        raise BuildError(f"missing system packages: {', '.join(missing)}", f"{by_hand}    # or set PUNA_APT=1")
    _install_missing(work, missing, by_hand)


def _install_missing(work: _Build, missing: list[str], by_hand: str) -> None:
    work.log(f"installing system packages: {', '.join(missing)}")
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    apt_env = {**work.env, "DEBIAN_FRONTEND": "noninteractive"}
    # A failed update is no failure yet: the lists that are there may do.
    command.run([*prefix, "apt-get", "update", "-q"], apt_env, Path("/"), log=work.log, cancelled=work.cancelled)
    install = [*prefix, *INSTALL, "--", *missing]
    status, lines = command.run(install, apt_env, Path("/"), log=work.log, cancelled=work.cancelled)
    if status != 0:
        why = next((line for line in lines if line.startswith("E: ")), f"apt-get ended with status {status}")
        raise BuildError(f"system packages: {why}", by_hand, "\n".join(lines[-20:]))


def _is_installed(name: str, env: Mapping[str, str]) -> bool:
    plain = name.partition("=")[0]
    query = ["dpkg-query", "-W", "-f", "${db:Status-Status}\n", plain]
    found = subprocess.run(query, capture_output=True, text=True, env=dict(env), check=False)
    return "installed" in found.stdout.split()


def warn_of_driver(cuda_version: str | None, log: Callable[[str], None]) -> None:
    """Say so when the NVIDIA driver is older than the CUDA version that the app names."""
    if cuda_version is None or shutil.which("nvidia-smi") is None:
        return
    try:
        shown = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return  # a driver that does not answer fails the app's validation, with its own words
    found = re.search(r"CUDA (?:UMD )?Version:\s*(\d+)\.(\d+)", shown)
    wanted = [int(part) for part in (cuda_version + ".0").split(".")[:2]]
    if found and [int(found[1]), int(found[2])] < wanted:
        log(f"warning: the app wants CUDA {cuda_version}; the driver here goes up to {found[1]}.{found[2]}")
