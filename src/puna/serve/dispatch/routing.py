"""Which replica takes a request: the least loaded one, or, while the load is even, the one that knows its beginning.

A replica that is awake comes first. One that sleeps is woken only when no other has a place, and then all that wait
go to it until it is full: two half-empty engines cost the memory of two.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from typing import Protocol, TypeVar

PREFIX_BYTES = (4096, 1024, 256)
"""How much of a body is compared, the longest first: a long system prompt, a short one, a question with its frame."""
REMEMBERED = 4096
"""Beginnings that one endpoint remembers, three of a long body; some 0.5 MB."""
EVEN = 2
"""So many requests more than the least loaded replica has are still even. A known beginning saves its share of the
prefill, which is as long as many tokens; two more rows in a batch that is under half full cost each token little, since
it is the weights that are read for it. Beyond that a popular prompt would pile up where others are idle."""


class Candidate(Protocol):
    """A replica as routing sees it."""

    @property
    def replica_id(self) -> str:
        """Its name."""

    @property
    def usable(self) -> bool:
        """Listed in the route table and connected."""

    @property
    def asleep(self) -> bool:
        """A request that comes must wake it first."""

    @property
    def places(self) -> int:
        """Requests that may be out on it at a time."""

    @property
    def outstanding(self) -> int:
        """Requests that it has now, those included whose client has gone but whose `infer` still runs."""


C = TypeVar("C", bound=Candidate)


def choose(candidates: Iterable[C], tried: Collection[str] = ()) -> C | None:
    """The least loaded awake replica that has a place free and was not tried, else the one to wake; None: wait."""
    best: C | None = None
    sleeper: C | None = None  # the one that wakes already, if one does
    for candidate in candidates:
        if not candidate.usable or (tried and candidate.replica_id in tried):
            continue
        if candidate.asleep:
            if sleeper is None or candidate.outstanding > sleeper.outstanding:
                sleeper = candidate
            continue
        outstanding = candidate.outstanding
        if outstanding >= candidate.places:
            continue
        if outstanding == 0:
            return candidate
        if best is None or outstanding < best.outstanding:
            best = candidate
    if best is None and sleeper is not None and sleeper.outstanding < sleeper.places:
        return sleeper
    return best


def least_loaded(candidates: Iterable[C], tried: Collection[str] = ()) -> C | None:
    """The replica that is the soonest without requests, full or not, an awake one first; None: there is none."""
    usable = [c for c in candidates if c.usable and c.replica_id not in tried]
    return min(usable, key=lambda c: (c.asleep, c.outstanding), default=None)


class Affinity:
    """Which replica last served the beginning of a body; the beginnings not seen for longest are forgotten."""

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        self._served: OrderedDict[int, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._served)

    def served(self, beginnings: Iterable[int], replica_id: str) -> None:
        """That replica has a request with these beginnings."""
        for beginning in beginnings:
            self._served[beginning] = replica_id
            self._served.move_to_end(beginning)
        while len(self._served) > self._remembered:
            self._served.popitem(last=False)

    def choose(self, candidates: Collection[C], beginnings: Iterable[int], tried: Collection[str] = ()) -> C | None:
        """As `choose` does, but among replicas that are about equally busy the one that knows the most of the body."""
        best = choose(candidates, tried)
        if best is None or best.asleep:
            return best
        limit = best.outstanding + EVEN
        even = {
            c.replica_id: c
            for c in candidates
            if c.usable and not c.asleep and c.outstanding <= min(limit, (c.places - 1) // 2)
        }
        for beginning in beginnings:
            known = even.get(self._served.get(beginning, ""))
            if known is not None and known.replica_id not in tried:
                return known
        return best


def beginnings(body: bytes) -> tuple[int, ...]:
    """Hashes of the body's beginnings, the longest first; none of a short body."""
    # Python's own hash: keyed anew in each process, so nobody can make two prompts collide, and fast.
    return tuple(hash(body[:length]) for length in PREFIX_BYTES if len(body) >= length)
