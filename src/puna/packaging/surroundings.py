"""The surroundings of a build's commands: variables without the user's secrets, and a user without rights of its own.

That user is asked for where root runs Puna; elsewhere builds run as Puna's own.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from puna.errors import BuildError
from puna.process import namespace

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
# Where packages come from and how to get there. Everything else, tokens above all, stays outside.
_KEPT = (
    "LANG",
    "LC_ALL",
    "TZ",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "CUDA_HOME",
    "LD_LIBRARY_PATH",
    "PYENV_ROOT",
    "UV_INDEX",
    "UV_DEFAULT_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "UV_INDEX_STRATEGY",
    "UV_FIND_LINKS",
    "UV_OFFLINE",
    "UV_SYSTEM_CERTS",
    "UV_NATIVE_TLS",
    "UV_INSECURE_HOST",
    "UV_TORCH_BACKEND",
    "UV_HTTP_TIMEOUT",
    "UV_CONSTRAINT",
    "UV_LINK_MODE",
)
_PIP_PREFIX = "PIP_"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def build_environment(scratch: Path, venv: Path) -> dict[str, str]:
    """The variables of every command of a build; HOME and TMPDIR lie in `scratch`, the venv comes first on PATH."""
    found = passed(*_KEPT)
    found |= {name: value for name, value in os.environ.items() if name.startswith(_PIP_PREFIX)}
    for name in ("home", "tmp"):
        (scratch / name).mkdir(parents=True)
    found |= {
        "PATH": path_after(venv),
        "HOME": str(scratch / "home"),
        "TMPDIR": str(scratch / "tmp"),
        "VIRTUAL_ENV": str(venv),
        "UV_CACHE_DIR": uv_cache(),
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_PYTHON_INSTALL_DIR": _uv_pythons(),
        "UV_NO_PROGRESS": "1",
        "NO_COLOR": "1",
        "PYTHONUNBUFFERED": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": "https:http:ssh",
    }
    return _uv_from_pip(found) | found | _config_files()


def passed(*names: str) -> dict[str, str]:
    """The variables of these names that this process has, and those of its proxies."""
    every = (*names, *_PROXIES, *map(str.lower, _PROXIES))
    return {name: os.environ[name] for name in every if name in os.environ}


def path_after(venv: Path) -> str:
    """PATH with the programs of `venv` first, then the machine's, without those of Puna's own environment."""
    own = os.path.join(sys.prefix, "bin") if sys.prefix != sys.base_prefix else ""
    outer = [folder for folder in (os.environ.get("PATH") or _PATH).split(os.pathsep) if folder not in ("", own)]
    return os.pathsep.join([str(venv / "bin"), *outer])


def uv_cache() -> str:
    """The folder in which uv keeps packages."""
    # The user's own cache, so that packages are hard links and a second environment costs seconds.
    if given := os.environ.get("UV_CACHE_DIR"):
        return given
    return str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uv")


def _uv_pythons() -> str:
    if given := os.environ.get("UV_PYTHON_INSTALL_DIR"):
        return given
    return str(Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "uv" / "python")


def python_path(path: str) -> str:
    """PATH for the search for an interpreter: pyenv's versions instead of its shims, which fail unless chosen."""
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    plain = [folder for folder in path.split(os.pathsep) if not folder.rstrip("/").endswith("/shims")]
    return os.pathsep.join([*plain, *sorted(map(str, versions.glob("*/bin")), reverse=True)])


def _uv_from_pip(found: dict[str, str]) -> dict[str, str]:
    """pip's variables in uv's words, so that a machine set up for pip works."""
    links = found.get("PIP_FIND_LINKS", "").split()
    pairs = {
        # uv stops at a folder that is not there, where pip goes on.
        "UV_FIND_LINKS": ",".join(link for link in links if "://" in link or Path(link).expanduser().exists()),
        "UV_DEFAULT_INDEX": "" if "UV_INDEX_URL" in found else found.get("PIP_INDEX_URL", ""),
        "UV_INDEX": "" if "UV_EXTRA_INDEX_URL" in found else found.get("PIP_EXTRA_INDEX_URL", ""),
        "UV_INSECURE_HOST": found.get("PIP_TRUSTED_HOST", ""),
        "SSL_CERT_FILE": found.get("PIP_CERT", ""),
    }
    # pip takes the best version of all indexes, and these indexes were written for pip.
    pairs["UV_INDEX_STRATEGY"] = "unsafe-best-match" if pairs["UV_INDEX"] else ""
    return {name: value for name, value in pairs.items() if value}


def _config_files() -> dict[str, str]:
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    files = {"UV_CONFIG_FILE": config / "uv" / "uv.toml", "PIP_CONFIG_FILE": config / "pip" / "pip.conf"}
    given = {name: os.environ[name] for name in files if name in os.environ}
    return {name: str(path) for name, path in files.items() if path.is_file()} | given


USER = "PUNA_BUILD_USER"
"""Set in the environment of `puna up`, e.g. to `nobody`."""
_FILES = (
    "UV_CONFIG_FILE",
    "PIP_CONFIG_FILE",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
)


@dataclass(frozen=True)
class BuilderUser:
    """A user that a build runs as, other than the one that runs Puna."""

    name: str
    uid: int
    gid: int

    def own(self, paths: Iterable[Path]) -> None:
        """Give folders, made by root a moment ago, to this user."""
        for path in paths:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def adapt(self, env: Mapping[str, str], scratch: Path, environments: Path) -> dict[str, str]:
        """The variables of a build, with a package cache of this user's own and files that it may read."""
        adapted = dict(env)
        cache = environments / f".cache-{self.uid}"
        cache.mkdir(mode=0o700, exist_ok=True)
        self.own([cache])
        # Copies: two places that a cell shows are two disks to it, and root is to own one of them in the end.
        adapted |= {"UV_CACHE_DIR": str(cache), "UV_LINK_MODE": "copy"}
        for name in _FILES:
            file = Path(env.get(name, ""))
            if name in env and file.is_file() and not self._may(file, stat.S_IROTH):
                copy = scratch / name.lower()
                shutil.copyfile(file, copy)
                copy.chmod(0o400)
                self.own([copy])
                adapted[name] = str(copy)
        return adapted

    def words(
        self, env: Mapping[str, str], folder: Path, writable: Sequence[Path], readable: Sequence[Path]
    ) -> list[str]:
        """The beginning of a command that runs as this user, and sees of closed folders what it needs."""
        named = [Path(word) for value in env.values() for word in value.replace(",", ":").replace(" ", ":").split(":")]
        shown = [path for path in (*readable, *named) if path.is_absolute() and path.exists()]
        covers = sorted({cover for path in (*writable, *shown) if (cover := self._closed(path)) is not None})
        covers = [c for c in covers if not any(c != other and c.is_relative_to(other) for other in covers)]
        hidden = {*covers, Path.home(), Path("/")}  # a PATH with one of these does not open it
        inside = (path for path in shown if any(path.is_relative_to(cover) for cover in covers))
        binds = {str(path): False for path in inside if path not in hidden}
        binds |= {str(path): True for path in writable}
        config = {"uid": self.uid, "gid": self.gid, "folder": str(folder), "binds": sorted(binds.items())}
        return namespace.command("sandbox", config | {"covers": [str(c) for c in covers]}, [])

    def give_back(self, path: Path) -> None:
        """Let root own all that this user has made: an app must not find in it what others can change."""
        for folder, folders, files in os.walk(path):
            for name in (folder, *(os.path.join(folder, entry) for entry in (*folders, *files))):
                os.chown(name, 0, 0, follow_symlinks=False)

    def _closed(self, path: Path) -> Path | None:
        """The outermost folder above `path` that this user may not enter."""
        return next((folder for folder in [*path.parents][::-1] if not self._may(folder, stat.S_IXOTH)), None)

    def _may(self, path: Path, right: int) -> bool:
        about = path.stat()
        shift = 6 if about.st_uid == self.uid else 3 if about.st_gid == self.gid else 0
        return bool(about.st_mode & (right << shift))


def build_user() -> BuilderUser | None:
    """The user that builds are to run as; None: the one that runs this.

    Raises:
        BuildError: there is no such user, or this process may not become it.
    """
    name = os.environ.get(USER, "")
    if not name or name == pwd.getpwuid(os.geteuid()).pw_name:
        return None
    try:
        about = pwd.getpwnam(name)
    except KeyError:
        raise BuildError(f"{USER} is {name!r}, and there is no such user", f"useradd --system {name}") from None
    if os.geteuid() != 0:
        raise BuildError(f"{USER} is {name!r}, and only root can run builds as another", f"unset {USER}")
    return BuilderUser(name, about.pw_uid, about.pw_gid)
