"""The last half hour of every endpoint in figures, from what the gateways count: kept in memory, of fixed size."""

from __future__ import annotations

import json
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from prometheus_client.mmap_dict import MmapedDict

from puna.deploy.load import Loads
from puna.deploy.records import Snapshot
from puna.deploy.states import ReplicaState
from puna.home import Home

Json = dict[str, Any]
EVERY_S = 5.0
POINTS = 360  # half an hour
WINDOW = 60  # of the counts behind the summary: five minutes
REQUESTS, BUCKETS = "puna_requests_total", "puna_request_seconds_bucket"
WANTED = ('["puna_requests"', '["puna_request_seconds"')
"""How the keys of their samples begin."""


@dataclass(frozen=True)
class Counted:
    """What the gateways have counted of one endpoint since they started, all of them together."""

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
    return 1000 * (low + (high - low) * ((rank - below) / inside if inside else 1.0))


@dataclass
class _Series:
    points: deque[Json] = field(default_factory=lambda: deque(maxlen=POINTS))
    counted: deque[Counted] = field(default_factory=lambda: deque(maxlen=WINDOW))


class History:
    """Figures over time, one row in `EVERY_S`. Safe to use from many threads."""

    def __init__(self, home: Home, loads: Loads, snapshot: Callable[[], Snapshot]) -> None:
        """`snapshot` tells which endpoints and replicas there are."""
        self._home, self._loads, self._snapshot = home, loads, snapshot
        self._lock = threading.Lock()
        self._series: dict[str, _Series] = {}

    def run(self, stopped: threading.Event) -> None:
        """Take a row in `EVERY_S` until `stopped`."""
        while not stopped.wait(EVERY_S):
            self.take(time.time())

    def take(self, now: float) -> None:
        """Take one row of every endpoint."""
        counted, snapshot = read(self._home), self._snapshot()
        ready: dict[str, int] = {}
        for replica in snapshot.replicas:
            if replica.state is ReplicaState.READY:
                ready[replica.endpoint] = ready.get(replica.endpoint, 0) + 1
        names = [endpoint.name for endpoint in snapshot.endpoints]
        with self._lock:
            self._series = {name: self._series.get(name) or _Series() for name in names}
            for name, series in self._series.items():
                load = self._loads.endpoint(name, now)
                latest = counted.get(name, Counted())
                before = series.counted[-1] if series.counted else latest
                point = _point(now, before, latest)
                point |= {"in_flight": load.in_flight, "queued": load.queued, "replicas": ready.get(name, 0)}
                series.points.append(point)
                series.counted.append(before if before == latest else latest)  # one object for as long as nothing comes

    def points(self, endpoint: str) -> list[Json]:
        """An endpoint's rows, oldest first."""
        with self._lock:
            series = self._series.get(endpoint)
            return list(series.points) if series else []

    def summary(self, endpoint: str) -> Json:
        """The last five minutes in one row, and the requests since the gateways started."""
        with self._lock:
            series = self._series.get(endpoint)
            counted = list(series.counted) if series else []
        if not counted:
            return {"requests": 0, "requests_per_s": 0.0, "errors": 0, "p50_ms": None, "p95_ms": None}
        first, last = counted[0], counted[-1]
        seconds = max(len(counted) - 1, 1) * EVERY_S
        point = _point(0, first, last, seconds)
        return {
            "requests": int(last.requests),
            "requests_per_s": point["requests_per_s"],
            "errors": int(last.errors),
            "p50_ms": point["p50_ms"],
            "p95_ms": point["p95_ms"],
        }


def _point(at: float, before: Counted, latest: Counted, seconds: float = EVERY_S) -> Json:
    # Gateways that started anew count from 0 again.
    fresh = latest.requests < before.requests or len(before.buckets) != len(latest.buckets)
    base = Counted(buckets=(0.0,) * len(latest.buckets)) if fresh else before
    counts = [b - a for a, b in zip(base.buckets, latest.buckets, strict=True)]
    return {
        "at": at,
        "requests_per_s": round((latest.requests - base.requests) / seconds, 3),
        "errors_per_s": round((latest.errors - base.errors) / seconds, 3),
        "p50_ms": _rounded(quantile_ms(latest.bounds_s, counts, 0.5)),
        "p95_ms": _rounded(quantile_ms(latest.bounds_s, counts, 0.95)),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def read(home: Home) -> dict[str, Counted]:
    """What the gateways have counted, by endpoint; from the files that they share.

    Only the samples that are asked for are looked at: prometheus_client's own collector takes 10 ms an endpoint.
    """
    requests: dict[str, float] = {}
    errors: dict[str, float] = {}
    buckets: dict[str, dict[float, float]] = {}
    for name, endpoint, label, value in _samples(home.metrics):
        if name == REQUESTS:
            requests[endpoint] = requests.get(endpoint, 0) + value
            errors[endpoint] = errors.get(endpoint, 0) + (value if label >= "500" else 0)
        else:
            mine = buckets.setdefault(endpoint, {})
            mine[float(label)] = mine.get(float(label), 0) + value
    found = {}
    for endpoint, total in requests.items():
        edges = sorted(buckets.get(endpoint, {}).items())
        counts = tuple(accumulate(count for _, count in edges))  # each file has what lies in a bucket alone
        bounds = tuple(edge for edge, _ in edges)
        found[endpoint] = Counted(total, errors.get(endpoint, 0), bounds, counts)
    return found


def _samples(folder: Path) -> Iterator[tuple[str, str, str, float]]:
    for path in (*folder.glob("counter_*.db"), *folder.glob("histogram_*.db")):
        try:
            for key, value, *_ in MmapedDict.read_all_values_from_file(str(path)):  # type: ignore[no-untyped-call]
                if key.startswith(WANTED) and (sample := _sample(key)) is not None:
                    yield (*sample, value)
        except FileNotFoundError:  # a gateway has begun anew
            continue


@lru_cache(maxsize=50_000)
def _sample(key: str) -> tuple[str, str, str] | None:
    """`(sample, endpoint, status or upper bound)` of what prometheus_client writes as JSON before each number."""
    _, name, labels, _ = json.loads(key)
    if name == REQUESTS:
        return name, labels["endpoint"], labels["status"]
    return (name, labels["endpoint"], labels["le"]) if name == BUCKETS else None
