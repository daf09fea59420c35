"""A copy of the repository in which a mutant lives: its own files, its own environment, and no process left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PREFIX = "puna-m-"  # short: sockets lie below it, and their paths may have 107 bytes
MARK = "PUNA_MUTATE_RUN"
POLL_S = 0.05


class Stopped(Exception):
    """Somebody pressed Ctrl-C."""


class Tree:
    """One copy; one pytest runs in it at a time."""

    def __init__(self, parent: Path, name: str, stopped: threading.Event, compiled: Path = ROOT) -> None:
        """Copy the checkout to `parent`/`name`; `compiled` is another copy, whose compiled files serve this one too."""
        self.root, self.stopped = parent / name, stopped
        self.mark = f"{parent.name}/{name}"
        self.scratch = self.root / ".t"
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for path in subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
            if path and (ROOT / path).is_file():
                (self.root / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / path, self.root / path)
        self.python = _environment(self.root)
        if compiled is not ROOT:
            shutil.copytree(compiled / "src", self.root / "src", dirs_exist_ok=True)
            return
        # By content: a mutant has the size and, within a second, the time of what it replaces.
        checked = [str(self.python), "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", "src"]
        subprocess.run(checked, cwd=self.root, check=True)

    def pytest(self, arguments: Sequence[str], env: Mapping[str, str], timeout_s: float) -> tuple[int | None, str]:
        """Its exit status (None: it took too long) and the end of what it said.

        Raises:
            Stopped: the run is to end.
        """
        self.scratch.mkdir(exist_ok=True)
        given = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(self.scratch), MARK: self.mark, **env}
        given = {name: value for name, value in given.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        said = self.scratch / "said"
        command = [str(self.python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "mutate_plugin", *arguments]
        with said.open("wb") as out:
            process = subprocess.Popen(
                command,
                cwd=self.root,
                env=given,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        deadline = time.monotonic() + timeout_s
        try:
            while process.poll() is None and time.monotonic() < deadline and not self.stopped.is_set():
                time.sleep(POLL_S)
            code = process.poll()
        finally:
            self.end(process)
        text = said.read_bytes()[-4000:].decode(errors="replace")
        shutil.rmtree(self.scratch, ignore_errors=True)
        if self.stopped.is_set():
            raise Stopped
        return code, text

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Kill what runs, and all that it started, in whichever session: each has the mark in its environment."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for _ in range(100):
            left = [pid for pid in marked(self.mark) if pid != os.getpid()]
            if not left:
                return
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(POLL_S)


def marked(mark: str) -> list[int]:
    """Processes, no zombies, that were started with this mark."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def _environment(root: Path) -> Path:
    """A virtual environment that has what this one has, but for Puna, which is the copy's; returns its interpreter."""
    ours = Path(sys.prefix)
    venv, version = root / ".venv", f"python{sys.version_info.major}.{sys.version_info.minor}"
    site, packages = venv / "lib" / version / "site-packages", ours / "lib" / version / "site-packages"
    site.mkdir(parents=True)
    (venv / "bin").mkdir()
    shutil.copy2(ours / "pyvenv.cfg", venv / "pyvenv.cfg")
    # A folder named in a .pth is searched, its own .pth files are not read: the editable Puna is out of sight.
    (site / "copy.pth").write_text(f"{root / 'src'}\n{packages}\n{root / 'scripts'}\n")
    shebang = f"#!{ours / 'bin'}/".encode()
    for tool in (ours / "bin").iterdir():
        new = venv / "bin" / tool.name
        if tool.is_symlink():
            target = os.readlink(tool)
            new.symlink_to(target if os.path.isabs(target) or "/" not in target else tool.resolve())
        elif tool.is_file() and (text := tool.read_bytes()).startswith(shebang):
            new.write_bytes(text.replace(shebang, f"#!{venv / 'bin'}/".encode(), 1))
            new.chmod(0o755)
        elif tool.is_file():
            new.symlink_to(tool)
    return venv / "bin" / "python"


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """A folder that is gone afterwards, and those of runs that were killed with it."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid = left.name.removeprefix(PREFIX).split("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
