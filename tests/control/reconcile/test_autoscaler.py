"""Scaling decisions one after the other, and what of them is written down in a real store; the time is an argument."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from control.rows import add_revision, save_endpoint
from puna.config.settings import parse
from puna.control.domain.records import RevisionSpec
from puna.control.domain.states import RevisionState
from puna.control.reconcile.autoscaler import Autoscaler, Decision, ScalingLimits, State, decide
from puna.control.store.store import Store
from puna.control.telemetry.load import Loads
from puna.control.wire import EndpointLoad, LoadReport

ONE_AT_A_TIME = ScalingLimits(min_replica=0, max_replica=4, concurrency=1, scale_down_delay_s=10)


def run(limits: ScalingLimits, state: State, *loads: tuple[float, EndpointLoad]) -> Decision:
    """The last of a row of decisions, each starting from what the one before it left."""
    decision = Decision(state.replicas, "", state)
    for now, load in loads:
        decision = decide(load, limits, decision.state, now)
    return decision


def test_a_cold_request_wakes_one_replica_at_once() -> None:
    decision = decide(EndpointLoad(queued=1), ONE_AT_A_TIME, State(0), now=100)
    assert decision.replicas == 1
    assert "1 waiting" in decision.reason


def test_replicas_rise_by_what_is_in_flight_and_waiting_divided_by_the_concurrency() -> None:
    limits = ScalingLimits(0, 100, concurrency=4, scale_down_delay_s=10)
    assert decide(EndpointLoad(in_flight=4), limits, State(1), 0).replicas == 1
    assert decide(EndpointLoad(in_flight=4, queued=1), limits, State(1), 0).replicas == 2
    assert decide(EndpointLoad(in_flight=4, queued=29), limits, State(1), 0).replicas == 9


def test_replicas_never_pass_max_replica() -> None:
    decision = decide(EndpointLoad(queued=50), ONE_AT_A_TIME, State(1), 0)
    assert decision.replicas == 4
    assert "max_replica is 4" in decision.reason


def test_min_replica_stands_without_any_request() -> None:
    decision = decide(EndpointLoad(), ScalingLimits(2, 4, 1, 10), State(0), 0)
    assert (decision.replicas, decision.reason) == (2, "min_replica is 2")


def test_a_lull_shorter_than_the_delay_changes_nothing() -> None:
    busy, lull = EndpointLoad(in_flight=3, last_request=0), EndpointLoad(in_flight=1, last_request=1)
    decision = run(ONE_AT_A_TIME, State(3), (0, busy), (1, lull), (10.9, lull))
    assert decision.replicas == 3
    assert run(ONE_AT_A_TIME, decision.state, (10.95, busy), (11.1, lull)).replicas == 3, "the delay began anew"


def test_after_the_delay_as_many_stay_as_were_needed_at_most_during_it() -> None:
    decision = run(
        ONE_AT_A_TIME,
        State(4),
        (0, EndpointLoad(in_flight=1)),
        (4, EndpointLoad(in_flight=2)),
        (5, EndpointLoad(in_flight=1)),
        (10, EndpointLoad(in_flight=1)),
    )
    assert (decision.replicas, decision.reason) == (2, "no more than 2 needed for 10 s")


def test_the_last_replica_goes_only_when_the_delay_has_passed_since_the_last_request() -> None:
    # 30 short requests between two looks: each look finds nothing in flight, only `last_request` tells.
    decision = run(
        ONE_AT_A_TIME,
        State(1),
        (0, EndpointLoad()),
        (9, EndpointLoad(last_request=8.5)),
        (12, EndpointLoad(last_request=8.5)),
    )
    assert decision.replicas == 1
    decision = run(ONE_AT_A_TIME, decision.state, (18.5, EndpointLoad(last_request=8.5)))
    assert (decision.replicas, decision.reason) == (0, "no request for 10 s")


def test_a_replica_without_any_request_since_the_reports_began_goes_after_the_delay() -> None:
    assert run(ONE_AT_A_TIME, State(1), (0, EndpointLoad()), (9.9, EndpointLoad())).replicas == 1
    assert run(ONE_AT_A_TIME, State(1), (0, EndpointLoad()), (10, EndpointLoad())).replicas == 0


def test_a_request_in_flight_keeps_its_replica_however_long_it_takes() -> None:
    assert run(
        ONE_AT_A_TIME, State(1), (0, EndpointLoad(in_flight=1)), (10_000, EndpointLoad(in_flight=1, last_request=0))
    ).replicas


def test_a_lower_max_replica_acts_at_once_and_none_at_all_is_a_deactivated_endpoint() -> None:
    assert decide(EndpointLoad(in_flight=4), ScalingLimits(0, 2, 1, 600), State(4), 0).replicas == 2
    decision = decide(EndpointLoad(in_flight=4), ScalingLimits(0, 0, 1, 600), State(4), 0)
    assert (decision.replicas, decision.reason) == (0, "deactivated")


def test_what_is_as_many_as_needed_says_why_it_stays() -> None:
    limits = ScalingLimits(0, 4, 1, 10)
    assert decide(EndpointLoad(in_flight=1, queued=1), limits, State(2), 0).reason == "1 in flight and 1 waiting"
    assert decide(EndpointLoad(), ScalingLimits(2, 4, 1, 10), State(2), 0).reason == "min_replica is 2"
    assert decide(EndpointLoad(), limits, State(0), 0).reason == "no request"


def test_a_request_that_ended_late_does_not_hold_more_than_one_replica_longer() -> None:
    busy = EndpointLoad(in_flight=1, last_request=9)
    assert run(ONE_AT_A_TIME, State(2), (0, EndpointLoad(in_flight=1)), (10, busy)).replicas == 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(f"sqlite:///{tmp_path / 'db'}")
    yield made
    made.close()


def serving(store: Store, **settings: object) -> None:
    """An endpoint `e` with a revision that serves."""
    made = parse({"scale_down_delay_s": 10, "container_concurrency": 2, "max_replica": 3, **settings})
    save_endpoint(store, "e", made, 0)
    add_revision(store, "e", RevisionSpec("source", None, None, made), 0)
    for state in ("building", "built", "starting"):
        store.move_revision("e", 1, RevisionState(state), 0)
    store.swap("e", 1, 0)
    store.scale("e", 0, "a fresh start", 0)


def report(loads: Loads, at: float, **load: Any) -> None:
    loads.report(LoadReport("g0", at, {"e": EndpointLoad(**load)}))


def test_waiting_requests_raise_the_replicas_at_once_and_silence_lowers_it_after_the_delay(store: Store) -> None:
    serving(store)
    loads = Loads()
    autoscaler = Autoscaler(store, loads)
    autoscaler.step(100)
    assert store.endpoint("e").desired_replicas == 0
    report(loads, 100.1, queued=5, last_request=100.1)
    autoscaler.step(100.2)
    assert store.endpoint("e").desired_replicas == 3
    report(loads, 101, queued=0, in_flight=0, last_request=100.9)
    autoscaler.step(101)
    autoscaler.step(110.5)
    assert store.endpoint("e").desired_replicas == 3
    autoscaler.step(111.1)
    assert store.endpoint("e").desired_replicas == 0
    assert "no request for 10 s" in store.endpoint("e").scaling_reason


def test_the_decision_is_written_only_when_it_changes(store: Store) -> None:
    serving(store)
    loads = Loads()
    autoscaler = Autoscaler(store, loads)
    report(loads, 100, in_flight=1, last_request=100)
    autoscaler.step(100)
    version = store.version
    report(loads, 100.5, in_flight=2, last_request=100.5)
    autoscaler.step(100.5)
    assert store.version == version


def test_a_deactivated_endpoint_is_left_alone(store: Store) -> None:
    serving(store, min_replica=1)
    store.set_active("e", False, 1)
    Autoscaler(store, Loads()).step(100)
    assert store.endpoint("e").desired_replicas == 0


def test_a_deleted_endpoint_is_forgotten(store: Store) -> None:
    serving(store, min_replica=1)
    autoscaler = Autoscaler(store, Loads())
    autoscaler.step(100)
    assert store.endpoint("e").desired_replicas == 1
    store.delete_endpoint("e", 101)
    autoscaler.step(102)


def test_two_revisions_that_share_an_endpoint_are_scaled_each_by_its_own_load(store: Store) -> None:
    serving(store, max_replica=4)
    settings = store.endpoint("e").settings
    add_revision(store, "e", RevisionSpec("other", None, None, settings, 25), 0)
    for state in ("building", "built", "starting"):
        store.move_revision("e", 2, RevisionState(state), 0)
    store.start_canary("e", 2, 0)
    store.scale("e", 0, "a fresh start", 0, 2)
    loads = Loads()
    autoscaler = Autoscaler(store, loads)
    part = {1: EndpointLoad(queued=9, last_request=100.0), 2: EndpointLoad()}
    report(loads, 100, queued=9, last_request=100.0, revisions=part)
    autoscaler.step(100.1)
    assert [store.endpoint("e").desired_of(number)[0] for number in (1, 2)] == [3, 0]
    part = {1: EndpointLoad(6, last_request=101.0), 2: EndpointLoad(queued=9, last_request=101.0)}
    report(loads, 101, in_flight=6, queued=9, last_request=101.0, revisions=part)
    autoscaler.step(101.1)
    assert [store.endpoint("e").desired_of(number)[0] for number in (1, 2)] == [3, 1]
    assert store.events_page("e", None, 10_000)[-1].message.startswith("revision 2: 0 -> 1: 0 in flight and 9 waiting")
    for at in (105, 110, 115):
        report(loads, at, in_flight=6, last_request=float(at), revisions={1: EndpointLoad(6), 2: EndpointLoad()})
        autoscaler.step(at + 0.1)
    assert [store.endpoint("e").desired_of(number)[0] for number in (1, 2)] == [3, 0]
