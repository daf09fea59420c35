"""Figures over time: quantiles from buckets, rates from counts, and gateways that start to count anew."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from prometheus_client.multiprocess import MultiProcessCollector

from puna.deploy.history import Counted, _point, quantile_ms, read
from puna.home import Home

INF = float("inf")


def test_a_quantile_lies_inside_its_bucket_and_an_empty_histogram_has_none() -> None:
    assert quantile_ms((0.1, 0.2, INF), (10, 20, 20), 0.5) == pytest.approx(100)
    assert quantile_ms((0.1, 0.2, INF), (10, 20, 20), 0.75) == pytest.approx(150)
    assert quantile_ms((0.1, 0.2, INF), (0, 0, 5), 0.95) == pytest.approx(200)  # beyond the last bound: that bound
    assert quantile_ms((0.1, INF), (0, 0), 0.5) is None


def test_a_point_is_what_came_since_the_one_before() -> None:
    before = Counted(100, 1, (0.1, INF), (100, 100))
    point = _point(7.0, before, Counted(150, 2, (0.1, INF), (150, 150)), seconds=5)
    assert (point["requests_per_s"], point["errors_per_s"]) == (10, 0.2)


def test_gateways_that_count_from_nought_again_give_no_negative_rate() -> None:
    before = Counted(100, 1, (0.1, INF), (100, 100))
    point = _point(7.0, before, Counted(10, 0, (0.1, INF), (10, 10)), seconds=5)
    assert point["requests_per_s"] == 2 and point["errors_per_s"] == 0 and point["p50_ms"] is not None


GATEWAY = """
import sys
from puna.serve.call import Call
from puna.serve.metrics import Metrics

metrics = Metrics()
for number in range(30):
    call = Call("app", "infer", b"", "trace", "1")
    call.tier, call.sent = "awake", 1.0
    for name, status in (("app", 200), ("app", 503 if number % 3 else 200), (sys.argv[1], 200)):
        metrics.answered(name, status, call, -float(number))
metrics.flush()
"""


def test_the_counts_of_two_gateways_are_those_that_prometheus_is_told(home: Home) -> None:
    assert read(home) == {}
    for name in ("first", "second"):
        env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(home.metrics)}
        subprocess.run([sys.executable, "-c", GATEWAY, name], env=env, check=True)
    found = read(home)
    told: dict[tuple[str, str], float] = {}
    for metric in MultiProcessCollector(None, str(home.metrics)).collect():  # type: ignore[no-untyped-call]
        for sample in metric.samples:
            if sample.name in ("puna_requests_total", "puna_request_seconds_bucket"):
                key = (sample.labels["endpoint"], sample.labels.get("le") or sample.labels["status"])
                told[key] = told.get(key, 0) + sample.value
    assert (found["app"].requests, found["app"].errors, found["first"].requests) == (120, 40, 30)
    for endpoint, counted in found.items():
        assert counted.requests == sum(v for (e, label), v in told.items() if e == endpoint and label in ("200", "503"))
        for bound_s, count in zip(counted.bounds_s, counted.buckets, strict=True):
            label = "+Inf" if bound_s == INF else str(bound_s)
            assert told[endpoint, label] == count
        assert len(counted.bounds_s) == 18
