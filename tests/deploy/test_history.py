"""Figures over time: quantiles from buckets, rates from counts, and gateways that start to count anew."""

from __future__ import annotations

import pytest

from puna.deploy.history import Counted, _point, quantile_ms

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
