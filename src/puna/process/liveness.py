"""Whether a process that runs also lives: a pure judge of answers to PING, and the page on which a worker says why not.

A worker that does not answer may be well: a native call holds the interpreter's lock, and may do so for as long as its
time lasts. So before `infer` begins the worker writes down until when its calls may take; the guard reads that without
the worker's help (worker/process.py writes the page).

Time is that of whoever judges: a turn counts for a second and a half at most. Where the judge itself was stopped,
starved or suspended, nobody else is blamed for it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import tempfile

PING_EVERY_S = 1.0
MOST_OF_A_TURN_S = 1.5
IDLE_SILENCE_S, LEAST_IDLE_SILENCE_S = 20.0, 8.0
"""A worker without a call may be silent so long; less where its callers give up sooner."""
CALL_GRACE_S = 5.0
"""A call may go on so long after its time before silence is sickness: its worker gives itself up by then."""
OVERDUE_S = 8.0
"""One that still has not given itself up then does not judge itself any more, whatever it answers."""
HANG_UP_S = 1.0
"""The end of a worker is seen within this of the end of its connection."""
PAGE = struct.Struct("dd")
CLOSED = "the app closed the descriptors of its own worker"
SILENT = "(stopped, deadlocked, or held in native code)"


class Liveness:
    """What is known of one worker's heartbeat; `turn` is asked at each turn of the judge's loop."""

    def __init__(self, now: float, inference_time_s: float = 0.0) -> None:
        """`inference_time_s` is how long its callers wait; 0 when it has none."""
        self.idle_silence_s = IDLE_SILENCE_S
        if inference_time_s:
            least_s = max(inference_time_s + CALL_GRACE_S, LEAST_IDLE_SILENCE_S)
            self.idle_silence_s = min(IDLE_SILENCE_S, least_s)
        self.next_ping = now
        self._turned = now
        self._silent_s = self._overdue_s = self._hung_up_s = 0.0
        self._is_hung_up = False

    def answered(self) -> None:
        """A PONG came."""
        self._silent_s = 0.0

    def hung_up(self) -> None:
        """The connection ended though the process has not."""
        self._is_hung_up = True

    def turn(self, now: float, calls_until: float, change_until: float) -> str:
        """Why the worker is sick, empty when it is not; both times are those of its page, 0 for none."""
        passed_s, self._turned = min(now - self._turned, MOST_OF_A_TURN_S), now
        self._hung_up_s += passed_s if self._is_hung_up else 0.0
        if self._hung_up_s >= HANG_UP_S:
            return CLOSED
        if now < max(calls_until, change_until):
            self._silent_s = self._overdue_s = 0.0
            return ""
        self._silent_s += passed_s
        self._overdue_s = self._overdue_s + passed_s if calls_until else 0.0
        if self._overdue_s >= OVERDUE_S:
            return f"infer overran its time by {OVERDUE_S:g} s, and the worker did not end itself"
        if calls_until and self._silent_s >= CALL_GRACE_S:
            return f"it did not answer for {CALL_GRACE_S:g} s after the time of its call {SILENT}"
        if self._silent_s >= self.idle_silence_s:
            return f"it did not answer for {self.idle_silence_s:g} s {SILENT}"
        return ""


class BusyPage:
    """Memory that a worker shares with its guard; the worker maps the descriptor and closes it."""

    def __init__(self, fd: int) -> None:
        """Map the page behind `fd`, which stays open."""
        self._memory = mmap.mmap(fd, mmap.PAGESIZE)

    def read(self) -> tuple[float, float]:
        """Until when its calls, and its change of tier, may take: CLOCK_MONOTONIC, 0 for none."""
        calls_until, change_until = PAGE.unpack_from(self._memory)
        return calls_until, change_until


def make_page() -> int:
    """A descriptor of a page that nobody else has."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("puna-busy")
    else:  # an interpreter built for an old C library
        fd, path = tempfile.mkstemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        os.unlink(path)
    os.ftruncate(fd, mmap.PAGESIZE)
    return fd


def is_ending(pid: int) -> bool:
    """The process is on its way out already: what it held is being given back, and then it is reaped."""
    with contextlib.suppress(OSError, IndexError, ValueError), open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
        return fields[0] in (b"Z", b"X") or bool(int(fields[6]) & PF_EXITING)
    return True


PF_EXITING = 0x4
