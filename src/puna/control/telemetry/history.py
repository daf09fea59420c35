"""The last half hour of every endpoint, in memory of fixed size; and what two revisions answered that share one."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from typing_extensions import TypedDict

from puna.control.domain.records import Snapshot
from puna.control.domain.states import ReplicaState
from puna.control.telemetry.load import Loads
from puna.control.wire import LATENCY, REQUESTS, REVISION_LATENCY, REVISION_REQUESTS, Memories, of, read

Json = dict[str, Any]
EVERY_S = 5.0
POINTS = 360  # half an hour
WINDOW = 60  # of the counts behind the summary: five minutes


class Rates(TypedDict):
    """Figures of the requests in some time."""

    at: float
    requests_per_s: float
    errors_per_s: float
    p50_ms: float | None
    p95_ms: float | None


class Point(Rates):
    """Figures of five seconds."""

    in_flight: int
    queued: int
    replicas: int


@dataclass(frozen=True)
class EndpointCounts:
    """Counts of one endpoint since the gateways started, all of them together."""

    requests: float = 0
    errors: float = 0
    """Replies of 500 and above."""
    bounds_s: tuple[float, ...] = ()
    """Upper ends of the buckets of the time from arrival to the end of the reply."""
    buckets: tuple[float, ...] = ()
    """Requests in each bucket and in all before it."""


def quantile_ms(bounds_s: Sequence[float], counts: Sequence[float], share: float) -> float | None:
    """A quantile from a cumulative histogram, as Prometheus reckons it; None when it is empty."""
    if not counts or counts[-1] <= 0:
        return None
    rank = share * counts[-1]
    index = min(bisect_left(counts, rank), len(bounds_s) - 1)
    low, below = (bounds_s[index - 1], counts[index - 1]) if index else (0.0, 0.0)
    high = bounds_s[index] if bounds_s[index] != float("inf") else low
    inside = counts[index] - below
    return round(1000 * (low + (high - low) * ((rank - below) / inside if inside else 1.0)), 2)


@dataclass
class _Series:
    points: deque[Point] = field(default_factory=lambda: deque(maxlen=POINTS))
    counted: deque[EndpointCounts] = field(default_factory=lambda: deque(maxlen=WINDOW))


class History:
    """Figures over time, one row in `EVERY_S`. Safe to use from many threads."""

    def __init__(
        self, memories: Memories, loads: Loads, snapshot: Callable[[], Snapshot], every_s: float = EVERY_S
    ) -> None:
        """`memories` is what the gateways count; `snapshot` tells which endpoints and replicas there are."""
        self._memories, self._loads, self._snapshot, self._every_s = memories, loads, snapshot, every_s
        self._lock = threading.Lock()
        self._series: dict[str, _Series] = {}

    def run(self, stopped: threading.Event) -> None:
        """Take a row in `every_s` until `stopped`."""
        while not stopped.wait(self._every_s):
            self.take(time.time(), time.monotonic())

    def take(self, now: float, at: float) -> None:
        """Take one row of every endpoint; `at` is the moment on the monotonic clock."""
        now_counted, snapshot = counted(self._memories), self._snapshot()
        ready: dict[str, int] = {}
        for replica in snapshot.replicas:
            if replica.state is ReplicaState.READY:
                ready[replica.endpoint] = ready.get(replica.endpoint, 0) + 1
        names = [endpoint.name for endpoint in snapshot.endpoints]
        with self._lock:
            self._series = {name: self._series.get(name) or _Series() for name in names}
            for name, series in self._series.items():
                load = self._loads.endpoint(name, at)
                latest = now_counted.get(name, EndpointCounts())
                before = series.counted[-1] if series.counted else latest
                point = _point(now, before, latest)
                here = ready.get(name, 0)
                series.points.append({**point, "in_flight": load.in_flight, "queued": load.queued, "replicas": here})
                series.counted.append(before if before == latest else latest)  # one object for as long as nothing comes

    def points(self, endpoint: str) -> list[Point]:
        """An endpoint's rows, oldest first."""
        with self._lock:
            series = self._series.get(endpoint)
            return list(series.points) if series else []

    def summary(self, endpoint: str) -> Json:
        """The last five minutes in one row, and the requests since the gateways started."""
        with self._lock:
            series = self._series.get(endpoint)
            rows = list(series.counted) if series else []
        if not rows:
            return {"requests": 0, "requests_per_s": 0.0, "errors": 0, "p50_ms": None, "p95_ms": None}
        first, last = rows[0], rows[-1]
        seconds = max(len(rows) - 1, 1) * EVERY_S
        point = _point(0, first, last, seconds)
        return {
            "requests": int(last.requests),
            "requests_per_s": point["requests_per_s"],
            "errors": int(last.errors),
            "p50_ms": point["p50_ms"],
            "p95_ms": point["p95_ms"],
        }


def _point(at: float, before: EndpointCounts, latest: EndpointCounts, seconds: float = EVERY_S) -> Rates:
    # Gateways that started anew count from 0 again.
    fresh = latest.requests < before.requests or len(before.buckets) != len(latest.buckets)
    base = EndpointCounts(buckets=(0.0,) * len(latest.buckets)) if fresh else before
    counts = [b - a for a, b in zip(base.buckets, latest.buckets, strict=True)]
    return {
        "at": at,
        "requests_per_s": round((latest.requests - base.requests) / seconds, 3),
        "errors_per_s": round((latest.errors - base.errors) / seconds, 3),
        "p50_ms": quantile_ms(latest.bounds_s, counts, 0.5),
        "p95_ms": quantile_ms(latest.bounds_s, counts, 0.95),
    }


def counted(memories: Memories) -> dict[str, EndpointCounts]:
    """Counts of all gateways together, by endpoint."""
    series = read(memories)
    requests: dict[str, float] = {}
    errors: dict[str, float] = {}
    for (endpoint, status), values in of(series, REQUESTS):
        requests[endpoint] = requests.get(endpoint, 0) + values[0]
        errors[endpoint] = errors.get(endpoint, 0) + (values[0] if status >= "500" else 0)
    bounds, buckets = (*LATENCY.bounds_s, float("inf")), dict(of(series, LATENCY))
    return {
        endpoint: EndpointCounts(total, errors[endpoint], bounds, tuple(accumulate(buckets.get((endpoint,), ())[:-1])))
        for endpoint, total in requests.items()
    }


def split_counts(memories: Memories, endpoint: str, revision: int) -> Json:
    """Requests, errors (replies of 500 and above) and latencies of a revision, since the gateways started.

    What it answered while it served alone is not counted: both are to be judged by the same time and the same callers.
    """
    series, mine = read(memories), (endpoint, str(revision))
    counts = {key[2]: int(values[0]) for key, values in of(series, REVISION_REQUESTS) if key[:2] == mine}
    buckets = series.get((REVISION_LATENCY.name, *mine), ())[:-1]
    bounds, cumulative = (*REVISION_LATENCY.bounds_s, float("inf")), tuple(accumulate(buckets))
    return {
        "requests": sum(counts.values()),
        "errors": sum(count for status, count in counts.items() if status >= "500"),
        "p50_ms": quantile_ms(bounds, cumulative, 0.5),
        "p95_ms": quantile_ms(bounds, cumulative, 0.95),
    }
