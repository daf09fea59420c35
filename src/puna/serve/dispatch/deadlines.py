"""When calls have used up their time: one timer for all of them, since a timer for each costs more than a reply."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Calls and the moments, on the loop's clock, at which `late(call)` is called for those that are still here."""

    def __init__(self, late: Callable[[T], None]) -> None:
        self._late = late
        self._at: dict[T, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, call: T, at: float) -> None:
        """Watch `call`."""
        self._at[call] = at
        if self._timer is None or at < self._timer.when():
            self._arm(at)

    def remove(self, call: T) -> None:
        """Forget `call`; harmless when it is not here. The timer stays: most often another call needs it."""
        self._at.pop(call, None)

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(at, self._look)

    def _look(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for call in sorted((call for call, at in self._at.items() if at <= now), key=self._at.__getitem__):
            self._at.pop(call, None)
            self._late(call)
        if self._at:
            self._arm(min(self._at.values()))
