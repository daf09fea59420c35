"""Who runs the commands of a build: whoever runs Puna, or, where that is root, a user with no rights of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from puna.errors import BuildError
from puna.process import namespace

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
        binds = {str(path): False for path in shown if path not in hidden and _under(path, covers)}
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


def chosen() -> BuilderUser | None:
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


def _under(path: Path, covers: Sequence[Path]) -> bool:
    return any(path.is_relative_to(cover) for cover in covers)
