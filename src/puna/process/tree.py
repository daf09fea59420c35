"""This machine's processes as a guard sees them: trees of descendants, names that are never used again, last words."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time

LAST_LINES, LAST_BYTES = 20, 16384
STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) (stdout|stderr) F ")
"""How each line begins that a worker which serves writes."""
STAMP_BYTES = 37


def tree(root: int = 0) -> list[int]:
    """Every living descendant of `root`, or of this process."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError), open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
                if state not in (b"Z", b"X"):
                    children.setdefault(int(parent), []).append(int(name))
    found: list[int] = []
    todo = [root or os.getpid()]
    while todo:
        mine = children.get(todo.pop(), [])
        found += mine
        todo += mine
    return found


def kill_tree() -> None:
    """SIGKILL every descendant until there is none: they may fork while this runs."""
    pause_s = 0.002
    while found := tree():
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(pause_s)
        pause_s = min(0.1, pause_s * 1.5)  # a process in the kernel's hands (a GPU's driver) may take its time


def start_ticks(pid: int) -> int:
    """When a process began, in clock ticks since boot: with the pid, a name that is never used again; 0 if gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError):
        return 0


def tail(path: str, start: int = 0) -> list[str]:
    """The last lines of a log from byte `start` on, without their stamps."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - LAST_BYTES))
            lines = file.read().splitlines()[-LAST_LINES:]
            return [(line[STAMP_BYTES:] if STAMP.match(line) else line).decode(errors="replace") for line in lines]
    except OSError:
        return []


def oom_kills() -> int:
    """How many processes of this control group the kernel has killed for memory; 0 where it does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/self/cgroup", encoding="ascii") as file:
            group = next((line.strip()[3:] for line in file if line.startswith("0::")), "/")
        for path in (f"/sys/fs/cgroup{group}/memory.events", "/sys/fs/cgroup/memory.events"):
            if os.path.exists(path):
                with open(path, encoding="ascii") as file:
                    return int(dict(line.split() for line in file)["oom_kill"])
    return 0
