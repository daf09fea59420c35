"""A page of memory that the guard reads without this process's help: until when its calls may take."""

from __future__ import annotations

import mmap
import os
from typing import Any, List, Union

CHANGE_S = 60.0  # going to sleep or waking may hold the interpreter's lock so long
CALLS, CHANGE = 0, 1

Until = Union[List[float], Any]
"""[CALLS] and [CHANGE]: CLOCK_MONOTONIC seconds until which that may take, 0 when nothing does."""


def nowhere() -> Until:
    """A page that nobody reads."""
    return [0.0, 0.0]


def shared(fd: int) -> Until:
    """The page behind `fd`, which is closed: what the app does to descriptors does not reach it."""
    memory = mmap.mmap(fd, mmap.PAGESIZE)
    os.close(fd)
    return memoryview(memory).cast("d")
