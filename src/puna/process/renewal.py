"""Names on the disk that a running process gets back when somebody has deleted them: its Unix socket, its log.

A folder of temporary files is swept by cron, a home by a person in a hurry: the open descriptor goes on, and nobody new
finds it. Whoever serves looks every second. It goes along with the worker (backends/local.py), and so runs on CPython
3.8.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket

EVERY_S = 1.0
DELETED = " (deleted)"


class Listener:
    """A Unix socket that only its owner may open, and whether its path still leads to it."""

    def __init__(self, path: str, backlog: int, timeout_s: float | None = None) -> None:
        """Listen at `path`; what was there goes. `timeout_s` is that of `accept`; None waits for ever.

        Raises:
            OSError: it cannot be bound.
        """
        self.path = path
        make_folder(os.path.dirname(path))
        # Whoever finds it by its name finds it listening: one that refuses is taken for dead.
        hidden = os.path.join(os.path.dirname(path), f".{os.getpid()}")  # short: a socket's path has 107 bytes
        with contextlib.suppress(FileNotFoundError):
            os.unlink(hidden)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout_s)
        before = os.umask(0o177)
        try:
            self.socket.bind(hidden)
            self.socket.listen(backlog)
            self._made = identity(hidden)
            os.rename(hidden, path)
        except OSError:
            self.socket.close()
            raise
        finally:
            os.umask(before)

    @property
    def is_lost(self) -> bool:
        """True when the path leads to nothing, or to something else."""
        return identity(self.path) != self._made


def make_folder(path: str) -> None:
    """Make a folder for sockets where it is missing.

    Raises:
        PermissionError: it is another user's, who could put sockets of their own in place of ours.
    """
    os.makedirs(path, 0o700, exist_ok=True)
    if os.stat(path).st_uid not in (0, os.geteuid()):
        raise PermissionError(errno.EPERM, "it is another user's", path)


def identity(path: str) -> tuple[int, int] | None:
    """Which file a path names; None: it names none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def renew_logs() -> list[str]:
    """Open the files anew that this process's stdout and stderr went to and that were deleted; which they were.

    Raises:
        OSError: one cannot be.
    """
    renewed = []
    for fd in (1, 2):
        target = os.readlink(f"/proc/self/fd/{fd}")
        if target.startswith("/") and target.endswith(DELETED) and not target.startswith("/memfd:"):
            path = target[: -len(DELETED)]
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(log, fd)
            os.close(log)
            renewed.append(path)
    return sorted(set(renewed))
