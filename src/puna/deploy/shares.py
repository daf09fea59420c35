"""What each of two revisions answered while they shared an endpoint's requests, from what the gateways count."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from prometheus_client.mmap_dict import MmapedDict

from puna.deploy.history import quantile_ms
from puna.home import Home

REQUESTS, BUCKETS = "puna_revision_requests_total", "puna_revision_request_seconds_bucket"
WANTED = '["puna_revision_request'
"""How the keys of these samples begin, among all that lie in the gateways' files."""


@dataclass
class _Counts:
    requests: float = 0
    errors: float = 0
    buckets: dict[float, float] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        edges = sorted(self.buckets.items())
        bounds, counts = [edge for edge, _ in edges], list(accumulate(count for _, count in edges))
        return {
            "requests": int(self.requests),
            "errors": int(self.errors),
            "p50_ms": _rounded(quantile_ms(bounds, counts, 0.5)),
            "p95_ms": _rounded(quantile_ms(bounds, counts, 0.95)),
        }


def figures(home: Home, endpoint: str, revision: int) -> dict[str, Any]:
    """Requests, errors (replies of 500 and above) and latencies of a revision, since the gateways started.

    What it answered while it served alone is not counted: both are to be judged by the same time and the same callers.
    """
    counts = _Counts()
    for name, labels, value in _samples(home.metrics):
        if labels["endpoint"] != endpoint or labels["revision"] != str(revision):
            continue
        if name == REQUESTS:
            counts.requests += value
            counts.errors += value if labels["status"] >= "500" else 0
        elif name == BUCKETS:
            bound = float(labels["le"])
            counts.buckets[bound] = counts.buckets.get(bound, 0) + value
    return counts.told()


def _samples(folder: Path) -> Iterator[tuple[str, dict[str, str], float]]:
    """The samples of two revisions, of all gateways; a histogram's file has what lies in a bucket alone."""
    for path in (*folder.glob("counter_*.db"), *folder.glob("histogram_*.db")):
        try:
            for key, value, *_ in MmapedDict.read_all_values_from_file(str(path)):  # type: ignore[no-untyped-call]
                if key.startswith(WANTED):
                    _, name, labels, _ = json.loads(key)
                    yield name, labels, value
        except FileNotFoundError:  # a gateway has begun anew
            continue


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
