"""Processes that nobody owns any more: where guard and worker are killed at once, what the app had started is left.

Every guard, worker and child of the app descends from `puna up`. As a sub-reaper it becomes the parent of all whose own
ancestors have died; of those only guards, which look after themselves, have any business there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

from puna.process import guard
from puna.process.memory_limit import children
from puna.process.tree import tree


def adopt() -> None:
    """Become the parent of every descendant whose own parent dies."""
    with contextlib.suppress(OSError, AttributeError):  # no such call: strays go to init, as they always did
        ctypes.CDLL(None).prctl(guard.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def sweep(known: set[int]) -> None:
    """Kill and reap this process's children that are neither `known` nor guards, and all below them."""
    for pid in children(os.getpid()):
        if pid in known:
            continue
        with contextlib.suppress(OSError):
            if os.waitpid(pid, os.WNOHANG)[0]:
                continue  # it had ended, and was waiting for somebody to ask
        if not is_guard(pid):
            for one in (*tree(pid), pid):
                with contextlib.suppress(OSError):
                    os.kill(one, signal.SIGKILL)


def is_guard(pid: int) -> bool:
    """It runs guard.py, or has gone meanwhile."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return os.fsencode(guard.__file__) in file.read().split(b"\0")
    except OSError:
        return True
