"""The heartbeat of the processes of `puna up`: a line a second over a pipe, from the loop that has to turn.

The supervisor ends a child whose beats stay away, whatever the reason: stopped, deadlocked, held in native code, its
descriptors closed. A child that knows of an illness of its own says so and is ended at once.
"""

from __future__ import annotations

import os

BEAT_EVERY_S = 1.0
FIRST_BEAT_S = 60.0
"""Until its first beat a child boots."""
SILENT_S = 6.0
HANG_UP_S = 1.0
"""A process that ends is reaped within this of the end of its pipe."""
MOST_OF_A_TURN_S = 0.5
"""The supervisor turns ten times a second; what a turn takes longer, it or the machine stood still."""
ILL = b"ill "
EXIT_CLOSED = 72


class Heart:
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


class Pulse:
    """What the supervisor knows of one process's heartbeat; time is that in which the supervisor itself turned."""

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

    def heard(self, data: bytes) -> None:
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
        """Why the process is to be ended, empty when it is not. `starved`: it would run if it were let."""
        passed_s, self._turned = min(now - self._turned, MOST_OF_A_TURN_S), now
        self._hung_up_s += passed_s if self._is_hung_up else 0.0
        self._silent_s += 0.0 if starved else passed_s
        if self._illness:
            return self._illness
        if self._hung_up_s >= HANG_UP_S:
            return "it has closed its descriptors"
        if self._silent_s >= (SILENT_S if self._has_beaten else FIRST_BEAT_S):
            return f"it did not answer for {self._silent_s:.0f} s (stopped, deadlocked, or held in native code)"
        return ""


class ProcessorTime:
    """Whether a process gets to run at all: on a machine with too much to do a silent one is only starved."""

    def __init__(self) -> None:
        """Nothing has been seen."""
        self._ticks, self._at, self._starved = -1, 0.0, False

    def starved(self, pid: int, now: float) -> bool:
        """It is runnable, and has had no time of the processor since about a second ago."""
        if now - self._at >= 1.0:
            runnable, ticks = look(pid)
            self._starved = runnable and ticks == self._ticks
            self._ticks, self._at = ticks, now
        return self._starved


def look(pid: int) -> tuple[bool, int]:
    """Whether a process's main thread wants to run, and the clock ticks that the process has had."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return fields[0] == b"R", int(fields[11]) + int(fields[12])
    except (OSError, IndexError, ValueError):
        return False, -1
