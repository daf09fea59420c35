"""Desired replicas in a real store, from load reports, with the time as an argument."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from puna.control.domain.records import Order
from puna.control.domain.settings import parse
from puna.control.domain.states import RevisionState
from puna.control.store.store import Store
from puna.control.telemetry.load import Loads
from puna.serve.autoscaler import Autoscaler


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(f"sqlite:///{tmp_path / 'db'}")
    yield made
    made.close()


def serving(store: Store, **settings: object) -> None:
    """An endpoint `e` with a revision that serves."""
    made = parse({"scale_down_delay_s": 10, "container_concurrency": 2, "max_replica": 3, **settings})
    store.save_endpoint("e", made, 0)
    store.add_revision("e", Order("source", None, None, made), 0)
    for state in ("building", "built", "starting"):
        store.move_revision("e", 1, RevisionState(state), 0)
    store.swap("e", 1, 0)
    store.scale("e", 0, "a fresh start", 0)


def report(loads: Loads, at: float, **load: object) -> None:
    loads.report("g0", at, {"e": load})


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
    store.add_revision("e", Order("other", None, None, settings, 25), 0)
    for state in ("building", "built", "starting"):
        store.move_revision("e", 2, RevisionState(state), 0)
    store.join("e", 2, 0)
    store.scale("e", 0, "a fresh start", 0, 2)
    loads = Loads()
    autoscaler = Autoscaler(store, loads)
    part = {"1": {"queued": 9, "last_request": 100.0}, "2": {"queued": 0}}
    report(loads, 100, queued=9, last_request=100.0, revisions=part)
    autoscaler.step(100.1)
    assert [store.endpoint("e").desired_of(number)[0] for number in (1, 2)] == [3, 0]
    part = {"1": {"in_flight": 6, "last_request": 101.0}, "2": {"queued": 9, "last_request": 101.0}}
    report(loads, 101, in_flight=6, queued=9, last_request=101.0, revisions=part)
    autoscaler.step(101.1)
    assert [store.endpoint("e").desired_of(number)[0] for number in (1, 2)] == [3, 1]
    assert store.events("e")[-1].message.startswith("revision 2: 0 -> 1: 0 in flight and 9 waiting")
    for at in (105, 110, 115):
        report(loads, at, in_flight=6, last_request=float(at), revisions={"1": {"in_flight": 6}, "2": {}})
        autoscaler.step(at + 0.1)
    assert [store.endpoint("e").desired_of(number)[0] for number in (1, 2)] == [3, 0]
