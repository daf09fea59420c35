"""Load and deaths as gateways report them, in memory only: a load is forgotten after 5 s, a death after ten minutes.

All times are of the machine's monotonic clock, which its processes share: no clock that is set scales anything down.

A replica that dies of a request is that request's doing, and no reason to hold its endpoint back from the others:
such a death is not counted against the revision. That ends where the app is at fault: when replicas that had not
answered anything died of single requests of three keys. What one key can do has an end too: so many deaths of its
requests, and the endpoint refuses it until the first of them is old. Gateways tell a new control plane again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from puna.control.wire import DeathReport, EndpointLoad, LoadReport

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
    """Deaths and convictions of one revision."""

    deaths: dict[str, Death] = field(default_factory=dict)
    """By replica."""
    poison: dict[str, float] = field(default_factory=dict)
    """When a body is forgiven, by digest."""
    fruitless: set[str] = field(default_factory=set)
    """Keys whose requests killed replicas that had answered none, since one died that had."""


@dataclass(frozen=True)
class News:
    """Changes by one report."""

    uncount: tuple[int, ...] = ()
    """Revisions, one for each death that was counted before it was known whose it is."""
    poison: tuple[str, ...] = ()
    """Bodies that are refused from now on, by digest."""
    blocked: tuple[str, ...] = ()
    """Keys that are."""


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
        """The bodies (by digest) and keys that gateways are to refuse for one revision: seconds left."""
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


REPORT_LIVES_S = 5.0


class Loads:
    """The latest report of each gateway. Safe to use from many threads."""

    def __init__(self, on_waiting: Callable[[], None] | None = None) -> None:
        """`on_waiting` is called after a report with waiting requests, so that nobody waits for a timer."""
        self.on_waiting = on_waiting
        self.deaths = Deaths()
        """What `report` is told of deaths is taken by whoever can write it down."""
        self._lock = threading.Condition()
        self._versions: dict[str, int] = {}
        self._reports: dict[str, tuple[float, Mapping[str, EndpointLoad]]] = {}
        # When the last request came, to an endpoint and to each of two revisions that share one: outlives the gateway
        # that saw it.
        self._last: dict[str, float] = {}
        self._last_of: dict[str, dict[int, float]] = {}

    def report(self, report: LoadReport) -> None:
        """Take a gateway's report."""
        loads = report.endpoints
        with self._lock:
            self._reports[report.gateway] = (report.at, loads)
            for name, load in loads.items():
                self._last[name] = max(load.last_request, self._last.get(name, 0.0))
                if load.revisions:
                    before = self._last_of.get(name, {})
                    last = {n: max(part.last_request, before.get(n, 0.0)) for n, part in load.revisions.items()}
                    self._last_of[name] = last
        if self.on_waiting and any(load.queued for load in loads.values()):
            self.on_waiting()

    def has_table(self, gateway: str, version: int) -> None:
        """A gateway goes by this version of the route table from now on."""
        with self._lock:
            self._versions[gateway] = version
            self._lock.notify_all()

    def wait_for_tables(self, version: int, timeout_s: float) -> bool:
        """Wait until every gateway that reports has this version of the route table, or a later one; False: not yet."""

        def have_it() -> bool:
            return all(self._versions.get(one, -1) >= version for one in self._live(time.monotonic()))

        with self._lock:
            return self._lock.wait_for(have_it, timeout_s)

    def gateways(self, now: float) -> list[str]:
        """The gateways that have reported lately."""
        return sorted(self._live(now))

    def in_flight(self, replica_id: str, now: float) -> int:
        """Requests that one replica is busy with, all gateways together."""
        return sum(load.replicas.get(replica_id, 0) for loads in self._live(now).values() for load in loads.values())

    def endpoint(self, name: str, now: float) -> EndpointLoad:
        """One endpoint's load, all gateways together."""
        parts = [loads[name] for loads in self._live(now).values() if name in loads]
        return _together(parts, self._last.get(name, 0.0))

    def revision(self, name: str, number: int, now: float, *, is_first: bool) -> EndpointLoad:
        """The load of one of two revisions that share an endpoint; what a gateway does not divide is the first's."""
        parts = []
        for loads in self._live(now).values():
            load = loads.get(name, EndpointLoad())
            whole = load if is_first and not load.revisions else EndpointLoad()
            parts.append(load.revisions.get(number, whole))
        last = self._last_of.get(name, {}).get(number, 0.0)
        return _together(parts, max([last, *(p.last_request for p in parts)]))

    def _live(self, now: float) -> dict[str, Mapping[str, EndpointLoad]]:
        with self._lock:
            self._reports = {g: r for g, r in self._reports.items() if now - r[0] < REPORT_LIVES_S}
            return {gateway: loads for gateway, (_, loads) in self._reports.items()}


def _together(parts: Collection[EndpointLoad], last_request: float) -> EndpointLoad:
    return EndpointLoad(sum(p.in_flight for p in parts), sum(p.queued for p in parts), last_request)
