"""Placement on GPU slots (1.0 a whole GPU, 0.5 a half), and which replicas sleep, wake and make room. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from puna.backends.base import Capacity, Observed
from puna.control.domain.records import Endpoint, Replica, Revision
from puna.control.domain.states import ReplicaState

SETTLE_S = 1.0
"""Gateways report twice a second: that nothing is in flight is believed of a replica that has been ready so long."""


class SleepPolicy:
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
            needed += self.to_wake(asleep, endpoint.wanted_of(revision) - len(awake))
        return needed

    def leaves(self, replica: Replica) -> bool:
        """It goes by this plan; False when that was said before."""
        if replica.id in self.left:
            return False
        self.left.add(replica.id)
        self.leaving.append(replica)
        self.evictable = [r for r in self.evictable if r.id != replica.id]
        return True

    def to_wake(self, asleep: Sequence[Replica], missing: int) -> list[Replica]:
        """Which to wake for so many that are missing: those that wake already, then the last to fall asleep."""
        return sorted(asleep, key=lambda r: (not self.in_flight.get(r.id), -r.since))[: max(0, missing)]


def may_sleep(
    endpoint: Endpoint, replica: Replica, observed: Mapping[str, Observed], in_flight: Mapping[str, int], now: float
) -> bool | None:
    """True when a replica that is not wanted awake may sleep instead of going; None: it may, but is not idle yet."""
    seen = observed.get(replica.id)
    is_serving = replica.state is ReplicaState.READY and replica.revision in endpoint.shares and endpoint.active
    if seen is None or not is_serving or not seen.can_sleep or endpoint.settings.evict_after_s <= 0:
        return False
    if in_flight.get(replica.id, 0) or now - replica.since < SETTLE_S:
        return None
    return True


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


CPU = ""
NEAR_ZERO = 1e-6
# Weights are counted as if an app loaded them in 4 bits: the least that any app does. What does not fit so never fits.
LEAST_BITS_SHARE = 0.25


class Placement:
    """A machine's GPUs and what is taken of them; `allocate` books, so that one plan does not give a slot twice."""

    def __init__(
        self, capacity: Capacity, replicas: Iterable[Replica], reserved: Iterable[tuple[str, float]] = ()
    ) -> None:
        self._capacity = capacity
        self._free = {str(gpu.index): 1.0 for gpu in capacity.gpus}
        for gpu, share in [*((r.gpu, r.fraction) for r in replicas), *reserved]:
            if gpu in self._free:
                self._free[gpu] -= share

    def impossible(self, revision: Revision) -> str:
        """The reason why this machine can never run a revision, or an empty text."""
        least = int(revision.weights_bytes * LEAST_BITS_SHARE)
        if self._on_gpu(revision):
            share = revision.settings.gpu_fraction
            largest = max(gpu.memory_bytes for gpu in self._capacity.gpus) * share
            what = "the largest GPU" if share == 1.0 else "half of the largest GPU"
            if largest and least > largest:
                return f"its models need at least {_gib(least)} even in 4 bits, {what} here has {_gib(largest)}"
        elif self._capacity.memory_bytes and least > self._capacity.memory_bytes:
            memory = _gib(self._capacity.memory_bytes)
            return f"its models need at least {_gib(least)} even in 4 bits, this machine has {memory} of memory"
        return ""

    def allocate(self, revision: Revision) -> str | None:
        """Book a place: the GPU's index, an empty text for the CPU, None when everything is taken.

        The fullest GPU that still has room: halves share a GPU, so that whole ones stay free.
        """
        if not self._on_gpu(revision):
            return CPU
        share = revision.settings.gpu_fraction
        fitting = [(free, index) for index, free in self._free.items() if free + NEAR_ZERO >= share]
        if not fitting:
            return None
        _, index = min(fitting)
        self._free[index] -= share
        return index

    def to_evict(self, share: float, sleep_policy: SleepPolicy) -> list[Replica] | None:
        """Which replicas that sleep must go so that `allocate` will find so much of a GPU.

        Empty when what leaves already is enough; None when that and all that sleep are not.
        """
        return to_evict(share - NEAR_ZERO, self._free, sleep_policy.leaving, sleep_policy.evictable)

    def shortage(self, revision: Revision) -> str:
        """The shortage in words, when `allocate` gave None."""
        wanted = "a whole GPU" if revision.settings.gpu_fraction == 1.0 else "half a GPU"
        free = ", ".join(f"GPU {index} has {max(free, 0):.2g} free" for index, free in sorted(self._free.items()))
        return f"it needs {wanted}, and {free}"

    def _on_gpu(self, revision: Revision) -> bool:
        # A named GPU type is what the author had, not a condition: without any GPU the app runs on the CPU.
        return revision.settings.needs_gpu and bool(self._free)


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
