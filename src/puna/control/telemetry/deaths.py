"""Deaths of replicas that had requests, as the gateways tell them: whose they are, and which bodies all refuse.

A replica that dies of a request is that request's doing, and no reason to hold its endpoint back from the others:
such a death is not counted against the revision. That ends where the app is at fault: when replicas that had not
answered anything died of single requests of three keys. What one key can do has an end too: so many deaths of its
requests, and the endpoint refuses it until the first of them is old. In memory only: gateways tell a new control plane
again.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from puna.control.wire import DeathReport, EndpointLoad

WINDOW_S = 600.0
MAX_DEATHS_OF_KEY = 6
"""Of one key's requests, at one revision, within the window: three bodies, each tried twice."""
KEYS_TO_BLAME_APP = 3


@dataclass
class Death:
    """One replica's."""

    at: float
    key: str
    """Whose request it had and nothing else; empty: it had several, or more than one gateway's."""
    gateway: str


@dataclass
class Of:
    """What is known of one revision."""

    deaths: dict[str, Death] = field(default_factory=dict)
    """By replica."""
    poison: dict[str, float] = field(default_factory=dict)
    """When a body is forgiven, by digest."""
    fruitless: set[str] = field(default_factory=set)
    """Keys whose requests killed replicas that had answered none, since one died that had."""


@dataclass(frozen=True)
class News:
    """What a report has changed."""

    uncount: tuple[int, ...] = ()
    """Revisions, one for each death that was counted before it was known whose it is."""
    poison: tuple[str, ...] = ()
    """Bodies that are refused from now on, by digest."""
    blocked: tuple[str, ...] = ()
    """Keys that are."""

    def __bool__(self) -> bool:
        return bool(self.uncount or self.poison or self.blocked)


class Deaths:
    """Deaths and what follows from them. Safe to use from many threads; times are on one clock that never jumps."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: dict[tuple[str, int], Of] = {}
        self._excused: dict[str, float] = {}
        self._counted: dict[str, float] = {}

    def report(self, gateway: str, endpoint: str, load: EndpointLoad, now: float) -> News:
        """Take what one gateway says of one endpoint; what it has said before changes nothing."""
        if not load.deaths and not load.poison:
            return News()
        with self._lock:
            self._forget(now)
            uncount, blocked, convicted = [], [], []
            for death in load.deaths:
                of = self._of.setdefault((endpoint, death.revision), Of())
                before = self._blocked(of, now)
                if self._take(of, gateway, death, now) and death.replica in self._counted:
                    uncount.append(death.revision)
                blocked += [key for key in self._blocked(of, now) if key not in before]
            for revision, found, left_s in load.poison:
                of = self._of.setdefault((endpoint, revision), Of())
                if found not in of.poison:
                    convicted.append(found)
                of.poison[found] = max(of.poison.get(found, 0.0), now + min(left_s, WINDOW_S))
        return News(tuple(uncount), tuple(convicted), tuple(blocked))

    def excused(self) -> frozenset[str]:
        """Replicas whose death is somebody's own."""
        with self._lock:
            return frozenset(self._excused)

    def count(self, replica_id: str, now: float) -> bool:
        """This replica's death has been counted; True: it has been excused meanwhile, so that it must be uncounted."""
        with self._lock:
            self._counted[replica_id] = now
            return replica_id in self._excused

    def refused(self, endpoint: str, revision: int, now: float) -> dict[str, dict[str, float]]:
        """What gateways are to refuse of one revision: seconds left, of bodies by digest, and of keys."""
        with self._lock:
            of = self._of.get((endpoint, revision))
            if of is None:
                return {}
            poison = {found: until - now for found, until in of.poison.items() if until > now}
            return {"poison": poison, "blocked": self._blocked(of, now)}

    def _take(self, of: Of, gateway: str, told: DeathReport, now: float) -> bool:
        """Write a death down; True: it is a new one, and excused."""
        replica, key = told.replica, told.key
        known = of.deaths.get(replica)
        if known is not None:
            if known.gateway != gateway:  # each of them had a request there: it was nobody's alone
                known.key = ""
            return False
        if told.survived:
            of.fruitless.clear()
        elif key:
            of.fruitless.add(key)
        is_excused = len(of.fruitless) < KEYS_TO_BLAME_APP
        of.deaths[replica] = Death(now, key, gateway)
        if is_excused:
            self._excused[replica] = now
        return is_excused

    @staticmethod
    def _blocked(of: Of, now: float) -> dict[str, float]:
        """Keys that are refused: seconds left."""
        times: dict[str, list[float]] = {}
        for death in of.deaths.values():
            if death.key:
                times.setdefault(death.key, []).append(death.at)
        many = {key: sorted(at)[-MAX_DEATHS_OF_KEY] for key, at in times.items() if len(at) >= MAX_DEATHS_OF_KEY}
        return {key: first + WINDOW_S - now for key, first in many.items() if first + WINDOW_S > now}

    def _forget(self, now: float) -> None:
        for of in self._of.values():
            of.deaths = {replica: death for replica, death in of.deaths.items() if now - death.at < WINDOW_S}
            of.poison = {found: until for found, until in of.poison.items() if until > now}
        self._of = {which: of for which, of in self._of.items() if of.deaths or of.poison}
        self._excused = {replica: at for replica, at in self._excused.items() if now - at < WINDOW_S}
        self._counted = {replica: at for replica, at in self._counted.items() if now - at < WINDOW_S}
