"""A replica of one endpoint kept free for suspects, who come one by one: so that it is seen who kills it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable

from puna.serve.dispatch.call import SuspectGroup
from puna.serve.dispatch.routing import least_loaded
from puna.serve.dispatch.worker_connection import InFlight, WorkerConnection

PROBATION = 2.0
PROBATION_S, MAX_PROBATION_S = 1.0, 5.0
"""A suspect has passed when it has run for so many times what a replica took to die, and a second, but so long at most.
Most bodies that kill do it at once; what dies late has company then, and is found out the next time."""
PATIENCE_S = 10.0
"""A batch is tried one by one for so long. A replica may have been killed from outside, and then nobody is guilty."""


def probation_s(age_s: float) -> float:
    """How long a suspect runs alone, when a replica died `age_s` after it was given an equal one."""
    return min(PROBATION * age_s + PROBATION_S, MAX_PROBATION_S)


class Isolation:
    """At most one replica at a time: it is emptied, has one suspect more at a time, and is everybody's again."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        """`on_change` is called when a suspect has passed, or a batch is to wait no longer."""
        self.link: WorkerConnection | None = None
        """The replica that is kept free."""
        self.guest: InFlight | None = None
        """The suspect that it has and that has not passed."""
        self._on_change = on_change
        self._timer: asyncio.TimerHandle | None = None

    def find(self, links: Iterable[WorkerConnection], tried: Collection[str]) -> WorkerConnection | None:
        """Where a suspect may run now; None: it has to wait, and a replica is being emptied for it."""
        self.settle(lambda: True)
        if self.guest is not None:
            return None
        if self.link is None or self.link.replica_id in tried:
            self._release()
            self.link = least_loaded(links, tried)
            if self.link is None:
                return None
            self.link.is_reserved = True
        have_passed = all(c is not None and c.suspicion and c.suspicion.has_passed for c in self.link.calls)
        return self.link if have_passed and self.link.outstanding < self.link.concurrency else None

    def seat(self, exchange: InFlight, group: SuspectGroup, age_s: float) -> None:
        """The suspect has been sent to the replica that was found."""
        self.guest = exchange
        self._watch(exchange, probation_s(age_s))
        loop = asyncio.get_running_loop()
        if group.until > loop.time() + group.patience_s:
            group.until = loop.time() + group.patience_s
            loop.call_at(group.until, self._lose_patience, group)

    def settle(self, wanted: Callable[[], bool]) -> None:
        """Something has changed: is the replica still needed? `wanted()`: suspects wait."""
        link, guest = self.link, self.guest
        if guest is not None and (guest.call is None or guest.ended):
            self.guest = None
        if link is not None and (not link.usable or (self.guest is None and not wanted())):
            self._release()

    def _watch(self, exchange: InFlight, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._passed, exchange, seconds)

    def _passed(self, exchange: InFlight, seconds: float) -> None:
        if exchange is not self.guest:
            return
        if not exchange.started:  # it waits for the replica to wake, or behind another gateway's
            self._watch(exchange, seconds)
            return
        exchange.call.suspicion.has_passed = True
        self.guest = None
        self._on_change()

    def _lose_patience(self, group: SuspectGroup) -> None:
        group.release()
        self._on_change()

    def _release(self) -> None:
        if self.link is not None:
            self.link.is_reserved = False
        if self._timer is not None:
            self._timer.cancel()
        self.link = self.guest = self._timer = None
