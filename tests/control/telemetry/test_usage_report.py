"""Use: reports counted once, GPU time by what replicas did, sums by endpoint, key, day and hour, and the CSV."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from control.conftest import World, control_of, gpu_world
from puna.control.api.app import create_app
from puna.control.domain.api_keys import make
from puna.control.domain.records import UsageRow
from puna.control.domain.states import ReplicaState
from puna.control.store.store import Store
from puna.control.store.usage import HOUR_S, KEPT_S, MARK_KEPT_S
from puna.control.telemetry import usage_report as usage
from puna.control.telemetry.usage_report import add_up, as_csv, grouping, total
from puna.errors import UsageError

NOON = 1_764_072_000  # 2025-11-25 12:00 UTC
FORWARDED = {"x-puna-forwarded": "1"}


@pytest.fixture
def api(world: World) -> Iterator[TestClient]:
    with TestClient(create_app(control_of(world.store, world.home)), raise_server_exceptions=False) as client:
        yield client


def test_a_report_counts_once_however_often_it_comes_and_whoever_restarts(world: World) -> None:
    rows = [(NOON, "app", "k1", 3, 1, 0.5)]
    assert world.store.add_usage("one", 1, rows, NOON + 5.0)
    assert not world.store.add_usage("one", 1, rows, NOON + 6.0)
    again = Store(f"sqlite:///{world.home.database}")  # as a control plane that starts anew
    assert not again.add_usage("one", 1, rows, NOON + 7.0)
    assert again.add_usage("one", 2, [(NOON, "app", "k1", 1, 0, 0.25)], NOON + 8.0)
    assert again.add_usage("another", 1, rows, NOON + 9.0)  # a restarted gateway counts from 1
    assert again.usage(NOON, NOON + 60) == [UsageRow(NOON, "app", "k1", "", 7, 2, 1.25)]
    again.close()


def test_what_gateways_report_moves_neither_routes_nor_the_snapshot(world: World) -> None:
    world.deploy()
    version, snapshot = world.store.version, world.store.snapshot()
    world.store.add_usage("one", 1, [(NOON, "app", "k1", 3, 1, 0.5)], NOON)
    world.store.meter(NOON)
    assert world.store.version == version and world.store.snapshot() is snapshot


def test_a_key_keeps_its_name_in_the_books_when_it_is_revoked(store: Store) -> None:
    key, _ = make("reports", ["infer"], None, None, NOON)
    store.add_key(key)
    store.add_usage("one", 1, [(NOON, "app", key.id, 1, 0, 0.0)], NOON)
    store.delete_key(key.id)
    store.add_usage("one", 2, [(NOON, "app", key.id, 1, 0, 0.0)], NOON)
    assert [(use.key_name, use.requests) for use in store.usage(NOON, NOON + 1)] == [("reports", 2)]


def gpu_s(store: Store) -> float:
    return sum(use.gpu_s for use in store.usage(0, 1e11))


def test_gpu_time_is_what_replicas_hold_not_what_they_sleep_and_outlives_them(world: World) -> None:
    gpu_world(world, 1)
    world.deploy(is_dedicated=False, min_replica=1)
    world.settle(20)
    (replica,) = world.store.replicas("app")
    assert replica.gpu == "0" and replica.fraction == 0.5 and replica.state is ReplicaState.READY
    start = replica.created
    world.store.meter(start + 40)
    world.store.meter(start + 40)  # the same time is not counted twice
    assert gpu_s(world.store) == pytest.approx(20)
    world.store.move_replica(replica.id, ReplicaState.ASLEEP, start + 100)
    assert gpu_s(world.store) == pytest.approx(50)
    world.store.meter(start + 300)
    world.store.move_replica(replica.id, ReplicaState.READY, start + 500)
    assert gpu_s(world.store) == pytest.approx(50)
    world.store.move_replica(replica.id, ReplicaState.DRAINING, start + 510)
    world.store.move_replica(replica.id, ReplicaState.STOPPING, start + 520)
    world.store.move_replica(replica.id, ReplicaState.GONE, start + 530)
    world.store.meter(start + 9000)
    assert gpu_s(world.store) == pytest.approx(65)


def test_gpu_time_falls_into_its_hours_and_stops_with_what_ended_unseen(store: Store) -> None:
    replica = store.add_replica("app", 1, "0", 1.0, NOON - 600.0)
    store.meter(NOON + HOUR_S + 60.0)
    hours = {use.hour - NOON: use.gpu_s for use in store.usage(0, 1e11)}
    assert hours == {-HOUR_S: pytest.approx(600), 0: pytest.approx(HOUR_S), HOUR_S: pytest.approx(60)}
    later = NOON + 5 * HOUR_S + 0.0
    store.skip_usage([replica.id], later)  # the machine was off meanwhile
    store.fail_replica(replica.id, "it died", "", later + 1)
    assert gpu_s(store) == pytest.approx(600 + HOUR_S + 60 + 1)
    store.meter(later + 100)
    assert gpu_s(store) == pytest.approx(600 + HOUR_S + 60 + 1)


def test_a_replica_without_a_gpu_costs_none(store: Store) -> None:
    store.add_replica("app", 1, "", 0.0, NOON)
    store.meter(NOON + 100.0)
    assert store.usage(0, 1e11) == []


def test_what_is_old_is_forgotten(store: Store) -> None:
    store.add_usage("one", 1, [(NOON, "app", "k", 1, 0, 0.0), (NOON + HOUR_S, "app", "k", 2, 0, 0.0)], NOON)
    store.prune_usage(NOON + KEPT_S + 1.0)
    assert [use.requests for use in store.usage(0, 1e11)] == [2]
    assert MARK_KEPT_S < KEPT_S
    assert store.add_usage("one", 1, [], NOON)  # its mark went, too


ROWS = [
    UsageRow(NOON, "a", "", "", gpu_s=100.0),
    UsageRow(NOON, "a", "k1", "one", 3, 1, 6.0),
    UsageRow(NOON, "a", "k2", "two", 1, 0, 2.0),
    UsageRow(NOON, "b", "k1", "one", 5, 0, 1.0),
    UsageRow(NOON + HOUR_S, "a", "", "", gpu_s=30.0),
    UsageRow(NOON + 24 * HOUR_S, "a", "k2", "two", 2, 2, 0.0),
]


def test_rows_add_up_by_what_is_asked_and_every_way_to_the_same_total() -> None:
    for by in ("endpoint", "key", "day", "hour", "endpoint,key", "day,key", "hour,endpoint,key"):
        items = add_up(ROWS, grouping(by))
        assert total(items) == {"requests": 11, "failed": 3, "infer_s": 9.0, "gpu_s": 130.0}, by
    by_endpoint = add_up(ROWS, ("endpoint",))
    assert [(i["endpoint"], i["key"], i["start"], i["requests"], i["gpu_s"]) for i in by_endpoint] == [
        ("a", None, None, 6, 130.0),
        ("b", None, None, 5, 0.0),
    ]
    by_day = add_up(ROWS, ("day",))
    assert [(i["start"], i["requests"]) for i in by_day] == [(NOON - 12 * HOUR_S, 9), (NOON + 12 * HOUR_S, 2)]


def test_seconds_are_told_to_the_millisecond() -> None:
    (item,) = add_up([UsageRow(NOON, "a", "k1", "one", 1, 0, 1.23456, 7.65432)], ("key",))
    assert (item["infer_s"], item["gpu_s"]) == (1.235, 7.654)


def test_keys_share_gpu_time_by_their_seconds_and_an_hour_without_calls_is_nobodys() -> None:
    items = {i["key_name"]: i for i in add_up(ROWS, ("key",))}
    assert {name: i["gpu_s"] for name, i in items.items()} == {"idle": 30.0, "one": 75.0, "two": 25.0}
    assert items["idle"]["key"] == "" and items["one"]["endpoint"] is None
    assert [i["key_name"] for i in add_up([UsageRow(NOON, "a", "", "", 1)], ("key",))] == ["local"]


@pytest.mark.parametrize("by", ["", "week", "day,hour", "endpoint,nothing"])
def test_what_cannot_be_grouped_by_is_refused(by: str) -> None:
    with pytest.raises(UsageError, match="cannot be added up"):
        grouping(by)


def test_no_cell_of_the_csv_is_a_formula_and_none_breaks_a_row() -> None:
    names = ['=HYPERLINK("http://x")', "+1", "-1", "@SUM(A1)", "\tx", 'a "b",\nc', "plain"]
    items = add_up([UsageRow(NOON, "a", f"k{n}", name, 1) for n, name in enumerate(names)], ("hour", "endpoint", "key"))
    rows = list(csv.DictReader(io.StringIO(as_csv(items), newline="")))
    assert [row["key_name"] for row in rows] == ["'" + n if n[0] in "=+-@\t" else n for n in names]
    assert rows[0]["start"] == "2025-11-25T12:00:00Z" and rows[0]["requests"] == "1"
    assert all(line.startswith('"') for line in as_csv(items).splitlines() if "," in line and not line.startswith("c"))


def test_the_api_answers_by_its_words_and_a_key_for_some_endpoints_sees_those_only(
    world: World, api: TestClient
) -> None:
    world.store.add_usage("one", 1, [[u.hour, u.endpoint, u.key, u.requests, 0, 1.0] for u in ROWS], NOON)
    since = {"since": "2025-11-25"}
    found = api.get("/api/v1/usage", params=since | {"by": "endpoint,key"}).json()
    assert [(i["endpoint"], i["key"], i["requests"]) for i in found["items"] if i["requests"]] == [
        ("a", "k1", 3),
        ("a", "k2", 3),
        ("b", "k1", 5),
    ]
    assert found["by"] == ["endpoint", "key"] and found["total"]["requests"] == 11
    later = api.get("/api/v1/usage", params={"since": "2025-11-26T00:00:00Z"}).json()
    assert later["total"]["requests"] == 2
    made = api.post("/api/v1/keys", json={"scope": ["deploy"], "endpoints": ["b"]}).json()
    mine = FORWARDED | {"authorization": f"Bearer {made['key']}"}
    assert api.get("/api/v1/usage", params=since, headers=mine).json()["total"]["requests"] == 5
    assert api.get("/api/v1/usage", params=since | {"endpoint": "a"}, headers=mine).status_code == 403
    text = api.get("/api/v1/usage.csv", params=since, headers=mine)
    assert text.headers["content-type"].startswith("text/csv")
    assert [row["endpoint"] for row in csv.DictReader(io.StringIO(text.text, newline=""))] == ["b"]


@pytest.mark.parametrize("query", [{"by": "week"}, {"since": "yesterday"}, {"since": "-5"}, {"until": "9" * 40}])
def test_a_question_that_makes_no_sense_is_told_so(api: TestClient, query: dict[str, str]) -> None:
    reply = api.get("/api/v1/usage", params=query)
    assert reply.status_code == 400 and reply.json()["error"]["hint"]


def test_metering_goes_on_after_an_error_and_says_it(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stopped, turns, pruned = threading.Event(), [], []

    def meter(now: float) -> None:
        turns.append(now)
        if len(turns) < 3:
            raise OSError("disk I/O error")
        if len(turns) == 5:
            stopped.set()

    monkeypatch.setattr(usage, "METER_EVERY_S", 0.001)
    monkeypatch.setattr(store, "meter", meter)
    monkeypatch.setattr(store, "prune_usage", pruned.append)
    thread = threading.Thread(target=usage.metering, args=(store, stopped))
    thread.start()
    thread.join(30)
    assert not thread.is_alive() and len(turns) == 5
    assert [record.message for record in caplog.records] == ["use was not counted"] * 2
    assert pruned == [turns[2]], "once an hour, and not with those that failed"
