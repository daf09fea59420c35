"""Load reports of several gateways: added up, forgotten when old, and told at once when somebody waits."""

from __future__ import annotations

import threading
import time

from puna.control.telemetry.load import MAX_DEATHS_OF_KEY, WINDOW_S, Deaths, Loads, News
from puna.control.wire import Conviction, DeathReport, EndpointLoad, LoadReport


def death(replica: str, key: str = "k", survived: int = 1) -> DeathReport:
    return DeathReport(replica, 3, survived, key)


def load(*deaths: DeathReport, poison: tuple[Conviction, ...] = ()) -> EndpointLoad:
    return EndpointLoad(deaths=deaths, poison=poison)


def test_a_death_is_excused_once_however_often_it_is_told() -> None:
    deaths = Deaths()
    for now in (0.0, 1.0):
        deaths.report("g", "e", load(death("r1")), now)
    assert deaths.excused() == {"r1"}
    deaths.report("g", "e", load(death("r2")), WINDOW_S)
    assert deaths.excused() == {"r2"}, "what is over is forgotten"


def test_whichever_comes_first_the_report_or_the_count_the_count_is_taken_back_once() -> None:
    deaths = Deaths()
    assert not deaths.count("r1", 0.0)
    assert deaths.report("g", "e", load(death("r1")), 0.1).uncount == (3,)
    assert deaths.report("g", "e", load(death("r1")), 0.2) == News()
    assert not deaths.report("g", "e", load(death("r2")), 0.3).uncount
    assert deaths.count("r2", 0.4)


def test_one_key_can_kill_six_and_is_refused_until_the_first_of_them_is_old() -> None:
    deaths = Deaths()
    for number in range(MAX_DEATHS_OF_KEY):
        news = deaths.report(
            "g", "e", load(death(f"r{number}", survived=0), death(f"s{number}", "other")), 10.0 * number
        )
        assert news.blocked == (("k", "other") if number == MAX_DEATHS_OF_KEY - 1 else ())
    assert deaths.refused("e", 3, 50.0)["blocked"] == {"k": WINDOW_S - 50.0, "other": WINDOW_S - 50.0}
    assert deaths.refused("e", 4, 50.0) == {} == deaths.refused("other", 3, 50.0)
    assert deaths.refused("e", 3, WINDOW_S)["blocked"] == {}
    assert len(deaths.excused()) == 2 * MAX_DEATHS_OF_KEY, "none of one key's deaths holds the endpoint back"


def test_what_two_gateways_had_on_one_replica_is_nobodys_alone() -> None:
    deaths = Deaths()
    for number in range(MAX_DEATHS_OF_KEY + 3):
        for gateway in ("g1", "g2"):
            deaths.report(gateway, "e", load(death(f"r{number}", gateway)), float(number))
    assert deaths.refused("e", 3, 20.0)["blocked"] == {}


def test_when_fresh_replicas_die_of_three_keys_the_app_is_to_blame_until_one_has_answered() -> None:
    deaths = Deaths()
    for number, key in enumerate(["a", "a", "b", "a", "b"]):
        deaths.report("g", "e", load(death(f"r{number}", key, survived=0)), 1.0)
    assert len(deaths.excused()) == 5
    deaths.report("g", "e", load(death("s1", "c", survived=0)), 2.0)
    deaths.report("g", "e", load(death("s2", "a", survived=0)), 3.0)
    assert len(deaths.excused()) == 5
    deaths.report("g", "e", load(death("s3", "a", survived=7)), 4.0)
    deaths.report("g", "e", load(death("s4", "c", survived=0)), 5.0)
    assert deaths.excused() == {"r0", "r1", "r2", "r3", "r4", "s3", "s4"}


def test_bodies_are_refused_by_all_gateways_as_long_as_the_one_that_found_out_says() -> None:
    deaths = Deaths()
    assert deaths.report("g", "e", load(poison=(Conviction(3, "d", 600.0),)), 0.0).poison == ("d",)
    assert deaths.report("g", "e", load(poison=(Conviction(3, "d", 599.5),)), 0.5) == News()
    assert deaths.refused("e", 3, 100.0)["poison"] == {"d": 500.0}
    assert deaths.refused("e", 3, 600.0)["poison"] == {}
    assert deaths.report("g", "e", load(poison=(Conviction(3, "d", 1e9),)), 700.0).poison == ("d",)
    assert deaths.refused("e", 3, 700.0)["poison"] == {"d": WINDOW_S}


def report(loads: Loads, gateway: str, at: float, load: EndpointLoad) -> None:
    loads.report(LoadReport(gateway, at, {"app": load}))


def test_reports_of_all_gateways_are_added_up() -> None:
    loads = Loads()
    report(loads, "g1", 10.0, EndpointLoad(2, 1, 9.0, {"a": 2}))
    report(loads, "g2", 10.0, EndpointLoad(1, 0, 8.0, {"a": 1, "b": 4}))
    assert loads.endpoint("app", 10.5) == EndpointLoad(3, 1, 9.0)
    assert loads.in_flight("a", 10.5) == 3 and loads.in_flight("b", 10.5) == 4 and loads.in_flight("none", 10.5) == 0
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
