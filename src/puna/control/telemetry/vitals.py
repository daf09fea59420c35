"""Vital signs of the control plane: the parts that /health tells of, and the illness that ends its heartbeat.

What is broken around it (a full disk, a socket that was deleted) is told and not healed by a fresh process. Illness is
what one does heal: a loop that does not turn, a database lock that is not given back, no thread left for handlers. A
thread that is late and runs all the same is busy; only one that stands still is stuck.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from types import CodeType, FrameType

from sqlalchemy.exc import SQLAlchemyError

from puna.backends import guards
from puna.control.domain.states import SERVING
from puna.control.store.store import Store
from puna.control.telemetry.load import Loads
from puna.home import Home

LOOK_EVERY_S, WRITE_EVERY_S = 1.0, 10.0
LATE_S = 3.0
"""What takes longer is told by /health."""
STUCK_S, STILL_S = 10.0, 8.0
"""So late, and so long without a moment of the processor: then a thread does not go on by itself."""
HANDLERS_STUCK_S = 30.0
"""Handlers wait for others, as long as those let them."""
PATIENT: dict[CodeType, float] = {guards.start.__code__: guards.START_S + 5}
"""Where a thread may stand still for longer, in seconds."""
OK = "ok"
HANDLER_THREADS = "AnyIO worker thread"


class Turns(threading.Event):
    """The event that ends a loop, as that loop sees it: each look at it is a turn."""

    def __init__(self, name: str, stopped: threading.Event) -> None:
        super().__init__()
        self.name, self._stopped = name, stopped
        self.turned = time.monotonic()
        self.ident = self.native_id = 0

    def is_set(self) -> bool:
        """As the event's."""
        self.turned = time.monotonic()
        self.ident, self.native_id = threading.get_ident(), threading.get_native_id()
        return self._stopped.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """As the event's."""
        ended = self._stopped.wait(timeout)
        self.is_set()
        return ended


class Stillness:
    """Seconds for which each thread of this process has not run; known only from the first look on."""

    def __init__(self, folder: Path = Path("/proc/self/task")) -> None:
        """`folder` is where the kernel tells of this process's threads."""
        self._folder = folder
        self._seen: dict[int, tuple[bytes, float]] = {}

    def look(self, now: float) -> None:
        """Note who has run since the last look."""
        seen: dict[int, tuple[bytes, float]] = {}
        for name in os.listdir(self._folder):
            with contextlib.suppress(OSError):
                told = (self._folder / name / "schedstat").read_bytes()
                before = self._seen.get(int(name))
                seen[int(name)] = before if before and before[0] == told else (told, now)
        self._seen = seen

    def forget(self) -> None:
        """Nobody is late."""
        self._seen = {}

    def still_s(self, native_id: int, now: float) -> float:
        """Seconds that a thread has stood still; 0 where that is not known."""
        return now - self._seen[native_id][1] if native_id in self._seen else 0.0


class Vitals:
    """`run` looks at the database from a thread of its own; `illness` and `parts` only read what is known."""

    def __init__(self, store: Store, home: Home, loads: Loads, essential: Collection[str] = ()) -> None:
        """`essential` names the loops without which a fresh process is better."""
        self._store, self._home, self._loads, self._essential = store, home, loads, essential
        self._began = time.monotonic()
        self._loops: list[Turns] = []
        self._stillness = Stillness()
        self._looking_since: float | None = None
        self._wrote = 0.0
        self._database = self._replicas = OK
        self._handlers_since: float | None = None
        self.silent_guards: Callable[[], Collection[str]] = tuple
        """Replicas whose guards do not answer."""

    def turns(self, name: str, stopped: threading.Event) -> threading.Event:
        """The event that a loop is given instead of `stopped`."""
        turns = Turns(name, stopped)
        self._loops.append(turns)
        return turns

    # -- from the thread of `run`

    def run(self, stopped: threading.Event) -> None:
        """Look at the database every second until `stopped`."""
        while not stopped.wait(LOOK_EVERY_S):
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Read and write, and see whether what serves can be reached."""
        self._looking_since = now
        try:
            is_write = now - self._wrote >= WRITE_EVERY_S or self._database != OK
            self._store.check(write=is_write)
            self._wrote = now if is_write else self._wrote
            self._replicas = self._unreachable()
            self._database = OK
        except (SQLAlchemyError, OSError) as error:
            self._database = " ".join(str(getattr(error, "orig", None) or error).split())[:200] or type(error).__name__
        finally:
            self._looking_since = None

    def _unreachable(self) -> str:
        serving = [r.id for r in self._store.snapshot().replicas if r.state in SERVING]
        lost = {r for r in serving if not self._home.replica_socket(r).exists()} | set(self.silent_guards())
        return f"{', '.join(sorted(lost)[:5])} cannot be reached" if lost else OK

    # -- from the event loop

    def handlers_asked(self, now: float) -> bool:
        """True once: a thread for handlers is to be asked for, and `handlers_answered` called in it."""
        if self._handlers_since is None:
            self._handlers_since = now
            return True
        return False

    def handlers_answered(self) -> None:
        """There was one."""
        self._handlers_since = None

    def parts(self, now: float) -> dict[str, str]:
        """Each part, and `ok` or what is wrong with it."""
        late = ", ".join(loop.name for loop in self._late(now))
        looking_s, handlers_s = _seconds(self._looking_since, now), _seconds(self._handlers_since, now)
        is_heard = now - self._began <= STUCK_S or self._loads.gateways(now)
        return {
            "database": f"it has not answered for {looking_s:.0f} s" if looking_s > LATE_S else self._database,
            "loops": f"{late} late" if late else OK,
            "handlers": f"none has been free for {handlers_s:.0f} s" if handlers_s > LATE_S else OK,
            "gateways": OK if is_heard else "none has reported lately",
            "sockets": OK if self._home.control_socket.exists() else "the control socket was deleted",
            "replicas": self._replicas,
        }

    def illness(self, now: float) -> str:
        """The reason to replace this process; empty when there is none."""
        looking_s, handlers_s = _seconds(self._looking_since, now), _seconds(self._handlers_since, now)
        late = self._late(now)
        if not late and max(looking_s, handlers_s) < LATE_S:
            self._stillness.forget()
            return ""
        self._stillness.look(now)
        for loop in late:
            if now - loop.turned > STUCK_S and self._stands(loop.native_id, now) and not patient(loop, now):
                return f"its {loop.name} has stood still for {now - loop.turned:.0f} s"
        writer = self._store.writer
        if looking_s > STUCK_S and writer and self._store.is_file and self._stands(writer, now):
            return f"its database has been held for {looking_s:.0f} s by a thread that stands still"
        if handlers_s > HANDLERS_STUCK_S and all(self._stands(native_id, now) for native_id in handler_threads()):
            return f"no handler has been free for {handlers_s:.0f} s"
        return ""

    def _late(self, now: float) -> list[Turns]:
        return [loop for loop in self._loops if loop.name in self._essential and now - loop.turned > LATE_S]

    def _stands(self, native_id: int, now: float) -> bool:
        return self._stillness.still_s(native_id, now) >= STILL_S


def _seconds(since: float | None, now: float) -> float:
    return now - since if since is not None else 0.0


def handler_threads() -> list[int]:
    """The threads that run handlers which are no coroutines."""
    return [thread.native_id or 0 for thread in threading.enumerate() if thread.name == HANDLER_THREADS]


def patient(loop: Turns, now: float) -> bool:
    """It stands still where that may take its time."""
    frame: FrameType | None = sys._current_frames().get(loop.ident)
    while frame is not None:
        if now - loop.turned < PATIENT.get(frame.f_code, 0.0):
            return True
        frame = frame.f_back
    return False
