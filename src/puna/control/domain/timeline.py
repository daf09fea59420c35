"""Moments as they are stored (Unix seconds of the wall clock), put on a line of time that no setting of a clock bends.

What is stored is for people to read. What is decided by it, how long ago a replica died or began to drain, is reckoned
on the monotonic clock: a moment keeps the place that it had when it was first looked at, so a clock that is set by
hours in either direction neither ends a pause nor makes one longer. A moment that lies ahead counts as now.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable

from puna.control.domain.records import Replica, Revision, Snapshot

LOG = logging.getLogger("puna.timeline")
JUMP_S = 1.0
"""A clock that is more than this away from where it should be was set; less is its drift."""
ROUNDING_S = 1e-4
MOST_MOMENTS, MOST_SPANS = 50_000, 100


@dataclasses.dataclass
class _Span:
    """A while of one setting of the wall clock, in seconds before the monotonic one.

    It was set to that and to another at some time between two looks: spans overlap.
    """

    begin: float
    end: float
    ahead: float


class Timeline:
    """The wall clock's moments in seconds of the monotonic clock. Safe to use from many threads."""

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        """It begins now."""
        self._wall, self._steady = wall, steady
        self._lock = threading.Lock()
        self._known: dict[float, float] = {}  # the least recently used first
        self._looked = steady()
        self._spans = [_Span(float("-inf"), float("inf"), wall() - self._looked)]
        self._bent: tuple[Snapshot, Snapshot] | None = None

    def now(self) -> float:
        """This moment."""
        with self._lock:
            return self._look()

    def of(self, moment: float) -> float:
        """The place of a stored moment."""
        with self._lock:
            now = self._look()
            found = self._known.pop(moment, None)
            if found is None:
                found = self._place(moment, now)
                if len(self._known) >= MOST_MOMENTS:
                    del self._known[next(iter(self._known))]
            self._known[moment] = found
            return found

    def between(self, since: float, until: float) -> float:
        """Seconds from one stored moment to another."""
        return max(0.0, self.of(until) - self.of(since))

    def age_s(self, moment: float) -> float:
        """Seconds since a stored moment."""
        return max(0.0, self.now() - self.of(moment))

    def snapshot(self, stored: Snapshot) -> Snapshot:
        """The same with every moment that decides something on this line; from one thread."""
        if self._bent is None or self._bent[0] is not stored:
            revisions = tuple(map(self._revision, stored.revisions))
            replicas = tuple(map(self._replica, stored.replicas))
            self._bent = stored, dataclasses.replace(stored, revisions=revisions, replicas=replicas)
        return self._bent[1]

    def _revision(self, revision: Revision) -> Revision:
        since, failed_at = self.of(revision.since), self.of(revision.failed_at)
        return dataclasses.replace(revision, created=self.of(revision.created), since=since, failed_at=failed_at)

    def _replica(self, replica: Replica) -> Replica:
        since = self.of(replica.since)
        deadline = since + (replica.deadline - replica.since)  # both were written at one moment
        return dataclasses.replace(replica, created=self.of(replica.created), since=since, deadline=deadline)

    def _look(self) -> float:
        """Now; and whether the clock has been set since the last look."""
        now, span = self._steady(), self._spans[-1]
        ahead = self._wall() - now
        if abs(ahead - span.ahead) <= JUMP_S:
            span.ahead = ahead
        else:
            way = "forward" if ahead > span.ahead else "back"
            LOG.warning("the clock was set %s by %.0f s; nothing is decided by that", way, abs(ahead - span.ahead))
            span.end = now
            self._spans = [*self._spans[-MOST_SPANS:], _Span(self._looked, float("inf"), ahead)]
        self._looked = now
        return now

    def _place(self, moment: float, now: float) -> float:
        """By the clock as it was set then: the latest setting under which that moment came."""
        for span in reversed(self._spans):
            at = moment - span.ahead
            if span.begin - ROUNDING_S <= at <= min(span.end, now) + ROUNDING_S:
                return min(at, now)
        return min(moment - self._spans[-1].ahead, now)
