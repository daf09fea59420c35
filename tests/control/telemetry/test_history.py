"""Figures over time: quantiles from buckets, rates from counts, and gateways that start to count anew."""

from __future__ import annotations

import threading
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from puna.config.settings import Settings
from puna.control.domain.records import Endpoint, Snapshot
from puna.control.telemetry.history import EVERY_S, EndpointCounts, History, _point, counted, quantile_ms
from puna.control.telemetry.load import Loads
from puna.control.wire import Memories, make
from puna.control_plane import keep_on
from puna.serve.counts import RequestCounts
from puna.serve.dispatch.call import Call

INF = float("inf")


def test_a_quantile_lies_inside_its_bucket_and_an_empty_histogram_has_none() -> None:
    assert quantile_ms((0.1, 0.2, INF), (10, 20, 20), 0.5) == pytest.approx(100)
    assert quantile_ms((0.1, 0.2, INF), (10, 20, 20), 0.75) == pytest.approx(150)
    assert quantile_ms((0.1, 0.2, INF), (0, 0, 5), 0.95) == pytest.approx(200)  # beyond the last bound: that bound
    assert quantile_ms((0.1, INF), (0, 0), 0.5) is None
    assert quantile_ms((0.1, 0.2, INF), (10, 10, 10), 0.5) == pytest.approx(50)


def test_a_point_is_what_came_since_the_one_before() -> None:
    before = EndpointCounts(100, 1, (0.1, INF), (100, 100))
    point = _point(7.0, before, EndpointCounts(150, 2, (0.1, INF), (150, 150)), seconds=5)
    assert (point["requests_per_s"], point["errors_per_s"]) == (10, 0.2)


def test_gateways_that_count_from_nought_again_give_no_negative_rate() -> None:
    before = EndpointCounts(100, 1, (0.1, INF), (100, 100))
    point = _point(7.0, before, EndpointCounts(10, 0, (0.1, INF), (10, 10)), seconds=5)
    assert point["requests_per_s"] == 2 and point["errors_per_s"] == 0 and point["p50_ms"] is not None


def count(memories: Memories, index: int, name: str) -> RequestCounts:
    """A gateway that answers, as far as its figures go."""
    metrics = RequestCounts(memories, index)
    for number in range(30):
        call = Call("app", "infer", b"", "trace", "1")
        call.tier, call.sent = "awake", 1.0
        for endpoint, status in (("app", 200), ("app", 503 if number % 3 else 200), (name, 200)):
            metrics.answered(endpoint, status, call, -float(number))
    metrics.flush()
    return metrics


def test_the_counts_of_two_gateways_are_those_that_prometheus_is_told() -> None:
    memories = make(2)
    assert counted(memories) == {}
    metrics = [count(memories, index, name) for index, name in enumerate(("first", "second"))]
    found = counted(memories)
    told: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(metrics[0].text().decode()):
        for sample in family.samples:
            if sample.name in ("puna_requests_total", "puna_request_seconds_bucket"):
                told[sample.labels["endpoint"], sample.labels.get("le") or sample.labels["status"]] = sample.value
    assert (found["app"].requests, found["app"].errors, found["first"].requests) == (120, 40, 30)
    for endpoint, one in found.items():
        assert one.requests == sum(v for (e, label), v in told.items() if e == endpoint and label in ("200", "503"))
        for bound_s, count_ in zip(one.bounds_s, one.buckets, strict=True):
            assert told[endpoint, "+Inf" if bound_s == INF else str(float(bound_s))] == count_
        assert len(one.bounds_s) == 18


def test_each_row_has_what_came_since_the_row_before_and_the_summary_all_of_them() -> None:
    memories, name = make(1), "app"
    metrics = RequestCounts(memories, 0)
    endpoint = Endpoint(name, True, Settings(), None, "", 1.0, 0)
    history = History(memories, Loads(), lambda: Snapshot((endpoint,)), every_s=1.0)

    def answer(count: int) -> None:
        for _ in range(count):
            call = Call(name, "infer", b"", "trace", "1")
            call.tier, call.sent = "awake", 1.0
            metrics.answered(name, 200, call, 0.5)
        metrics.flush()

    for number, count in enumerate((5, 10, 0, 20)):
        answer(count)
        history.take(float(number), float(number))
    rates = [row["requests_per_s"] for row in history.points(name)]
    assert rates == [0, 10 / EVERY_S, 0, 20 / EVERY_S], "of the first row nobody knows what came before"
    assert history.summary(name)["requests"] == 30 + 5


def test_the_history_goes_on_after_a_look_that_failed() -> None:
    looks: list[int] = []

    def snapshot() -> Snapshot:
        looks.append(len(looks))
        if len(looks) == 1:
            raise OSError(28, "No space left on device")
        return Snapshot()

    stopped = threading.Event()
    history = History(make(1), Loads(), snapshot, every_s=0.01)
    thread = threading.Thread(target=keep_on, args=(history.run, stopped))
    thread.start()
    deadline = time.monotonic() + 30
    while len(looks) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    stopped.set()
    thread.join(30)
    assert len(looks) >= 3 and not thread.is_alive()
