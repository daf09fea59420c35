"""What `/metrics` tells Prometheus: requests, latency, queues and cold waits, summed over all gateways."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# From a no-op app to a long generation; 180 s is the default inference_time.
LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180, 600)
COLD_BUCKETS_S = (0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 900)


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
        self._latency = Histogram(
            "puna_request_seconds",
            "From arrival to the end of the reply, waiting included.",
            ["endpoint"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
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
        self._requests_of: dict[tuple[str, int], Any] = {}
        self._latency_of: dict[str, Any] = {}

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """One request has had its reply; 499: its client went away first."""
        child = self._requests_of.get((endpoint, status))
        if child is None:
            child = self._requests_of[endpoint, status] = self._requests.labels(endpoint, str(status))
            self._latency_of[endpoint] = self._latency.labels(endpoint)
        child.inc()
        self._latency_of[endpoint].observe(seconds)

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
