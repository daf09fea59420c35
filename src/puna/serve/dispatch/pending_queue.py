"""The queue of requests that no replica can take yet: in turns among keys, bounded, with a time limit. No I/O.

Each key has a line of its own, first come first served, and the keys take turns: a caller with one request waits for
one of each other key, however many they have. The bound is shared. In a full room the newest of the key that has the
most gives its place to a key that has at least two fewer, so that no key is refused for what another one does.

How long a request may wait. `inference_time_s` begins when a replica gets the request, so a cold start never
eats it. Before that, a request to an awake endpoint waits `inference_time_s` at most, and one that finds no
replica awake, or loses them all while it waits, `startup_allowance_s + inference_time_s` from its arrival.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from puna.errors import QueueFullError

STARTUP_ALLOWANCE_S = 900.0
COLD_RETRY_AFTER_S, RETRY_AFTER_S = 5, 1


@dataclass(eq=False, slots=True)
class Waiter:
    """One request's place in the queue."""

    number: int
    entered_at: float
    cold: bool
    """No replica was ready at some moment of its wait."""
    wake: Callable[[BaseException | None], None]
    """Called with None when it is this waiter's turn, or with the reason why that will never be."""
    tried: Collection[str] = ()
    """Replicas that it is not to be sent to again."""
    key: str = ""
    """The API key that it came with: whose turn it takes."""
    alone: bool = False
    """It has to have a replica for itself."""
    asleep: bool = False
    """When it entered, all that were ready slept."""
    granted: object = None
    """What the turn brought: a replica with a free place."""


Line = OrderedDict[int, Waiter]
"""Waiters by number. Leaving from the middle is common, clients hang up: so no deque."""
NOBODY: Line = OrderedDict()
"""The line of a key that has none; it stays empty."""


class PendingQueue:
    """The queue of one endpoint."""

    def __init__(self, endpoint: str, startup_allowance_s: float = STARTUP_ALLOWANCE_S) -> None:
        self.endpoint = endpoint
        self.startup_allowance_s = startup_allowance_s
        self._again: Line = OrderedDict()
        """Those that a replica had already: they stand before all others."""
        self._lines: OrderedDict[str, Line] = OrderedDict()
        """By key, those that have anybody waiting; the key whose turn it is stands first."""
        self._count = 0
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Waiter]:
        """The waiters as they stand now, in the order in which their turns would come."""
        order, lines = list(self._again.values()), [iter(line.values()) for line in self._lines.values()]
        while lines:
            turn = [(line, next(line, None)) for line in lines]
            lines = [line for line, waiter in turn if waiter is not None]
            order += [waiter for _, waiter in turn if waiter is not None]
        return iter(order)

    def first(self) -> Waiter | None:
        """The first in line; None: nobody waits."""
        line = self._again or next(iter(self._lines.values()), self._again)
        return next(iter(line.values()), None)

    def enter(
        self,
        now: float,
        wake: Callable[[BaseException | None], None],
        *,
        cold: bool,
        max_queue: int,
        tried: Collection[str] = (),
        key: str = "",
    ) -> Waiter:
        """Take a place at the end of the key's line; who had a replica already stands at the front, never refused.

        Raises:
            QueueFullError: `max_queue` requests wait already, and no key has at least two more of them than this one.
        """
        waiter = Waiter(next(self._numbers), now, cold, wake, tried, key)
        if tried:
            self._again[waiter.number] = waiter
            self._again.move_to_end(waiter.number, last=False)
            self._count += 1
            return waiter
        displaced: Waiter | None = None
        if self._count >= max_queue:
            longest = max(self._lines.values(), key=len, default=NOBODY)
            if len(self._lines.get(key, NOBODY)) + 1 >= len(longest):
                raise self._full(cold)
            displaced = next(reversed(longest.values()))
            self.leave(displaced)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = OrderedDict()
        line[waiter.number] = waiter
        self._count += 1
        if displaced is not None:
            # The last step: who is told may come back at once, and must find the room as it is then.
            displaced.wake(self._full(displaced.cold))
        return waiter

    def leave(self, waiter: Waiter) -> bool:
        """Give the place up; False when it was given up before."""
        line = self._again if waiter.tried else self._lines.get(waiter.key, NOBODY)
        if line.pop(waiter.number, None) is None:
            return False
        self._count -= 1
        if not line and not waiter.tried:
            del self._lines[waiter.key]
        return True

    def grant(self, waiter: Waiter, place: object) -> None:
        """Give its place to a waiter, and the turn to the next key."""
        if self.leave(waiter) and not waiter.tried and waiter.key in self._lines:
            self._lines.move_to_end(waiter.key)
        waiter.granted = place
        waiter.wake(None)

    def turned_cold(self) -> None:
        """No replica is ready: those who wait may wait for one to start."""
        for line in (self._again, *self._lines.values()):
            for waiter in line.values():
                waiter.cold = True

    def expired(self, now: float, inference_time_s: float) -> list[Waiter]:
        """The waiters whose wait has been too long; they stay until they leave."""
        cold_s = inference_time_s + self.startup_allowance_s
        return [t for t in self if now - t.entered_at >= (cold_s if t.cold or t.asleep else inference_time_s)]

    def _full(self, cold: bool) -> QueueFullError:
        retry_after_s = COLD_RETRY_AFTER_S if cold else RETRY_AFTER_S
        return QueueFullError(f"{self._count} requests wait for {self.endpoint} already", retry_after_s)
