"""What each key has asked of each endpoint, counted by one gateway and told to the control plane exactly once."""

from __future__ import annotations

import uuid
from typing import Protocol

from puna.control.wire import UsageCount, UsageReport

HOUR_S = 3600
EVERY_S = 1.0
"""Counts are told so often; a gateway that is killed takes at most so much with it."""


class Counted(Protocol):
    """An answered request: a call."""

    endpoint: str
    key: str
    infer_s: float
    broke_off: bool


class UsageMeter:
    """Counts by endpoint and key, in reports with numbers that rise.

    A report is kept, and told again with its number, until its arrival is known: who has had it before passes over it.
    """

    def __init__(self) -> None:
        self._process = uuid.uuid4().hex  # a successor counts from nothing, under another name
        self._now: dict[tuple[str, str], list[float]] = {}
        self._hours: dict[tuple[int, str, str], list[float]] = {}
        self._number = 0
        self._told: UsageReport | None = None
        self._told_at = 0.0

    def count(self, call: Counted, status: int) -> None:
        """One more reply; this runs for every request."""
        row = self._now.get((call.endpoint, call.key))
        if row is None:
            row = self._now[call.endpoint, call.key] = [0, 0, 0.0]
        row[0] += 1
        if status >= 400 or call.broke_off:
            row[1] += 1
        row[2] += call.infer_s

    def report(self, now: float, *, at_once: bool = False) -> UsageReport | None:
        """What is to be told at `now` (Unix seconds); None when there is nothing new, or it was told just now."""
        if self._now:
            hour = int(now) // HOUR_S * HOUR_S
            counts, self._now = self._now, {}
            for (endpoint, key), more in counts.items():
                row = self._hours.setdefault((hour, endpoint, key), [0, 0, 0.0])
                row[:] = [a + b for a, b in zip(row, more, strict=True)]
        if self._told is None:
            if not self._hours or (not at_once and 0 <= now - self._told_at < EVERY_S):
                return None
            self._number, self._told_at = self._number + 1, now
            rows = (UsageCount(*of, int(n), int(failed), round(s, 6)) for of, (n, failed, s) in self._hours.items())
            self._told, self._hours = UsageReport(self._process, self._number, tuple(rows)), {}
        return self._told

    def arrived(self) -> None:
        """The last report is in the books."""
        self._told = None
