"""Judges of whether a process that runs also works: a worker by its answers to PING, a child of `puna up` by its beats.

A worker that does not answer may be well: a native call holds the interpreter's lock, and may do so for as long as its
time lasts. So before `infer` begins the worker writes down until when its calls may take; the guard reads that without
the worker's help (worker/process.py writes the page).

A child of `puna up` writes a line a second to a pipe, from the loop that has to turn. The supervisor ends one whose
beats stay away, whatever the reason: stopped, deadlocked, held in native code, its descriptors closed. A child that
knows of an illness of its own says so and is ended at once.

Time is the judge's own: a turn counts for a second and a half at most. Where the judge itself was stopped,
starved or suspended, nobody else is blamed for it.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile

from puna.process import tree

PING_EVERY_S = 1.0
LONGEST_TURN_S = 1.5
IDLE_SILENCE_S, LEAST_IDLE_SILENCE_S = 20.0, 8.0
"""A worker without a call may be silent so long; less where its callers give up sooner."""
CALL_GRACE_S = 5.0
"""A call may go on so long after its time before silence is sickness: its worker gives itself up by then."""
OVERDUE_S = 8.0
"""One that still has not given itself up then does not judge itself any more, whatever it answers."""
HANG_UP_S = 1.0
"""The end of a process is seen within this of the end of its connection or pipe."""
PAGE = struct.Struct("dd")
CLOSED = "the app closed the descriptors of its own worker"
EXIT_CLOSED = 72
SILENT = "(stopped, deadlocked, or held in native code)"

BEAT_EVERY_S = 1.0
FIRST_BEAT_S = 60.0
"""Until its first beat a child boots."""
SILENT_S = 6.0
LONGEST_SUPERVISOR_TURN_S = 0.5
"""The supervisor turns ten times a second; what a turn takes longer, it or the machine stood still."""
ILL = b"ill "


class Liveness:
    """One worker's answers to PING; `turn` is asked at each turn of the judge's loop."""

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
        """The reason why the worker is sick, empty when it is not; both times are those of its page, 0 for none."""
        passed_s, self._turned = min(now - self._turned, LONGEST_TURN_S), now
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


# -- children of `puna up`


class HeartbeatSender:
    """A child's own end of the pipe."""

    def __init__(self, fd: int) -> None:
        """Beats go to `fd`; -1 is nobody."""
        self._fd, self._is = fd, _identity(fd) if fd >= 0 else None
        if fd >= 0:
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)

    def beat(self, ill: str = "") -> None:
        """Say that the loop turns, or why this process is of no use; one that has lost its pipe ends here."""
        if self._fd < 0:
            return
        try:
            if _identity(self._fd) != self._is:
                os._exit(EXIT_CLOSED)  # somebody has closed our descriptors, and the number is another file's
            os.write(self._fd, ILL + ill.replace("\n", " ").encode()[:500] + b"\n" if ill else b"\n")
        except BlockingIOError:
            pass  # the supervisor has not read for long: it stands still
        except OSError:
            os._exit(EXIT_CLOSED)


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


class HeartbeatMonitor:
    """One process's heartbeat as the supervisor receives it; time is that in which the supervisor itself turned."""

    def __init__(self, now: float) -> None:
        """The process began `now`."""
        self._turned = now
        self._silent_s = self._hung_up_s = 0.0
        self._has_beaten = self._is_hung_up = False
        self._illness = ""
        self._rest = b""

    @property
    def suspicious(self) -> bool:
        """A beat is missing: worth a look whether the process is given any time to run."""
        return self._has_beaten and self._silent_s > 2 * BEAT_EVERY_S

    def receive(self, data: bytes) -> None:
        """Bytes of the pipe; none are its end."""
        if not data:
            self._is_hung_up = True
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._has_beaten, self._silent_s = True, 0.0
            if line.startswith(ILL):
                self._illness = line[len(ILL) :].decode(errors="replace")

    def turn(self, now: float, starved: bool = False) -> str:
        """The reason to end the process, empty when it is not. `starved`: it would run if it were let."""
        passed_s, self._turned = min(now - self._turned, LONGEST_SUPERVISOR_TURN_S), now
        self._hung_up_s += passed_s if self._is_hung_up else 0.0
        self._silent_s += 0.0 if starved else passed_s
        if self._illness:
            return self._illness
        if self._hung_up_s >= HANG_UP_S:
            return "it has closed its descriptors"
        if self._silent_s >= (SILENT_S if self._has_beaten else FIRST_BEAT_S):
            return f"it did not answer for {self._silent_s:.0f} s {SILENT}"
        return ""


class ProcessorTime:
    """A look at whether a process gets to run at all: on a machine with too much to do a silent one is only starved."""

    def __init__(self) -> None:
        """Nothing has been seen."""
        self._ticks, self._at, self._starved = -1, 0.0, False

    def starved(self, pid: int, now: float) -> bool:
        """It is runnable, and has had no time of the processor since about a second ago."""
        if now - self._at >= 1.0:
            seen = tree.stat(pid)
            self._starved = seen is not None and seen.state == "R" and seen.used_ticks == self._ticks
            self._ticks, self._at = seen.used_ticks if seen else -1, now
        return self._starved
