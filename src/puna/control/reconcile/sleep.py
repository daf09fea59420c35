"""Which replicas sleep, wake and make room: the part of a plan about those that sleep. Pure, time is an argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from puna.backends.base import Observed
from puna.control.domain.records import Endpoint, Replica
from puna.control.domain.states import ReplicaState

SETTLE_S = 1.0
"""Gateways report twice a second: that nothing is in flight is believed of a replica that has been ready so long."""


class Sleepers:
    """Across endpoints, within one plan: who sleeps and may be ended for others' sake, and who leaves anyway."""

    def __init__(
        self, replicas: Sequence[Replica], endpoints: Sequence[Endpoint], in_flight: Mapping[str, int] | None = None
    ) -> None:
        """`in_flight`: requests by replica; one that sleeps and has some is waking."""
        self.in_flight = in_flight or {}
        needed = {r.id for endpoint in endpoints for r in self._needed(endpoint, replicas)}
        self.evictable = [
            r
            for r in replicas
            if r.state is ReplicaState.ASLEEP and r.id not in needed and not self.in_flight.get(r.id)
        ]
        self.leaving = [r for r in replicas if r.state in (ReplicaState.DRAINING, ReplicaState.STOPPING)]
        self.left: set[str] = set()
        """Ids of those that this plan ends."""

    def _needed(self, endpoint: Endpoint, replicas: Sequence[Replica]) -> list[Replica]:
        """Those that the endpoint's own desired replicas wake."""
        needed = []
        for revision in endpoint.shares:
            mine = [r for r in replicas if (r.endpoint, r.revision) == (endpoint.name, revision)]
            awake = [r for r in mine if r.state in (ReplicaState.STARTING, ReplicaState.READY)]
            asleep = [r for r in mine if r.state is ReplicaState.ASLEEP]
            needed += self.to_rouse(asleep, endpoint.wanted_of(revision) - len(awake))
        return needed

    def leaves(self, replica: Replica) -> bool:
        """It goes by this plan; False when that was said before."""
        if replica.id in self.left:
            return False
        self.left.add(replica.id)
        self.leaving.append(replica)
        self.evictable = [r for r in self.evictable if r.id != replica.id]
        return True

    def to_rouse(self, asleep: Sequence[Replica], missing: int) -> list[Replica]:
        """Which to wake for so many that are missing: those that wake already, then the last to fall asleep."""
        return sorted(asleep, key=lambda r: (not self.in_flight.get(r.id), -r.since))[: max(0, missing)]


def may_sleep(
    endpoint: Endpoint, replica: Replica, observed: Mapping[str, Observed], in_flight: Mapping[str, int], now: float
) -> bool | None:
    """Whether a replica that is not wanted awake may sleep instead of going; None: it may, but is not idle yet."""
    seen = observed.get(replica.id)
    is_serving = replica.state is ReplicaState.READY and replica.revision in endpoint.shares and endpoint.active
    if seen is None or not is_serving or not seen.can_sleep or endpoint.settings.evict_after_s <= 0:
        return False
    if in_flight.get(replica.id, 0) or now - replica.since < SETTLE_S:
        return None
    return True


def overslept(endpoint: Endpoint, asleep: Sequence[Replica], now: float) -> list[Replica]:
    """Those that have slept for `evict_after_s`."""
    return [r for r in asleep if now - r.since >= endpoint.settings.evict_after_s]


def too_many(asleep: Sequence[Replica], places: int) -> list[Replica]:
    """Those over the number that may sleep, the longest asleep first."""
    return sorted(asleep, key=lambda r: r.since)[: max(0, len(asleep) - places)]


def to_evict(
    share: float, free: Mapping[str, float], leaving: Sequence[Replica], asleep: Sequence[Replica]
) -> list[Replica] | None:
    """Which replicas that sleep must go so that `share` of one GPU gets free: the least recently used, and no more.

    Empty when what already leaves will do; None when all together would not. `free` is by GPU.
    """
    best: list[Replica] | None = None
    for gpu, left in free.items():
        there = left + sum(r.fraction for r in leaving if r.gpu == gpu)
        chosen: list[Replica] = []
        for replica in sorted((r for r in asleep if r.gpu == gpu), key=lambda r: r.since):
            if there >= share:
                break
            chosen.append(replica)
            there += replica.fraction
        if there < share:
            continue
        if best is None or _cost(chosen) < _cost(best):
            best = chosen
    return best


def _cost(chosen: Sequence[Replica]) -> tuple[int, float]:
    """Fewer first; of as few, those that have slept longest."""
    return len(chosen), max((r.since for r in chosen), default=0.0)
