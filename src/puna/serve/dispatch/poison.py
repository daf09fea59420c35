"""Which bodies kill replicas, of one revision of one endpoint: suspects, convictions, and when both are over. No I/O.

A body is a suspect while a replica has died with it and no replica has answered it since. When replicas have died of
it twice while they had nothing else, it is convicted, and refused for ten minutes. Digests are made only while there
is anything to compare them with: an endpoint whose replicas live pays nothing.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from puna.errors import PoisonError, RateLimitError

CONVICTED_S = SUSPECTED_S = 600.0
DEATHS = 2
"""Replicas that have to die of a body alone."""
REMEMBERED = 1024
"""Suspects of one endpoint; the oldest are forgotten first."""


def digest(path: str, body: bytes, adapter: str = "") -> str:
    """What equal requests have in common; the endpoint is known from where it is kept."""
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
    """What is known of the bodies of one revision; empty, and false, when nothing is. Times are on one clock."""

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
        """What all gateways know: seconds left, by digest and by key."""
        for digest, left_s in convicted.items():
            self._until[digest] = max(now + left_s, self._until.get(digest, 0.0))
        self._blocked = {key: now + left_s for key, left_s in blocked.items()}

    def told(self, now: float) -> dict[str, float]:
        """What this gateway has found out: seconds left, by digest."""
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
        """What a body is suspected of; None: nothing.

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
