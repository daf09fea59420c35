"""Which replicas sleep, wake and make room: the part of a plan about those that sleep. Pure, time is an argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from puna.backends.base import Observed
from puna.deploy.records import Endpoint, Replica
from puna.deploy.states import ReplicaState

SETTLE_S = 1.0
"""Gateways report twice a second: that nothing is in flight is believed of a replica that has been ready so long."""


def may_sleep(
    endpoint: Endpoint, replica: Replica, observed: Mapping[str, Observed], in_flight: Mapping[str, int], now: float
) -> bool | None:
    """Whether a replica that is not wanted awake may sleep instead of going; None: it may, but is not idle yet."""
    seen = observed.get(replica.id)
    is_serving = replica.state is ReplicaState.READY and replica.revision == endpoint.serving and endpoint.active
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


def to_rouse(asleep: Sequence[Replica], missing: int) -> list[Replica]:
    """Which to wake for so many that are missing: the last to fall asleep first."""
    return sorted(asleep, key=lambda r: -r.since)[: max(0, missing)]


def to_evict(
    share: float, free: Mapping[str, float], leaving: Sequence[Replica], asleep: Sequence[Replica]
) -> list[Replica]:
    """Which replicas that sleep must go so that `share` of one GPU gets free: the least recently used, and no more.

    None when what already leaves will do, or when all together would not. `free` is by GPU.
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
    return best or []


def _cost(chosen: Sequence[Replica]) -> tuple[int, float]:
    """Fewer first; of as few, those that have slept longest."""
    return len(chosen), max((r.since for r in chosen), default=0.0)
