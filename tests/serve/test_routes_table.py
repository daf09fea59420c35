"""The route table as the control plane sends it: a number that is 0 is 0, and what is not said has its default."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from puna.control.domain.records import Settings
from puna.serve.routes_table import parse


def endpoint(**said: Any) -> Any:
    raw = {"version": 1, "keys": [], "endpoints": {"e": {"replicas": [], **said}}}
    return parse(orjson.dumps(raw)).endpoints["e"]


@pytest.mark.parametrize("name", ["max_queue", "min_replica", "max_replica", "percent", "revision"])
def test_zero_is_zero(name: str) -> None:
    assert getattr(endpoint(**{name: 0}), name) == 0
    assert getattr(endpoint(**{name: 3}), name) == 3


def test_what_is_not_said_is_as_a_setting_that_nobody_made() -> None:
    found, usual = endpoint(), Settings()
    assert (found.max_queue, found.min_replica, found.max_replica, found.inference_time_s) == (
        usual.max_queue,
        usual.min_replica,
        usual.max_replica,
        usual.inference_time_s,
    )
    second = endpoint(max_queue=0, split={"revision": 2, "percent": 5}).split
    assert (second.max_queue, second.percent, second.revision) == (0, 5, 2)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"version": 1, "keys": [{}], "endpoints": {}}'])
def test_what_is_no_table_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="."):
        parse(body)
