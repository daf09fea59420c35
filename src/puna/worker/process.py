"""This process as its guard sees it: the page that says how long it may be busy, and the end of what it has started."""

from __future__ import annotations

import mmap
import os
from typing import Any, List, Union

from puna.process import tree

BACKLOG = 64
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


def kill_descendants() -> None:
    """SIGKILL every descendant; those that hang in a driver are left to the guard, which can wait for them."""
    tree.kill_tree(timeout_s=1.5)
