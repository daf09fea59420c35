"""Bodies that kill replicas, of one revision of one endpoint: suspects, their isolation, and convictions.

A body is a suspect while a replica has died with it and no replica has answered it since; one replica is kept free, and
suspects come to it one by one, so that it is seen which kills it. When replicas have died of a body twice while they
had nothing else, it is convicted, and refused for ten minutes. Digests are made only while there is anything to compare
them with: an endpoint whose replicas live pays nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from puna.errors import PoisonError, RateLimitError
from puna.serve.dispatch.call import SuspectGroup
from puna.serve.dispatch.routing import least_loaded
from puna.serve.dispatch.worker_connection import InFlight, WorkerConnection

CONVICTED_S = SUSPECTED_S = 600.0
DEATHS = 2
"""Replicas that have to die of a body alone."""
REMEMBERED = 1024
"""Suspects of one endpoint; the oldest are forgotten first."""


def digest(path: str, body: bytes, adapter: str = "") -> str:
    """A digest that equal requests have in common; the endpoint is known from where it is kept."""
    made = hashlib.blake2b(f"{path}\n{adapter}\n".encode(), digest_size=16)
    made.update(body)
    return made.hexdigest()


@dataclass
class Suspect:
    """A body that replicas have died with."""

    at: float
    """When the last one did."""
    age_s: float
    """How long a replica has taken to die of it, at most."""
    alone: int = 0
    """How many had nothing else."""


class Poison:
    """Knowledge of the bodies of one revision; empty, and false, when there is none. Times are on one clock."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._suspects: OrderedDict[str, Suspect] = OrderedDict()
        self._until: dict[str, float] = {}
        self._mine: set[str] = set()
        self._blocked: dict[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self._suspects or self._until or self._blocked)

    def died(self, digest: str, now: float, age_s: float, *, alone: bool) -> None:
        """A replica has died `age_s` after it was given this body; `alone`: it had nothing else."""
        suspect = self._suspects.pop(digest, None) or Suspect(now, age_s)
        suspect.at, suspect.age_s, suspect.alone = now, max(age_s, suspect.age_s), suspect.alone + alone
        if suspect.alone >= DEATHS:
            self._until[digest] = now + CONVICTED_S
            self._mine.add(digest)
            return
        self._suspects[digest] = suspect
        while len(self._suspects) > REMEMBERED:
            self._suspects.popitem(last=False)

    def lived(self, digest: str) -> None:
        """A replica has answered this body, or died of another one: it is a suspect no more."""
        self._suspects.pop(digest, None)

    def learn(self, convicted: Mapping[str, float], blocked: Mapping[str, float], now: float) -> None:
        """Take what all gateways know: seconds left, by digest and by key."""
        for digest, left_s in convicted.items():
            self._until[digest] = max(now + left_s, self._until.get(digest, 0.0))
        self._blocked = {key: now + left_s for key, left_s in blocked.items()}

    def convicted(self, now: float) -> dict[str, float]:
        """The convictions by this gateway: seconds left, by digest."""
        self.sweep(now)
        return {digest: self._until[digest] - now for digest in self._mine}

    def check_key(self, key: str, now: float) -> None:
        """Refuse a key whose bodies have killed too many replicas.

        Raises:
            RateLimitError: it is one, and when it may come back.
        """
        left_s = self._blocked.get(key, 0.0) - now
        if left_s > 0:
            message = f"requests of this key (`{key}`) have killed replicas of {self.endpoint} again and again"
            raise RateLimitError(message, left_s, f"puna logs {self.endpoint}")

    def check(self, digest: str, now: float) -> Suspect | None:
        """The suspicion against a body; None: there is none.

        Raises:
            PoisonError: it is convicted.
        """
        left_s = self._until.get(digest, 0.0) - now
        if left_s > 0:
            message = f"{self.endpoint}: {DEATHS} replicas died of this very request; it is refused for {left_s:.0f} s"
            raise PoisonError(message, f"puna logs {self.endpoint}")
        suspect = self._suspects.get(digest)
        return suspect if suspect is not None and now - suspect.at < SUSPECTED_S else None

    def sweep(self, now: float) -> None:
        """Forget what is over."""
        while self._suspects and now - next(iter(self._suspects.values())).at >= SUSPECTED_S:
            self._suspects.popitem(last=False)
        if self._until:
            self._until = {digest: until for digest, until in self._until.items() if until > now}
            self._mine &= self._until.keys()
        if self._blocked:
            self._blocked = {key: until for key, until in self._blocked.items() if until > now}


PROBATION = 2.0
PROBATION_S, MAX_PROBATION_S = 1.0, 5.0
"""A suspect has passed when it has run for so many times what a replica took to die, and a second, but so long at most.
Most bodies that kill do it at once; what dies late has company then, and is found out the next time."""
PATIENCE_S = 10.0
"""A batch is tried one by one for so long. A replica may have been killed from outside, and then nobody is guilty."""


def probation_s(age_s: float) -> float:
    """Seconds for which a suspect runs alone, when a replica died `age_s` after it was given an equal one."""
    return min(PROBATION * age_s + PROBATION_S, MAX_PROBATION_S)


class Isolation:
    """At most one replica at a time: it is emptied, has one suspect more at a time, and is everybody's again."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        """`on_change` is called when a suspect has passed, or a batch is to wait no longer."""
        self.connection: WorkerConnection | None = None
        """The replica that is kept free."""
        self.guest: InFlight | None = None
        """The suspect that it has and that has not passed."""
        self._on_change = on_change
        self._timer: asyncio.TimerHandle | None = None

    def find(self, connections: Iterable[WorkerConnection], tried: Collection[str]) -> WorkerConnection | None:
        """Find a replica for a suspect; None: it has to wait, and one is being emptied for it."""
        self.settle(lambda: True)
        if self.guest is not None:
            return None
        if self.connection is None or self.connection.replica_id in tried:
            self._release()
            self.connection = least_loaded(connections, tried)
            if self.connection is None:
                return None
            self.connection.is_reserved = True
        have_passed = all(c is not None and c.suspicion and c.suspicion.has_passed for c in self.connection.calls)
        return self.connection if have_passed and self.connection.outstanding < self.connection.concurrency else None

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
        connection, guest = self.connection, self.guest
        if guest is not None and (guest.call is None or guest.ended):
            self.guest = None
        if connection is not None and (not connection.usable or (self.guest is None and not wanted())):
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
        if self.connection is not None:
            self.connection.is_reserved = False
        if self._timer is not None:
            self._timer.cancel()
        self.connection = self.guest = self._timer = None
