"""What the gateways report: requests in flight and waiting, kept in memory only, forgotten after 5 s.

All times are of the machine's monotonic clock, which its processes share: no clock that is set scales anything down.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from puna.control.telemetry.deaths import Deaths
from puna.control.wire import EndpointLoad, LoadReport

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
        replicas: dict[str, int] = {}
        for part in parts:
            for replica_id, count in part.replicas.items():
                replicas[replica_id] = replicas.get(replica_id, 0) + count
        return EndpointLoad(
            sum(p.in_flight for p in parts),
            sum(p.queued for p in parts),
            self._last.get(name, 0.0),
            replicas,
        )

    def revision(self, name: str, number: int, now: float, *, is_first: bool) -> EndpointLoad:
        """The load of one of two revisions that share an endpoint; what a gateway does not divide is the first's."""
        parts = []
        for loads in self._live(now).values():
            load = loads.get(name, EndpointLoad())
            whole = load if is_first and not load.revisions else EndpointLoad()
            parts.append(load.revisions.get(number, whole))
        last = self._last_of.get(name, {}).get(number, 0.0)
        return EndpointLoad(
            sum(p.in_flight for p in parts),
            sum(p.queued for p in parts),
            max([last, *(p.last_request for p in parts)]),
        )

    def _live(self, now: float) -> dict[str, Mapping[str, EndpointLoad]]:
        with self._lock:
            self._reports = {g: r for g, r in self._reports.items() if now - r[0] < REPORT_LIVES_S}
            return {gateway: loads for gateway, (_, loads) in self._reports.items()}
