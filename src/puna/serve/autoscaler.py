"""The loop that turns the gateways' load reports into desired replicas, which the reconciler brings about."""

from __future__ import annotations

import logging
import threading
import time

from puna.control.domain.records import Endpoint, Snapshot
from puna.control.domain.states import SERVING
from puna.control.store.store import Store
from puna.control.telemetry.load import Loads
from puna.errors import NotFoundError
from puna.serve.scale import Load, ScalingLimits, State, decide

INTERVAL_S = 0.5
LOG = logging.getLogger(__name__)


class Autoscaler:
    """Write the desired replicas of each revision whenever they should be others."""

    def __init__(self, store: Store, loads: Loads) -> None:
        self._store = store
        self._loads = loads
        self._states: dict[tuple[str, int], State] = {}
        self._wake = threading.Event()

    def poke(self) -> None:
        """Look at once: somebody waits. From any thread."""
        self._wake.set()

    def run(self, stopped: threading.Event) -> None:
        """Look twice a second, and at every poke, until `stopped`."""
        while not stopped.is_set():
            self._wake.clear()
            try:
                self.step(time.time(), time.monotonic())
            except Exception:  # the log of the control plane has it; the next look may succeed
                LOG.exception("the autoscaler could not look at the endpoints")
            self._wake.wait(INTERVAL_S)

    def step(self, now: float, at: float | None = None) -> None:
        """Look at every endpoint that serves, once; `now` is written down, `at` (monotonic) is what decides."""
        at = now if at is None else at
        snapshot = self._store.snapshot()
        for endpoint in snapshot.endpoints:
            if endpoint.active:
                for revision in endpoint.shares:
                    self._look(endpoint, revision, snapshot, (now, at))
        served = {(endpoint.name, revision) for endpoint in snapshot.endpoints for revision in endpoint.shares}
        self._states = {key: state for key, state in self._states.items() if key in served}

    def _look(self, endpoint: Endpoint, revision: int, snapshot: Snapshot, clocks: tuple[float, float]) -> None:
        now, at = clocks
        desired, _ = endpoint.desired_of(revision)
        state = self._states.get((endpoint.name, revision))
        if state is None or state.replicas != desired:
            state = State(desired)  # somebody else changed it, or this control plane has just begun
        if endpoint.split is None:
            reported = self._loads.endpoint(endpoint.name, at)
        else:
            reported = self._loads.revision(endpoint.name, revision, at, is_first=revision == endpoint.serving)
        load = Load(reported.in_flight, reported.queued, reported.last_request or None)
        low, high = endpoint.limits(revision)
        limits = ScalingLimits(
            low, high, concurrency(endpoint, snapshot, revision), endpoint.settings.scale_down_delay_s
        )
        decision = decide(load, limits, state, at)
        self._states[endpoint.name, revision] = decision.state
        if decision.replicas != desired:
            try:
                self._store.scale(endpoint.name, decision.replicas, decision.reason, now, revision)
            except NotFoundError:
                return  # deleted since the snapshot


def concurrency(endpoint: Endpoint, snapshot: Snapshot, revision: int | None = None) -> int:
    """Requests that one replica takes at a time: as its ready replicas say, else as it is set, else one.

    Of two revisions that share the requests each is asked by itself.
    """
    said = [
        replica.concurrency
        for replica in snapshot.replicas
        if replica.endpoint == endpoint.name
        and replica.state in SERVING
        and (endpoint.split is None or replica.revision == revision)
    ]
    return max(said, default=endpoint.settings.container_concurrency or 1)
