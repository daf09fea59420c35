"""Which replica takes a request: the one with the fewest outstanding, among those with a free place."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol, TypeVar


class Candidate(Protocol):
    """A replica as routing sees it."""

    @property
    def replica_id(self) -> str:
        """Its name."""

    @property
    def usable(self) -> bool:
        """Listed in the route table and connected."""

    @property
    def places(self) -> int:
        """Requests that may be out on it at a time."""

    @property
    def outstanding(self) -> int:
        """Requests that it has now, those included whose client has gone but whose `infer` still runs."""


C = TypeVar("C", bound=Candidate)


def choose(candidates: Iterable[C], tried: Collection[str] = ()) -> C | None:
    """The least loaded usable replica that has a place free and was not tried; None: wait."""
    best: C | None = None
    for candidate in candidates:
        outstanding = candidate.outstanding
        if not candidate.usable or outstanding >= candidate.places or candidate.replica_id in tried:
            continue
        if outstanding == 0:
            return candidate
        if best is None or outstanding < best.outstanding:
            best = candidate
    return best
