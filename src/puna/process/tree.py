"""Processes of this machine as /proc shows them: one, those below it, the memory that they use, and their end.

A process is its id and the moment at which it began, because ids are used again: nothing here ends one by its id alone.
It goes along with the worker (backends/local.py), and so runs on CPython 3.8.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterable
from typing import NamedTuple

PR_SET_CHILD_SUBREAPER = 36
PF_EXITING = 0x4
REFUSED_S = 2.0
"""What may not be killed (a command under sudo) is waited for no longer."""
# Memory is written at most about so fast: a tree that is half a limit below it need not be looked at for long.
FILL_BYTES_PER_S = 8 * 2**30
SOONEST_S, LATEST_S = 0.05, 1.0
OWN = ("RssAnon:", "RssShmem:")
"""What a process has for itself, pinned memory too. Files that it maps are the kernel's to drop."""


class Process(NamedTuple):
    """A name that is never used again: an id, and when its process began, in clock ticks since boot."""

    pid: int
    start_ticks: int


class Stat(NamedTuple):
    """A process as /proc/PID/stat has it."""

    state: str
    parent: int
    flags: int
    used_ticks: int
    """Processor time, its own and the kernel's for it."""
    threads: int
    start_ticks: int

    @property
    def has_ended(self) -> bool:
        """It only waits to be reaped. One whose main thread alone has ended looks the same, and runs."""
        return self.state in "ZX" and self.threads <= 1


def stat(pid: int) -> Stat | None:
    """The state of a process; None when there is none of that id."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, *rest = file.read().rpartition(b")")[2].split()
        numbers = list(map(int, rest[:19]))
        return Stat(state.decode(), numbers[0], numbers[5], numbers[10] + numbers[11], numbers[16], numbers[18])
    except (OSError, IndexError, ValueError):
        return None


def start_ticks(pid: int) -> int:
    """When the process of an id began, in clock ticks since boot; 0 when there is none."""
    found = stat(pid)
    return found.start_ticks if found else 0


def is_alive(process: Process) -> bool:
    """True while that very process runs."""
    found = stat(process.pid)
    return found is not None and found.start_ticks == process.start_ticks and not found.has_ended


def is_ending(pid: int) -> bool:
    """The process is on its way out already: what it held is being given back, and then it is reaped."""
    found = stat(pid)
    return found is None or found.has_ended or bool(found.flags & PF_EXITING)


def kill(process: Process, number: int = signal.SIGKILL) -> bool:
    """Send a signal to that very process; False when it has ended and its id may be another's.

    Raises:
        PermissionError: it is another user's.
    """
    try:
        fd = os.pidfd_open(process.pid)  # holds the process: its id is nobody else's until this is closed
    except ProcessLookupError:
        return False
    except (OSError, AttributeError):  # no such call here, or no descriptors
        fd = -1
    try:
        if start_ticks(process.pid) != process.start_ticks:
            return False
        if fd >= 0:
            signal.pidfd_send_signal(fd, number)
        else:
            os.kill(process.pid, number)
    except ProcessLookupError:
        return False
    finally:
        if fd >= 0:
            os.close(fd)
    return True


def descendants(root: int = 0, *, quick: bool = False) -> list[Process]:
    """Every living process below `root`, or below this process.

    `quick` reads the kernel's lists of children, where it keeps them, instead of all of /proc: enough to count by, and
    not to end by, since one that is born or adopted meanwhile may be missed.
    """
    lists = quick and os.path.exists(f"/proc/self/task/{os.getpid()}/children")
    known = {} if lists else by_parent()
    found: list[Process] = []
    todo = [root or os.getpid()]
    while todo:
        parent = todo.pop()
        below = by_parent(children(parent)).get(parent, []) if lists else known.get(parent, [])
        found += below
        todo += [one.pid for one in below]
    return found


def by_parent(pids: Iterable[int] | None = None) -> dict[int, list[Process]]:
    """Process id -> its living children, of these processes or of all."""
    found: dict[int, list[Process]] = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if pids is None else pids:
        seen = stat(pid)
        if seen is not None and not seen.has_ended:
            found.setdefault(seen.parent, []).append(Process(pid, seen.start_ticks))
    return found


def children(pid: int) -> list[int]:
    """The children of a process, zombies among them; none where the kernel keeps no such lists."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    return found


def become_subreaper() -> None:
    """Become the parent of every descendant whose own parent dies, whatever session it made."""
    with contextlib.suppress(OSError, AttributeError):  # no such call: they go to init
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_tree(timeout_s: float = float("inf")) -> None:
    """SIGKILL every descendant until there is none, for so long at most: they may fork while this runs."""
    begun, pause_s = time.monotonic(), 0.002
    while found := descendants():
        refused = sum(not _end(one) for one in found)
        if time.monotonic() - begun > (min(REFUSED_S, timeout_s) if refused == len(found) else timeout_s):
            return
        time.sleep(pause_s)
        pause_s = min(0.1, pause_s * 1.5)  # a process in the kernel's hands (a GPU's driver) may take its time


def end(process: Process) -> bool:
    """SIGKILL a process and first what is below it, which would be nobody's without it; False: it had ended."""
    below = descendants(process.pid)
    if not is_alive(process):  # looked at last: so long as it lives, its id is its own, and so were those below it
        return False
    for one in (*below, process):
        _end(one)
    return True


def _end(process: Process) -> bool:
    """SIGKILL it; False when that is not allowed."""
    try:
        kill(process)
    except PermissionError:
        return False
    return True


def command_line(pid: int) -> list[str]:
    """The words that a process was started with; none of one that has ended."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return [os.fsdecode(word) for word in file.read().split(b"\0")]
    return []


def has_open(pid: int, path: str | os.PathLike[str]) -> bool:
    """The process has that very file open; False of another user's, and of one that has ended."""
    with contextlib.suppress(OSError):
        wanted = os.stat(path)
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{fd}"), wanted):
                    return True
    return False


# -- memory


def own_bytes(pid: int) -> int:
    """Memory that a process has for itself, shared pages counted whole; 0 when it has ended."""
    return _sum(f"/proc/{pid}/status", OWN)


def exact_bytes(pid: int) -> int:
    """The same, each page divided among those that share it; where the kernel does not tell, `own_bytes`."""
    return _sum(f"/proc/{pid}/smaps_rollup", ("Pss_Anon:", "Pss_Shmem:")) or own_bytes(pid)


def _sum(path: str, names: tuple[str, ...]) -> int:
    with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith(names))
    return 0


class MemoryLimit:
    """The limit of the tree below this process, which is looked at as often as it could have been overrun since."""

    def __init__(self, limit_bytes: int) -> None:
        """Nothing is looked at yet; 0 is no limit."""
        self.limit_bytes = limit_bytes
        self.next_look = 0.0 if limit_bytes else float("inf")
        """When the next look is due, on the monotonic clock."""

    def excess(self, now: float) -> str:
        """The reason to end a tree that has too much; empty when nothing is, or no look is due."""
        if now < self.next_look:
            return ""
        pids = [one.pid for one in descendants(quick=True)]
        used = sum(map(own_bytes, pids))
        if used > self.limit_bytes:
            # Pages shared after a fork were counted by every process that has them; this count is exact, and slow.
            used = sum(map(exact_bytes, pids))
        self.next_look = now + min(max((self.limit_bytes - used) / FILL_BYTES_PER_S, SOONEST_S), LATEST_S)
        if used <= self.limit_bytes:
            return ""
        return f"used {used / 2**30:.2f} GiB of memory, its share is {self.limit_bytes / 2**30:.2f} GiB"


def oom_kills() -> int:
    """The number of this control group's processes that the kernel has killed for memory; 0 where it does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/self/cgroup", encoding="ascii") as file:
            group = next((line.strip()[3:] for line in file if line.startswith("0::")), "/")
        for path in (f"/sys/fs/cgroup{group}/memory.events", "/sys/fs/cgroup/memory.events"):
            if os.path.exists(path):
                with open(path, encoding="ascii") as file:
                    return int(dict(line.split() for line in file)["oom_kill"])
    return 0
