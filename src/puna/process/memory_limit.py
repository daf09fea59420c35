"""A process tree's host memory against its limit, looked at as often as it could have been overrun since."""

from __future__ import annotations

import contextlib
import os

from puna.process.tree import tree

# Memory is written at most about so fast: a tree that is half a limit below it need not be looked at for long.
FILL_BYTES_PER_S = 8 * 2**30
SOONEST_S, LATEST_S = 0.05, 1.0
OWN = ("RssAnon:", "RssShmem:")
"""What a process has for itself, pinned memory too. Files that it maps are the kernel's to drop."""


class Ration:
    """The limit of the tree below this process; 0 is none."""

    def __init__(self, limit_bytes: int) -> None:
        """Nothing is looked at yet."""
        self.limit_bytes = limit_bytes
        self.next_look = 0.0 if limit_bytes else float("inf")
        """When the next look is due, on the monotonic clock."""

    def excess(self, now: float) -> str:
        """What is too much, as a reason to end it; empty when nothing is, or no look is due."""
        if now < self.next_look:
            return ""
        pids = descendants(os.getpid())
        used = sum(map(own_bytes, pids))
        if used > self.limit_bytes:
            # Pages shared after a fork were counted by every process that has them; this count is exact, and slow.
            used = sum(map(exact_bytes, pids))
        self.next_look = now + min(max((self.limit_bytes - used) / FILL_BYTES_PER_S, SOONEST_S), LATEST_S)
        if used <= self.limit_bytes:
            return ""
        return f"used {used / 2**30:.2f} GiB of memory, its share is {self.limit_bytes / 2**30:.2f} GiB"


def descendants(root: int) -> list[int]:
    """Every living process below `root`: from the kernel's lists of children, else by a look at the whole machine."""
    if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):  # a kernel built without them
        return tree(root)
    found: list[int] = []
    todo = [root]
    while todo:
        mine = children(todo.pop())
        found += mine
        todo += mine
    return found


def children(pid: int) -> list[int]:
    """The children of a process, zombies among them; none where the kernel keeps no such lists."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    return found


def own_bytes(pid: int) -> int:
    """What a process has in memory for itself, shared pages counted whole; 0 when it is gone."""
    return _sum(f"/proc/{pid}/status", OWN)


def exact_bytes(pid: int) -> int:
    """The same, each page divided among those that share it; where the kernel does not tell, `own_bytes`."""
    return _sum(f"/proc/{pid}/smaps_rollup", ("Pss_Anon:", "Pss_Shmem:")) or own_bytes(pid)


def _sum(path: str, names: tuple[str, ...]) -> int:
    with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith(names))
    return 0
