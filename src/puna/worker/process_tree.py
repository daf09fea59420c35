"""This process's descendants on Linux: adopt the orphans among them, find them, kill them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from typing import Dict, List, Optional

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
