"""Messages between control plane and gateways: what is sent is what is read, kinds are strict, news is passed over."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from puna.control.wire import (
    Conviction,
    DeathReport,
    EndpointLoad,
    EndpointRoute,
    KeyRoute,
    LoadReport,
    ReplicaRoute,
    RouteTable,
    UsageCount,
    UsageReport,
    decode,
    encode,
)

REPLICA = ReplicaRoute("r1", 2, "/run/r1", 4, "asleep", 3)
SECOND = EndpointRoute("e", 4, True, "ready", "", 0.5, 0, 2, 0, {"engine": "x"}, (), percent=10)
ENDPOINT = EndpointRoute(
    "e", 3, True, "ready", "", 5, 0, 0, 0, None, (REPLICA,), {"o/a": "/a"}, 1.5, SECOND, 90, {"d": 1.0}, {"k": 2.0}
)
KEY = KeyRoute("0123abcd", "salt", "sha", ("infer",), ("e",), 9.5, "ci", {"rate": "10/s", "concurrency": 8})
TABLE = RouteTable(7, {KEY.id: KEY, "ff": KeyRoute("ff", "s", "h", (), None, None)}, {"e": ENDPOINT})
LOAD = EndpointLoad(
    *(2, 1, 9.25, {"r1": 2}, {3: EndpointLoad(2), 4: EndpointLoad()}),
    deaths=(DeathReport("r0", 3, 5, "k"),),
    poison=(Conviction(3, "d", 9.0),),
)
USAGE = UsageReport("p", 3, (UsageCount(3600, "e", "0123abcd", 5, 1, 0.25),))
REPORT = LoadReport("g1", 12.5, {"e": LOAD}, USAGE)


@pytest.mark.parametrize("message", [TABLE, REPORT, RouteTable(), LoadReport("g", 0, {})])
def test_what_is_sent_is_what_is_read(message: RouteTable | LoadReport) -> None:
    assert decode(type(message), encode(message)) == message


def test_a_zero_is_a_zero_and_limits_are_as_they_were_written() -> None:
    read = decode(RouteTable, encode(TABLE))
    assert read.endpoints["e"].max_queue == 0 and read.endpoints["e"].max_replica == 0
    limits = read.keys[KEY.id].parsed_limits
    assert str(limits.rate) == "10/s" and limits.concurrency == 8 and read.keys["ff"].parsed_limits.rate is None


def changed(message: RouteTable | LoadReport, change: Callable[[Any], object]) -> bytes:
    raw = json.loads(encode(message))
    change(raw)
    return json.dumps(raw).encode()


ADDED_TO = {"version", "gateway", "id", "state", "in_flight", "replica", "process"}
"""A message or a part of one, not a mapping by names, has one of these."""


def test_what_a_newer_side_adds_is_passed_over_wherever_it_stands() -> None:
    def add(raw: Any) -> None:
        for one in list(raw.values()) if isinstance(raw, dict) else raw if isinstance(raw, list) else ():
            add(one)
        if isinstance(raw, dict) and raw.keys() & ADDED_TO:
            raw["news"] = {"of": ["a", "newer", "side"]}

    for message in (TABLE, REPORT):
        assert decode(type(message), changed(message, add)) == message


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        *((RouteTable, body) for body in (b"", b"[]", b"{", b"null", b'{"version": 1, "keys": {"a": {}}}')),
        *((LoadReport, body) for body in (b"", b"{}", b'{"gateway": "g", "at": "soon", "endpoints": {}}')),
        (RouteTable, changed(TABLE, lambda raw: raw["endpoints"]["e"].update(max_queue="7"))),
        (RouteTable, changed(TABLE, lambda raw: raw["endpoints"]["e"].update(active=1))),
        (RouteTable, changed(TABLE, lambda raw: raw["endpoints"]["e"].pop("state"))),
        (RouteTable, changed(TABLE, lambda raw: raw["endpoints"]["e"]["replicas"][0].update(epoch=1.5))),
        (RouteTable, changed(TABLE, lambda raw: raw["keys"]["ff"].update(scope="infer"))),
        (LoadReport, changed(REPORT, lambda raw: raw["endpoints"]["e"].update(queued=True))),
        (LoadReport, changed(REPORT, lambda raw: raw["endpoints"]["e"]["replicas"].update(r1=None))),
        (LoadReport, changed(REPORT, lambda raw: raw["usage"]["rows"][0].pop())),
    ],
)
def test_what_is_no_such_message_is_refused(kind: type[RouteTable] | type[LoadReport], body: bytes) -> None:
    with pytest.raises(ValueError, match="."):
        decode(kind, body)
