"""Limits of logs on the disk: the beginning of a large one is given back, old ones of replicas that ended go."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from puna.control.domain.timeline import Timeline
from puna.home import Home

LOG = logging.getLogger("puna.logs")
EVERY_S = 10.0
BLOCK_BYTES = 4096
KEEP_SIZE, PUNCH_HOLE = 1, 2  # linux/falloc.h
STRAY_S = 3600.0
"""A log of nobody's is left alone for so long: its replica may be about to be written down."""


@dataclass(frozen=True)
class LogLimits:
    """Limits of what is kept."""

    log_bytes: int = 64 * 2**20
    """Of one replica, and of each of Puna's own processes: the newest."""
    build_bytes: int = 16 * 2**20
    """Of one build."""
    endpoint_bytes: int = 256 * 2**20
    """Of one endpoint, all its replicas together."""
    age_s: float = 30 * 86400.0
    """Of a replica that ended, after its last line."""
    count: int = 20
    """Replicas of one endpoint."""


LIMITS = LogLimits()


def hold(home: Home, alive: Collection[str], age_s: Callable[[float], float], limits: LogLimits = LIMITS) -> None:
    """Bring every log within its limits; those of the replicas and zygotes that are `alive` stay, with their ends.

    `age_s` says how long ago a file's time was.
    """
    for path in home.logs.glob("*.log"):
        cut(path, limits.log_bytes)
    for path in home.folder("logs", "builds").glob("*.log"):
        cut(path, limits.build_bytes)
    for folder in home.folder("logs", "endpoints").iterdir():
        if folder.is_dir():
            _hold_endpoint(folder, alive, age_s, limits)


def _hold_endpoint(folder: Path, alive: Collection[str], age_s: Callable[[float], float], limits: LogLimits) -> None:
    found: list[tuple[float, Path, int]] = []
    for path in folder.glob("*.log"):
        cut(path, limits.log_bytes)
        try:
            about = path.stat()
        except FileNotFoundError:
            continue
        found.append((age_s(about.st_mtime), path, about.st_blocks * 512))
    taken = 0
    for number, (age, path, size_bytes) in enumerate(sorted(found)):
        taken += size_bytes
        is_over = number >= limits.count or taken > limits.endpoint_bytes or age > limits.age_s
        if is_over and path.stem not in alive and age > min(STRAY_S, limits.age_s):
            path.unlink(missing_ok=True)
            taken -= size_bytes


def cut(path: Path, keep_bytes: int) -> None:
    """Give the beginning of a file back to the file system, so that at most `keep_bytes` and a quarter are kept.

    Who writes the file goes on, who reads it keeps its place: only the bytes are gone.
    """
    try:
        about = path.stat()
        if about.st_blocks * 512 <= keep_bytes * 5 // 4:
            return
        with path.open("r+b") as file:
            length = (about.st_size - keep_bytes) // BLOCK_BYTES * BLOCK_BYTES
            if length > 0 and not _punch(file.fileno(), length):
                file.truncate(0)  # a file system that cannot: the writer appends, so that it begins anew
    except FileNotFoundError:
        return


def _punch(fd: int, length: int) -> bool:
    """Drop the first `length` bytes; False where the file system has no holes."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate64.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if libc.fallocate64(fd, KEEP_SIZE | PUNCH_HOLE, 0, length) == 0:
        return True
    number = ctypes.get_errno()
    if number not in (errno.EOPNOTSUPP, errno.ENOSYS):
        raise OSError(number, os.strerror(number))
    return False


def keep(home: Home, alive: Callable[[], Collection[str]], timeline: Timeline, stopped: threading.Event) -> None:
    """Hold the logs of a running Puna within their limits, until `stopped`; `alive` as in `hold`."""
    while not stopped.wait(EVERY_S):
        try:
            hold(home, alive(), timeline.age_s)
        except Exception:  # the log has it: one bad look must not let the disk fill up
            LOG.exception("logs were not held within their limits")
