"""What `/metrics` tells Prometheus: requests, what they waited for by tier, queues and replicas, for all gateways."""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from puna.serve.routes_table import ASLEEP, AWAKE, Table

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# From a no-op app to a long generation; 180 s is the default inference_time.
LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180, 600)
# From a no-op app's turn of the loop to a cold start from a slow disk; waking is between 0.1 and 10 s.
WAIT_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)
COLD_BUCKETS_S = (0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 900)
WAITS = (
    ("queue", "Waits for a replica with a free place."),
    ("wake", "Waits, on a replica that slept, until it was awake."),
    ("infer", "From the sending to a replica to the end of its reply, waking excepted."),
    ("first_byte", "From arrival to the first byte of the reply, waiting included."),
)


class Waited(Protocol):
    """An answered request as the histograms see it: a call."""

    tier: str
    queued_s: float
    wake_s: float
    infer_s: float
    sent: float
    first_byte: float
    split: int


class Batched(Histogram):
    """A histogram that takes many observations at a time: each alone costs 2 us in the file that gateways share."""

    def add(self, counts: Sequence[int], total: float) -> None:
        """So many observations in each bucket, their sum being `total`."""
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._sum.inc(total)


class Tally:
    """Observations for one child of a histogram that it has not been given yet."""

    def __init__(self, child: Batched, bounds: Sequence[float]) -> None:
        self._child, self._bounds = child, bounds
        self._counts, self._total, self._is_empty = [0] * (len(bounds) + 1), 0.0, True

    def observe(self, seconds: float) -> None:
        """One more."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._total += seconds
        self._is_empty = False

    def flush(self) -> None:
        """Give them on."""
        if not self._is_empty:
            self._child.add(self._counts, self._total)
            self._counts, self._total, self._is_empty = [0] * len(self._counts), 0.0, True


class Metrics:
    """The gateway's figures, in a registry of their own.

    With PROMETHEUS_MULTIPROC_DIR in the environment (`puna up` sets it) the gateways share figures through
    that folder and each can answer for all; counts then survive a gateway that was killed.
    """

    def __init__(self) -> None:
        self._folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")
        if self._folder:
            _forget_the_dead(Path(self._folder))
        self._registry = CollectorRegistry()
        registry = self._registry
        self._requests = Counter("puna_requests", "Requests answered.", ["endpoint", "status"], registry=registry)
        self._latency = Batched(
            "puna_request_seconds",
            "From arrival to the end of the reply, waiting included.",
            ["endpoint"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._of_two = Counter(
            "puna_revision_requests",
            "Requests answered while two revisions shared an endpoint.",
            ["endpoint", "revision", "status"],
            registry=registry,
        )
        self._latency_of_two = Batched(
            "puna_revision_request_seconds",
            "As puna_request_seconds, by revision, while two shared an endpoint.",
            ["endpoint", "revision"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._waits = [
            Batched(f"puna_{name}_seconds", text, ["endpoint", "tier"], buckets=WAIT_BUCKETS_S, registry=registry)
            for name, text in WAITS
        ]
        self._cold = Histogram(
            "puna_cold_wait_seconds",
            "Waits of requests that found no replica ready.",
            ["endpoint"],
            buckets=COLD_BUCKETS_S,
            registry=registry,
        )
        mode: Any = "livesum"
        self._queue = Gauge(
            "puna_queue", "Requests waiting for a replica.", ["endpoint"], registry=registry, multiprocess_mode=mode
        )
        self._in_flight = Gauge(
            "puna_in_flight", "Requests that replicas have.", ["endpoint"], registry=registry, multiprocess_mode=mode
        )
        mode = "livemax"  # all gateways have the same table
        self._replicas = Gauge(
            "puna_replicas", "Ready replicas.", ["endpoint", "tier"], registry=registry, multiprocess_mode=mode
        )
        self._requests_of: dict[tuple[str, int], Any] = {}
        self._latency_of: dict[str, Tally] = {}
        self._latency_by: dict[tuple[str, int], Tally] = {}
        self._waits_of: dict[tuple[str, str], list[Tally]] = {}
        self._endpoints: set[str] = set()

    def answered(self, endpoint: str, status: int, call: Waited, began: float) -> None:
        """A request that came at `began`, on `time.perf_counter`'s clock, has had its reply; 499: its client left."""
        now = time.perf_counter()
        child = self._requests_of.get((endpoint, status))
        if child is None:
            child = self._requests_of[endpoint, status] = self._requests.labels(endpoint, str(status))
            self._latency_of.setdefault(endpoint, Tally(self._latency.labels(endpoint), LATENCY_BUCKETS_S))
        child.inc()
        self._latency_of[endpoint].observe(now - began)
        if call.split:
            self._answered_by(endpoint, call.split, status, now - began)
        if call.tier:
            tallies = self._waits_of.get((endpoint, call.tier)) or self._new_waits(endpoint, call.tier)
            queue, wake, infer, first_byte = tallies
            queue.observe(call.queued_s)
            if call.sent:  # a replica had it
                if call.wake_s:
                    wake.observe(call.wake_s)
                infer.observe(call.infer_s)
                first_byte.observe((call.first_byte or now) - began)

    def _answered_by(self, endpoint: str, revision: int, status: int, seconds: float) -> None:
        """The same, of one of two revisions that share an endpoint."""
        self._of_two.labels(endpoint, str(revision), str(status)).inc()
        tally = self._latency_by.get((endpoint, revision))
        if tally is None:
            child = self._latency_of_two.labels(endpoint, str(revision))
            tally = self._latency_by[endpoint, revision] = Tally(child, LATENCY_BUCKETS_S)
        tally.observe(seconds)

    def _new_waits(self, endpoint: str, tier: str) -> list[Tally]:
        tallies = [Tally(histogram.labels(endpoint, tier), WAIT_BUCKETS_S) for histogram in self._waits]
        self._waits_of[endpoint, tier] = tallies
        return tallies

    def flush(self) -> None:
        """Write down what was observed since the last time."""
        for tally in (*self._latency_of.values(), *self._latency_by.values()):
            tally.flush()
        for tallies in self._waits_of.values():
            for tally in tallies:
                tally.flush()

    def replicas(self, table: Table) -> None:
        """Take the figures of a new route table."""
        for name in self._endpoints | set(table.endpoints):
            route = table.endpoints.get(name)
            both = [one for one in (route, route.split) if one] if route else []
            tiers = [replica.tier for one in both for replica in one.replicas]
            for tier in (AWAKE, ASLEEP):
                self._replicas.labels(name, tier).set(tiers.count(tier))
        self._endpoints = set(table.endpoints)

    def cold_wait(self, endpoint: str, seconds: float) -> None:
        """One request waited while no replica was ready."""
        self._cold.labels(endpoint).observe(seconds)

    def loads(self, loads: Mapping[str, Mapping[str, Any]]) -> None:
        """Take the figures of a load report."""
        for endpoint, load in loads.items():
            self._queue.labels(endpoint).set(load["queued"])
            self._in_flight.labels(endpoint).set(load["in_flight"])

    def text(self) -> bytes:
        """Prometheus' text format."""
        self.flush()
        return self.written()

    def written(self) -> bytes:
        """The same of what has been flushed; from any thread: with many endpoints it takes a second."""
        if not self._folder:
            return generate_latest(self._registry)
        shared = CollectorRegistry()
        MultiProcessCollector(shared, self._folder)  # type: ignore[no-untyped-call]
        return generate_latest(shared)


def _forget_the_dead(folder: Path) -> None:
    """Drop what a killed gateway had in flight and waiting; its counts stay."""
    for file in folder.glob("gauge_live*.db"):
        pid = file.stem.rpartition("_")[2]
        if not Path("/proc", pid).exists():
            mark_process_dead(int(pid), str(folder))  # type: ignore[no-untyped-call]
