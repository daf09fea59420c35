"""Where things lie on disk: the one module that joins Puna's paths."""

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

    @property
    def datasets(self) -> Path:
        """Tokenised datasets, a folder each, named by digest."""
        return self.folder("datasets")

    @property
    def runs(self) -> Path:
        """Training runs, a folder each, named `<recipe>-<n>`."""
        return self.folder("runs")

    @property
    def models(self) -> Path:
        """Models, a folder each, named by digest."""
        return self.folder("models")

    @property
    def registry(self) -> Path:
        """What names point to which model: `<owner>/<name>.json`."""
        return self.folder("registry")

    @property
    def bundles(self) -> Path:
        """Bundles, a folder each, named by digest."""
        return self.folder("bundles")

    @property
    def environments(self) -> Path:
        """Virtual environments, a folder each, named by the digest of what was asked for."""
        return self.folder("environments")

    @property
    def sources(self) -> Path:
        """Source snapshots, a folder each, named by digest."""
        return self.folder("sources")

    @property
    def volumes(self) -> Path:
        """Named volumes."""
        return self.folder("volumes")

    @property
    def workspaces(self) -> Path:
        """Writable working copies of an app, one a replica."""
        return self.folder("workspaces")

    @property
    def caches(self) -> Path:
        """Compile caches that belong to bundles, a folder each, named by the bundle's digest."""
        return self.folder("caches")

    @property
    def spool(self) -> Path:
        """Large bodies of requests while those wait: files without names, gone with their process."""
        return self.folder("spool")

    @property
    def logs(self) -> Path:
        """Build logs and call logs."""
        return self.folder("logs")

    @property
    def database(self) -> Path:
        """The SQLite file; those that SQLite lays beside it have its mode."""
        path = self.folder() / "puna.db"
        os.close(os.open(path, os.O_CREAT, 0o600))
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        return path

    @property
    def key(self) -> Path:
        """The key that encrypts secrets at rest (mode 0600)."""
        self.folder()
        return self.root / "key"

    @property
    def credentials(self) -> Path:
        """The endpoint keys that this user's CLI was given (mode 0600)."""
        self.folder()
        return self.root / "credentials.json"

    @property
    def state(self) -> Path:
        """What a running `puna up` writes about itself: address and process id."""
        self.folder()
        return self.root / "up.json"

    @property
    def lock(self) -> Path:
        """Locked (flock) by the one `puna up` that may run in this home."""
        self.folder()
        return self.root / "up.lock"

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
        """Where the control plane listens; whoever may open it is its administrator."""
        return self.sockets / "control.sock"

    def replica_socket(self, replica_id: str) -> Path:
        """Where one replica's worker listens for the gateway."""
        return self.sockets / f"{replica_id}.sock"

    def guard_socket(self, replica_id: str) -> Path:
        """Where one replica's guard listens for its owner."""
        return self.sockets / f"{replica_id}.guard"

    def zygote_socket(self, name: str) -> Path:
        """Where a zygote listens for requests to fork."""
        return self.sockets / f"{name}.zygote"

    def zygote_guard_socket(self, name: str) -> Path:
        """Where a zygote's guard listens for its owner."""
        return self.sockets / f"{name}.zygote-guard"
