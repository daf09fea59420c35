"""What a worker holds by name on the disk, and gets back when somebody has deleted it: its socket and its log.

As process/renewal.py, which says why.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import Optional, Tuple

EVERY_S = 1.0
DELETED = " (deleted)"
BACKLOG = 64


class RenewedListener:
    """A Unix socket that only its owner may open, and whether its path still leads to it."""

    def __init__(self, path: str) -> None:
        """Listen at `path`; what was there goes."""
        self.path = path
        make_folder(os.path.dirname(path))
        # Whoever finds it by its name finds it listening: one that refuses is taken for dead.
        hidden = os.path.join(os.path.dirname(path), f".{os.getpid()}")  # short: a socket's path has 107 bytes
        with contextlib.suppress(FileNotFoundError):
            os.unlink(hidden)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            self.socket.bind(hidden)
            self.socket.listen(BACKLOG)
            self._made = identity(hidden)
            os.rename(hidden, path)
        except OSError:
            self.socket.close()
            raise
        finally:
            os.umask(before)
        self.socket.settimeout(EVERY_S)

    @property
    def is_lost(self) -> bool:
        """Whoever comes by the path finds nothing, or something else."""
        return identity(self.path) != self._made


def make_folder(path: str) -> None:
    """Make a folder for sockets where it is missing; PermissionError when it is another user's."""
    os.makedirs(path, 0o700, exist_ok=True)
    if os.stat(path).st_uid not in (0, os.geteuid()):
        raise PermissionError(errno.EPERM, "it is another user's", path)


def identity(path: str) -> Optional[Tuple[int, int]]:
    """Which file a path names; None: it names none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def renew_logs() -> None:
    """Open the files anew that stdout and stderr went to and that were deleted."""
    for fd in (1, 2):
        target = os.readlink("/proc/self/fd/%d" % fd)
        if target.startswith("/") and target.endswith(DELETED) and not target.startswith("/memfd:"):
            path = target[: -len(DELETED)]
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(log, fd)
            os.close(log)
