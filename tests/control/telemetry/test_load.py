"""Load reports of several gateways: added up, forgotten when old, and told at once when somebody waits."""

from __future__ import annotations

import threading
import time

from puna.control.telemetry.load import Loads
from puna.control.wire import EndpointLoad, LoadReport


def report(loads: Loads, gateway: str, at: float, load: EndpointLoad) -> None:
    loads.report(LoadReport(gateway, at, {"app": load}))


def test_reports_of_all_gateways_are_added_up() -> None:
    loads = Loads()
    report(loads, "g1", 10.0, EndpointLoad(2, 1, 9.0, {"a": 2}))
    report(loads, "g2", 10.0, EndpointLoad(1, 0, 8.0, {"a": 1, "b": 4}))
    expected = EndpointLoad(3, 1, 9.0, {"a": 3, "b": 4})
    assert loads.endpoint("app", 10.5) == expected
    assert loads.in_flight("a", 10.5) == 3 and loads.in_flight("none", 10.5) == 0
    assert loads.gateways(10.5) == ["g1", "g2"]


def test_a_gateway_that_is_silent_is_forgotten_but_not_when_the_last_request_was() -> None:
    loads = Loads()
    report(loads, "g1", 10.0, EndpointLoad(in_flight=2, last_request=9.0, replicas={"a": 2}))
    assert loads.in_flight("a", 14.9) == 2
    assert loads.in_flight("a", 15.0) == 0 and loads.gateways(15.0) == []
    assert loads.endpoint("app", 15.0) == EndpointLoad(last_request=9.0)


def test_a_newer_report_replaces_the_older_one() -> None:
    loads = Loads()
    report(loads, "g1", 10.0, EndpointLoad(replicas={"a": 2}))
    report(loads, "g1", 10.5, EndpointLoad(replicas={}))
    assert loads.in_flight("a", 10.6) == 0


def test_waiting_requests_are_told_at_once() -> None:
    told: list[int] = []
    loads = Loads(lambda: told.append(1))
    report(loads, "g1", 10.0, EndpointLoad(in_flight=3))
    assert told == []
    report(loads, "g1", 10.0, EndpointLoad(queued=1))
    assert told == [1]


def test_it_is_waited_for_the_tables_of_gateways_that_report_and_of_no_others() -> None:
    loads, now = Loads(), time.monotonic()
    assert loads.wait_for_tables(7, 0), "nobody is there"
    loads.report(LoadReport("g1", now, {}))
    loads.report(LoadReport("g2", now, {}))
    loads.report(LoadReport("gone", now - 60, {}))
    loads.has_table("g1", 7)
    assert not loads.wait_for_tables(7, 0)
    threading.Timer(0.05, loads.has_table, ("g2", 8)).start()
    assert loads.wait_for_tables(7, 10)
