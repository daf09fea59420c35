"""Desired replicas of each endpoint, decided and written down twice a second; the reconciler makes them true.

`decide` is a pure function of the load, the limits and the time.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from dataclasses import dataclass

from puna.control.domain.records import Endpoint, Snapshot
from puna.control.domain.states import SERVING
from puna.control.store.store import Store
from puna.control.telemetry.load import Loads
from puna.control.wire import EndpointLoad
from puna.errors import NotFoundError

INTERVAL_S = 0.5
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScalingLimits:
    """Limits that the endpoint's owner has set."""

    min_replica: int
    max_replica: int
    concurrency: int
    """Requests that one replica takes at a time."""
    scale_down_delay_s: float


@dataclass(frozen=True)
class State:
    """The memory of one decision for the next one."""

    replicas: int
    """The decision that stands."""
    low_since: float | None = None
    """Since when fewer would have been enough; None: they are all needed."""
    peak: int = 0
    """The most that were needed since `low_since`."""


@dataclass(frozen=True)
class Decision:
    """A number of replicas, the reason in words, and the state for the next decision."""

    replicas: int
    reason: str
    state: State


def decide(load: EndpointLoad, limits: ScalingLimits, state: State, now: float) -> Decision:
    """Up at once, down late.

    Every request in flight or waiting needs its share of a replica; the sum, rounded up and clipped to the
    limits, is the need. More than there are: asked for at once, so a request to a sleeping endpoint wakes it.
    Fewer: asked for once `scale_down_delay_s` has gone by without a need for more, and the last replica goes
    only when that long has passed since the last request too.
    """
    low, high = min(limits.min_replica, limits.max_replica), limits.max_replica
    waiting = load.in_flight + load.queued
    need = min(max(math.ceil(waiting / max(limits.concurrency, 1)), low), high)
    if state.replicas > high:
        return _settled(high, "deactivated" if high == 0 else f"max_replica is {high}")
    if need > state.replicas:
        return _settled(need, _why_up(load, limits, need, waiting))
    if need == state.replicas:
        return _settled(need, _why_kept(load, need, low))
    return _lower(load, limits, state, need, now)


def _settled(replicas: int, reason: str) -> Decision:
    return Decision(replicas, reason, State(replicas))


def _lower(load: EndpointLoad, limits: ScalingLimits, state: State, need: int, now: float) -> Decision:
    """Fewer are needed than there are: wait, then go down to the most that were needed while waiting."""
    low_since = now if state.low_since is None else state.low_since
    peak = max(need, state.peak)
    quiet_since = low_since if peak else max(low_since, load.last_request or low_since)
    left_s = quiet_since + limits.scale_down_delay_s - now
    if left_s > 0 or peak >= state.replicas:
        reason = f"{need} needed, kept for {max(left_s, 0):.0f} s more"
        return Decision(state.replicas, reason, State(state.replicas, low_since, peak))
    if peak:
        return _settled(peak, f"no more than {peak} needed for {limits.scale_down_delay_s:g} s")
    return _settled(0, f"no request for {limits.scale_down_delay_s:g} s")


def _why_up(load: EndpointLoad, limits: ScalingLimits, need: int, waiting: int) -> str:
    if waiting == 0:
        return f"min_replica is {limits.min_replica}"
    what = f"{load.in_flight} in flight and {load.queued} waiting, {max(limits.concurrency, 1)} at a time on a replica"
    return f"{what}; max_replica is {limits.max_replica}" if need == limits.max_replica else what


def _why_kept(load: EndpointLoad, need: int, low: int) -> str:
    if load.in_flight + load.queued:
        return f"{load.in_flight} in flight and {load.queued} waiting"
    return f"min_replica is {low}" if need else "no request"


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
            load = self._loads.endpoint(endpoint.name, at)
        else:
            load = self._loads.revision(endpoint.name, revision, at, is_first=revision == endpoint.serving)
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
