"""Awake or asleep: the tier of one replica, changed by its owner's commands and by the requests that come.

    awake ── fall_asleep ──> falling ──> asleep ── a request, or wake ──> waking ──> awake

A request that comes in any other state than awake waits until it is awake; the first one wakes it.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Callable, Dict

from puna.worker import process

AWAKE, FALLING, ASLEEP, WAKING = "awake", "falling", "asleep", "waking"
REQUEST_CAME = "a request came"
MOVES: Dict[str, Dict[str, str]] = {
    AWAKE: {FALLING: "its owner asks for it and nothing runs"},
    FALLING: {ASLEEP: "the memory is given back", AWAKE: "a request came first, or it cannot sleep"},
    ASLEEP: {WAKING: "a request came, or its owner asks for it"},
    WAKING: {AWAKE: "the memory is back"},
}


class SleepCycle:
    """One replica's tier. `on_change(tier, seconds, reason)` is called at each change, and where it stays awake."""

    def __init__(self, sleeper: Any, is_idle: Callable[[], bool], on_change: Callable[[str, float, str], Any]) -> None:
        """`sleeper` has `prepare_sleep`, `sleep` and `wake`; `is_idle` says that no call is queued or runs."""
        self._sleeper, self._is_idle, self._on_change = sleeper, is_idle, on_change
        self._changed = threading.Condition()
        self._commands = threading.Lock()  # one command after the other
        self.until = process.unread_page()
        """Until when a change may take, for the guard to read: it may hold the interpreter's lock."""
        self.state = AWAKE
        """Read without the lock: a call is marked as running first, and only then looks here."""

    @property
    def tier(self) -> str:
        """The tier that is reported: `awake` or `asleep`."""
        return AWAKE if self.state in (AWAKE, FALLING) else ASLEEP

    def fall_asleep(self) -> None:
        """Sleep, unless something runs; takes as long as it takes. Never raises: `on_change` gets the reason."""
        with self._commands:
            if self.state != AWAKE:
                return
            began = time.monotonic()
            try:
                self._sleeper.prepare_sleep()  # the longest part, and calls go on meanwhile
                self._move(FALLING)
                # From here on a call that is taken waits; one taken before is seen as running.
                if not self._is_idle():
                    self._move(AWAKE)
                    self._on_change(AWAKE, 0.0, REQUEST_CAME)
                    return
                self._sleeper.sleep()
            except BaseException as error:  # noqa: BLE001 - the owner gets it, and ends the replica its own way
                if self.state == FALLING:
                    self._move(AWAKE)
                self._on_change(AWAKE, 0.0, "%s: %s" % (type(error).__name__, error))
                return
            self._move(ASLEEP)
            self._on_change(ASLEEP, time.monotonic() - began, "")

    def ensure_awake(self) -> float:
        """Return once awake; the seconds that waking took, as far as this caller waited for it, 0 when it was awake.

        Raises what waking raises: this process is then of no use any more.
        """
        if self.state == AWAKE:
            return 0.0
        began = time.monotonic()
        with self._changed:
            while self.state in (FALLING, WAKING):
                self._changed.wait()
            if self.state == AWAKE:
                return time.monotonic() - began
            self._move(WAKING)
        woke = time.monotonic()
        self._sleeper.wake()
        self._move(AWAKE)
        self._on_change(AWAKE, time.monotonic() - woke, "")
        return time.monotonic() - began

    def _move(self, state: str) -> None:
        with self._changed:
            assert state in MOVES[self.state], (self.state, state)
            self.state = state
            self.until[process.CHANGE] = time.monotonic() + process.CHANGE_S if state in (FALLING, WAKING) else 0.0
            self._changed.notify_all()
