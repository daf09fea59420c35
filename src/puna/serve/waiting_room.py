"""Where requests wait while no replica can take them: first come first served, bounded, with a time limit. No I/O.

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


@dataclass
class Ticket:
    """One request's place in the queue."""

    number: int
    entered_at: float
    cold: bool
    """No replica was ready at some moment of its wait."""
    wake: Callable[[BaseException | None], None]
    """Called with None when it is this ticket's turn, or with the reason why that will never be."""
    tried: Collection[str] = ()
    """Replicas that died with this request."""
    asleep: bool = False
    """When it entered, all that were ready slept."""
    granted: object = None
    """What the turn brought: a replica with a free place."""


class WaitingRoom:
    """The queue of one endpoint."""

    def __init__(self, endpoint: str, startup_allowance_s: float = STARTUP_ALLOWANCE_S) -> None:
        self.endpoint = endpoint
        self.startup_allowance_s = startup_allowance_s
        self._tickets: OrderedDict[int, Ticket] = OrderedDict()  # leaving from the middle is common: clients hang up
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        """The tickets as they stand now, the first in line first."""
        return iter(list(self._tickets.values()))

    def first(self) -> Ticket | None:
        """The first in line; None: nobody waits."""
        return next(iter(self._tickets.values()), None)

    def enter(
        self,
        now: float,
        wake: Callable[[BaseException | None], None],
        *,
        cold: bool,
        max_queue: int,
        tried: Collection[str] = (),
    ) -> Ticket:
        """Take a place at the end; a request that was on a dying replica stands at the front and is never refused.

        Raises:
            QueueFullError: `max_queue` requests wait already.
        """
        if not tried and len(self._tickets) >= max_queue:
            raise QueueFullError(f"{len(self._tickets)} requests wait for {self.endpoint} already", 5 if cold else 1)
        ticket = Ticket(next(self._numbers), now, cold, wake, tried)
        self._tickets[ticket.number] = ticket
        if tried:
            self._tickets.move_to_end(ticket.number, last=False)
        return ticket

    def leave(self, ticket: Ticket) -> bool:
        """Give the place up; False when it was given up before."""
        return self._tickets.pop(ticket.number, None) is not None

    def turned_cold(self) -> None:
        """No replica is ready: those who wait may wait for one to start."""
        for ticket in self._tickets.values():
            ticket.cold = True

    def wait_limit_s(self, ticket: Ticket, inference_time_s: float) -> float:
        """How long this ticket may wait in all."""
        return inference_time_s + (self.startup_allowance_s if ticket.cold or ticket.asleep else 0.0)

    def expired(self, now: float, inference_time_s: float) -> list[Ticket]:
        """The tickets whose wait has been too long; they stay until they leave."""
        return [
            ticket
            for ticket in self._tickets.values()
            if now - ticket.entered_at >= self.wait_limit_s(ticket, inference_time_s)
        ]
