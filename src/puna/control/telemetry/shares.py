"""What each of two revisions answered while they shared an endpoint's requests, from what the gateways count."""

from __future__ import annotations

from itertools import accumulate

from typing_extensions import TypedDict

from puna.control.telemetry.history import quantile_ms
from puna.control.wire import REVISION_LATENCY, REVISION_REQUESTS, Memories, of, read


class Answered(TypedDict):
    """What one of two revisions answered since they share the requests."""

    requests: int
    errors: int
    """Replies of 500 and above."""
    p50_ms: float | None
    p95_ms: float | None


def figures(memories: Memories, endpoint: str, revision: int) -> Answered:
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
        "p50_ms": _rounded(quantile_ms(bounds, cumulative, 0.5)),
        "p95_ms": _rounded(quantile_ms(bounds, cumulative, 0.95)),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
