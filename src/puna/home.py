"""Paths of a home on the disk: the one module that joins them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from puna.errors import MachineError

# A Unix socket's path must fit in 108 bytes (man 7 unix, sun_path).
SOCKET_PATH_BYTES = 107


class _Folder:
    """A folder of a home, of the attribute's name; made when it is asked for, since somebody may have deleted it."""

    def __set_name__(self, owner: type[Home], name: str) -> None:
        self._name = name

    def __get__(self, home: Home, owner: type[Home]) -> Path:
        return home.folder(self._name)


class _File:
    """A file of a home, whose folder is there when it is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, home: Home, owner: type[Home]) -> Path:
        return home.folder() / self._name


@dataclass(frozen=True)
class Home:
    """`$PUNA_HOME`, default `~/.puna`; every folder in it is made on first use, readable by its owner only."""

    root: Path

    @classmethod
    def default(cls) -> Home:
        """The home that the environment names."""
        return cls(Path(os.environ.get("PUNA_HOME") or Path.home() / ".puna").expanduser().absolute())

    def folder(self, *parts: str) -> Path:
        """A folder under the root, made if missing."""
        path = self.root
        for part in ("", *parts):  # one by one: the mode holds for the last folder only
            path = path / part
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path

    datasets = _Folder()
    """Tokenised datasets, a folder each, named by digest."""
    runs = _Folder()
    """Training runs, a folder each, named `<recipe>-<n>`."""
    models = _Folder()
    """Models, a folder each, named by digest."""
    registry = _Folder()
    """Names of models and what they point to: `<owner>/<name>.json`."""
    bundles = _Folder()
    """Bundles, a folder each, named by digest."""
    environments = _Folder()
    """Virtual environments, a folder each, named by the digest of what was asked for."""
    sources = _Folder()
    """Source snapshots, a folder each, named by digest."""
    volumes = _Folder()
    """Named volumes."""
    workspaces = _Folder()
    """Writable working copies of an app, one a replica."""
    caches = _Folder()
    """Compile caches that belong to bundles, a folder each, named by the bundle's digest."""
    spool = _Folder()
    """Large bodies of requests while those wait: files without names, which end with their process."""
    logs = _Folder()
    """Build logs and call logs."""
    key = _File("key")
    """The key that encrypts secrets at rest (mode 0600)."""
    credentials = _File("credentials.json")
    """The endpoint keys that this user's CLI was given (mode 0600)."""
    state = _File("up.json")
    """State that a running `puna up` writes: address and process id."""
    lock = _File("up.lock")
    """Locked (flock) by the one `puna up` that may run in this home."""

    @property
    def database(self) -> Path:
        """The SQLite file; those that SQLite lays beside it have its mode."""
        path = self.folder() / "puna.db"
        os.close(os.open(path, os.O_CREAT, 0o600))
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        return path

    @property
    def sockets(self) -> Path:
        """Unix sockets: under the root, or where that path would be too long, a short one of this root's own.

        Raises:
            MachineError: somebody else was there first.
        """
        path = self.root / "sockets"
        if len(os.fsencode(path)) + 40 > SOCKET_PATH_BYTES:
            name = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:12]
            path = Path(tempfile.gettempdir()) / f"puna-{os.getuid()}-{name}"
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            # Whoever owns the folder could put sockets of their own in place of ours.
            raise MachineError(f"{path} is another's, or open to others", f"remove {path}, or set a shorter PUNA_HOME")
        return path

    def drop_sockets(self) -> None:
        """Remove the folder of sockets, which may lie outside the root, when nothing is in it."""
        with contextlib.suppress(OSError):
            self.sockets.rmdir()

    @property
    def control_socket(self) -> Path:
        """The control plane's socket; a process that may open it is its administrator."""
        return self.sockets / "control.sock"

    def replica_socket(self, replica_id: str) -> Path:
        """The socket of one replica's worker, for the gateway."""
        return self.sockets / f"{replica_id}.sock"

    def guard_socket(self, replica_id: str) -> Path:
        """The socket of one replica's guard, for its owner."""
        return self.sockets / f"{replica_id}.guard"

    def zygote_socket(self, name: str) -> Path:
        """A zygote's socket, for requests to fork."""
        return self.sockets / f"{name}.zygote"

    def zygote_guard_socket(self, name: str) -> Path:
        """The socket of a zygote's guard, for its owner."""
        return self.sockets / f"{name}.zygote-guard"
