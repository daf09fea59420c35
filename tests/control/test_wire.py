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
TABLE = RouteTable(7, (KEY, KeyRoute("ff", "s", "h", (), None, None)), {"e": ENDPOINT})
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
    limits = read.keys[0].parsed_limits
    assert str(limits.rate) == "10/s" and limits.concurrency == 8 and read.keys[1].parsed_limits.rate is None


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
        *((RouteTable, body) for body in (b"", b"[]", b"{", b"null", b'{"version": 1, "keys": [{}]}')),
        *((LoadReport, body) for body in (b"", b"{}", b'{"gateway": "g", "at": "soon", "endpoints": {}}')),
        (RouteTable, changed(TABLE, lambda raw: raw["endpoints"]["e"].update(max_queue="7"))),
        (RouteTable, changed(TABLE, lambda raw: raw["endpoints"]["e"].update(active=1))),
        (RouteTable, changed(TABLE, lambda raw: raw["endpoints"]["e"].pop("state"))),
        (RouteTable, changed(TABLE, lambda raw: raw["endpoints"]["e"]["replicas"][0].update(epoch=1.5))),
        (RouteTable, changed(TABLE, lambda raw: raw["keys"][1].update(scope="infer"))),
        (LoadReport, changed(REPORT, lambda raw: raw["endpoints"]["e"].update(queued=True))),
        (LoadReport, changed(REPORT, lambda raw: raw["endpoints"]["e"]["replicas"].update(r1=None))),
        (LoadReport, changed(REPORT, lambda raw: raw["usage"]["rows"][0].pop())),
    ],
)
def test_what_is_no_such_message_is_refused(kind: type[RouteTable] | type[LoadReport], body: bytes) -> None:
    with pytest.raises(ValueError, match="."):
        decode(kind, body)


OF_0_1_0 = {
    "version": 9,
    "keys": [
        {"id": "aa", "salt": "s", "sha256": "h", "scope": ["infer"], "endpoints": None, "expires": None},
        {"id": "bb", "salt": "s", "sha256": "h", "scope": ["infer"], "endpoints": ["e"], "expires": 2.5}
        | {"name": "ci", "limits": {"rate": "1k/min", "tokens": None, "concurrency": None}},
    ],
    "endpoints": {
        "e": {
            **{"revision": 1, "active": True, "state": "ready", "reason": "", "inference_time_s": 180.0},
            **{"max_queue": 100, "max_replica": 1, "min_replica": 0, "created": 1.5, "percent": 75, "schema": None},
            **{"adapters": {}, "poison": {}, "blocked": {"k": 3.0}},
            "replicas": [{"id": "e-1", "epoch": 4, "socket": "/s/1", "concurrency": 1, "tier": "awake"}],
            "split": {
                **{"revision": 2, "percent": 25, "schema": None, "adapters": {}, "poison": {}, "blocked": {}},
                "replicas": [{"id": "e-2", "epoch": 5, "socket": "/s/2", "concurrency": 1, "tier": "asleep"}],
            },
        },
        "none": {
            **{"revision": 0, "active": True, "state": "empty", "reason": "nothing is deployed"},
            **{"inference_time_s": 180.0, "max_queue": 100, "max_replica": 1, "min_replica": 0, "created": 2.5},
            **{"schema": None, "adapters": {}, "replicas": [], "split": None},
        },
    },
}
"""As a control plane of that version writes it."""


def test_a_gateway_that_was_upgraded_first_reads_the_table_of_the_control_plane_before() -> None:
    read = decode(RouteTable, json.dumps(OF_0_1_0).encode())
    assert [key.id for key in read.keys] == ["aa", "bb"] and read.keys[1].parsed_limits.rate is not None
    route = read.endpoints["e"]
    assert (route.name, route.replicas) == ("e", (ReplicaRoute("e-1", 4, "/s/1", 1, "awake", 1),))
    assert route.split is not None and route.split.split is None
    assert (route.split.revision, route.split.percent, route.split.blocked) == (2, 25, {})
    assert route.split.replicas == (ReplicaRoute("e-2", 5, "/s/2", 1, "asleep", 2),)
    assert (route.split.name, route.split.max_queue, route.split.created) == ("e", 100, 1.5)
    assert read.endpoints["none"].replicas == () and read.endpoints["none"].reason == "nothing is deployed"


def test_a_gateway_of_0_1_0_finds_in_the_table_what_it_asks_for() -> None:
    raw = json.loads(encode(TABLE))
    assert [key["id"] for key in raw["keys"]] == [KEY.id, "ff"]
    assert {"salt", "sha256", "scope", "endpoints", "expires", "name", "limits"} <= raw["keys"][0].keys()
    route = raw["endpoints"]["e"]
    assert {"revision", "active", "state", "reason", "inference_time_s", "max_queue", "max_replica"} <= route.keys()
    assert {"min_replica", "schema", "replicas", "adapters", "created", "split", "percent"} <= route.keys()
    assert {"id", "epoch", "socket", "concurrency", "tier"} <= route["replicas"][0].keys()


def test_a_report_of_a_gateway_of_0_1_0_is_taken() -> None:
    load = {
        "in_flight": 1,
        "queued": 0,
        "last_request": 8.5,
        "requests_total": 7,
        "replicas": {"e-1": 1},
        "cold": [0.5],
    }
    death = {"replica": "e-0", "revision": 1, "survived": 3, "key": "aa"}
    load = {**load, "revisions": {"1": load, "2": load}, "deaths": [death], "poison": [[1, "d", 9.5]]}
    report = {"gateway": "g0", "at": 9.0, "endpoints": {"e": load}}
    report |= {"usage": {"process": "p", "number": 1, "rows": [[3600, "e", "aa", 2, 0, 0.5]]}}
    read = decode(LoadReport, json.dumps(report).encode())
    assert read.endpoints["e"].revisions[2].in_flight == 1 and read.endpoints["e"].deaths[0].survived == 3
    assert read.usage is not None and read.usage.rows[0].requests == 2
