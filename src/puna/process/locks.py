"""Locks on files that processes share (flock): taken at once, waited for, and only on the file that the path names.

The kernel gives a lock back when its holder ends, however it ends, and what the holder starts does not inherit it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator

POLL_S = 0.2


class HeldError(BlockingIOError):
    """Another process has the lock."""

    def __init__(self, path: str | os.PathLike[str], holder: str) -> None:
        """`holder` is what that process wrote into the file, its process id; empty when it wrote nothing."""
        super().__init__(f"{os.fspath(path)} is locked by {f'process {holder}' if holder else 'another process'}")
        self.holder = holder


def acquire(
    path: str | os.PathLike[str],
    *,
    shared: bool = False,
    timeout_s: float | None = None,
    waiting: Callable[[], None] | None = None,
) -> int:
    """Lock the file at `path`, made when it is missing, until the descriptor is closed that is returned.

    It is waited for as long as it takes, or `timeout_s`; 0 takes it at once or not at all. While another has it,
    `waiting` is called five times a second: what that raises ends the waiting.

    Raises:
        HeldError: another process has it still.
    """
    end = float("inf") if timeout_s is None else time.monotonic() + timeout_s
    polls = timeout_s is not None or waiting is not None
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (fcntl.LOCK_NB if polls else 0)
    while True:
        with contextlib.ExitStack() as stack:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, fd)
            try:
                fcntl.flock(fd, operation)
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise HeldError(path, os.read(fd, 64).decode(errors="replace").strip()) from None
            else:
                if _names(path, fd):
                    stack.pop_all()
                    return fd
                continue  # its holder has removed it: a lock on that file keeps nobody out
        if waiting is not None:
            waiting()
        time.sleep(min(POLL_S, max(0.0, end - time.monotonic())))


@contextlib.contextmanager
def locked(
    path: str | os.PathLike[str],
    *,
    shared: bool = False,
    timeout_s: float | None = None,
    waiting: Callable[[], None] | None = None,
) -> Iterator[int]:
    """Hold a lock for as long as the block lasts, as `acquire`; yields its descriptor.

    Raises:
        HeldError: another process has it still.
    """
    fd = acquire(path, shared=shared, timeout_s=timeout_s, waiting=waiting)
    try:
        yield fd
    finally:
        os.close(fd)


def _names(path: str | os.PathLike[str], fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False
