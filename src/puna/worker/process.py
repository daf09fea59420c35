"""This process as others see it: its descendants, its socket and log on the disk, and the page that its guard reads."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import signal
import socket
import time
from typing import Any, Dict, List, Optional, Tuple, Union

PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies, so that none of them gets out of sight."""
    with contextlib.suppress(OSError, AttributeError):  # no glibc or no Linux: the guard still holds them
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children_of_all() -> Dict[int, List[int]]:
    """Process id -> those of its living children, zombies left out."""
    children: Dict[int, List[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                with open("/proc/%s/stat" % name, "rb") as file:
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
                if state not in (b"Z", b"X"):
                    children.setdefault(int(parent), []).append(int(name))
    return children


def descendants(root: Optional[int] = None) -> List[int]:
    """Process ids of all living descendants of `root` (default: this process)."""
    children = children_of_all()
    found: List[int] = []
    todo = [os.getpid() if root is None else root]
    while todo:
        mine = children.get(todo.pop(), [])
        found += mine
        todo += mine
    return found


def kill_descendants(timeout_s: float = 1.5) -> None:
    """SIGKILL every descendant, those born meanwhile too."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        found = descendants()
        if not found:
            return
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


EVERY_S = 1.0
DELETED = " (deleted)"
BACKLOG = 64


class RenewedListener:
    """A Unix socket that only its owner may open, and whether its path leads to it: process/renewal.py says why."""

    def __init__(self, path: str) -> None:
        """Listen at `path`; what was there goes."""
        self.path = path
        make_folder(os.path.dirname(path))
        # It has its name once it listens: one that refuses is taken for dead.
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
        """The path leads to nothing, or to something else."""
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


CHANGE_S = 60.0  # going to sleep or waking may hold the interpreter's lock so long
CALLS, CHANGE = 0, 1

Until = Union[List[float], Any]
"""[CALLS] and [CHANGE]: CLOCK_MONOTONIC seconds until which that may take, 0 when nothing does."""


def unread_page() -> Until:
    """A page that nobody reads."""
    return [0.0, 0.0]


def shared_page(fd: int) -> Until:
    """The page behind `fd`, which is closed: what the app does to descriptors does not reach it."""
    memory = mmap.mmap(fd, mmap.PAGESIZE)
    os.close(fd)
    return memoryview(memory).cast("d")
