"""Lists in pages: 210 of everything, each seen once and in one order; cursors that are none; and moments."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from control.conftest import World, control_of, fresh_store
from control.rows import add_revision, build_revision, save_endpoint
from puna.client import Client
from puna.config.settings import Settings
from puna.control.api import openapi, query
from puna.control.api.app import create_app
from puna.control.api.query import moment
from puna.control.domain.records import Delivery, RevisionSpec
from puna.control.domain.states import DeliveryState
from puna.control.store import deliveries
from puna.control.telemetry import log_files
from puna.control.telemetry.log_files import iso
from puna.errors import UsageError
from puna.home import Home

COUNT = 210  # more than a page has by default
NOW = 1_764_072_000.0  # 2025-11-25 12:00 UTC
REPORTS = {"get_metrics", "get_usage"}
"""Series and sums, not lists of things: as long as their time is, and of no use in parts."""


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, TestClient]]:
    """A home with 210 of everything that has a list."""
    from backends.memory import MemoryBackend

    home = Home(tmp_path_factory.mktemp("pages") / "home")
    store = fresh_store(home)
    world = World(store, home, MemoryBackend())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deliveries, "KEPT", COUNT)
        for number in range(COUNT):
            fill(world, number)
    with TestClient(create_app(control_of(store, home))) as api:
        for number in range(COUNT):
            api.post("/api/v1/keys", json={"scope": ["infer"], "name": f"k{number}"})
        yield world, api
    store.close()


def fill(world: World, number: int) -> None:
    """One more of everything; three of them at the same moment."""
    store, home, now = world.store, world.home, float(1000 + number // 3)
    save_endpoint(store, f"app-{number}", Settings(), now)
    add_revision(store, f"app-{number}", RevisionSpec("a" * 64, None, None, Settings()), now)
    build_revision(store, f"app-{number}", 1, now)
    store.add_event("app-0", "note", f"event {number}", now)
    store.add_runtime(f"rt-{number % 7}", f"{number:064x}", "build: {}", now)
    store.save_secret(f"s-{number}", ["A"], b"", now)
    store.add_delivery(Delivery("app-0", now, "poll", DeliveryState.IGNORED))
    (home.volumes / f"v-{number}").mkdir()
    (home.volumes / "v-0" / f"file {number} é.txt").write_text("x")
    with log_files.replica_log(home, "app-0", f"app-0-{number % 5}").open("a") as log:
        log.write(f"{iso(now)} stdout F line {number}\n")
    (home.runs / f"run-{number}").mkdir()
    (home.runs / f"run-{number}" / "recipe.json").write_text("{}")
    owner = {"name": f"acme/m-{number}", "next": 2, "aliases": {}, "versions": []}
    version = {"version": 1, "digest": f"{number:064x}", "created": "", "lineage": {}, "verification": None}
    path = home.registry / "acme" / f"m-{number}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(owner | {"versions": [version | {"kind": "model"}]}))


def listing() -> dict[str, Callable[[dict[str, Any]], Any]]:
    """Every list with what tells its items apart."""
    return {
        "/endpoints": lambda item: item["name"],
        "/endpoints/app-0/events": lambda item: item["id"],
        "/endpoints/app-0/events?order=newest": lambda item: item["id"],
        "/endpoints/app-0/deliveries": lambda item: item["id"],
        "/endpoints/app-0/logs/lines": lambda item: item["text"],
        "/builds": lambda item: item["id"],
        "/runtimes": lambda item: (item["name"], item["version"]),
        "/keys": lambda item: item["id"],
        "/secrets": lambda item: item["name"],
        "/volumes": lambda item: item["name"],
        "/volumes/v-0/entries": lambda item: item["path"],
        "/models": lambda item: item["name"],
        "/runs": lambda item: item["name"],
    }


def walk(api: TestClient, path: str, **query: Any) -> list[list[dict[str, Any]]]:
    """Every page of a list."""
    found = []
    while True:
        reply = api.get(f"/api/v1{path}", params=query)
        assert reply.status_code == 200, reply.text
        found.append(reply.json()["items"])
        if reply.json()["next"] is None:
            return found
        query["after"] = reply.json()["next"]


def test_every_list_of_the_document_is_tried_here(full: tuple[World, TestClient]) -> None:
    _, api = full
    tried = {path.partition("?")[0].replace("app-0", "{name}").replace("v-0", "{name}") for path in listing()}
    found = set()
    document = api.get("/api/openapi.json").json()
    for path, method, operation in openapi.operations(document):
        schema = operation["responses"].get("200", {}).get("content", {}).get("application/json", {}).get("schema", {})
        schema = document["components"]["schemas"].get(schema.get("$ref", "").rpartition("/")[2], schema)
        is_report = operation["operationId"] in REPORTS
        if method == "get" and "items" in schema.get("properties", {}) and not is_report:
            found.add(path.removeprefix("/api/v1"))
            named = {parameter["name"] for parameter in operation["parameters"]}
            assert {"limit", "after"} <= named and schema["required"] == ["items", "next"], path
    assert found == tried


@pytest.mark.parametrize("path", listing())
def test_each_item_comes_once_and_in_one_order(full: tuple[World, TestClient], path: str) -> None:
    _, api = full
    mark = listing()[path]
    default = walk(api, path)
    ids = [mark(item) for page in default for item in page]
    assert len(set(ids)) == len(ids) >= COUNT
    assert [len(page) for page in default][:-1] == [query.DEFAULT] * (len(ids) // query.DEFAULT)
    for limit in (99, len(ids), 1000):
        again = walk(api, path, limit=limit)
        assert [mark(item) for page in again for item in page] == ids
        assert all(len(page) <= limit for page in again) and len(again) == -(-len(ids) // limit)


def test_the_orders_are_as_told(full: tuple[World, TestClient]) -> None:
    _, api = full
    at = [build["created"] for page in walk(api, "/builds") for build in page]
    assert at == sorted(at, reverse=True)
    events = [event["id"] for page in walk(api, "/endpoints/app-0/events") for event in page]
    newest = [event["id"] for page in walk(api, "/endpoints/app-0/events", order="newest") for event in page]
    assert events == sorted(events) and newest == events[::-1]
    runtimes = [(item["name"], -item["version"]) for page in walk(api, "/runtimes") for item in page]
    assert runtimes == sorted(runtimes)


def test_a_page_stays_right_when_items_come_and_go(full: tuple[World, TestClient]) -> None:
    world, api = full
    first = api.get("/api/v1/secrets", params={"limit": 100}).json()
    world.store.delete_secret(first["items"][-1]["name"])  # the very one that the cursor names
    world.store.save_secret("a-before", ["A"], b"", 1.0)
    second = api.get("/api/v1/secrets", params={"limit": 100, "after": first["next"]}).json()
    names = [item["name"] for item in (*first["items"], *second["items"])]
    assert names == sorted(set(names)) and "a-before" not in names
    world.store.delete_secret("a-before")
    world.store.save_secret(first["items"][-1]["name"], ["A"], b"", 1.0)


def test_a_key_for_some_endpoints_gets_full_pages_of_its_own(full: tuple[World, TestClient]) -> None:
    world, api = full
    mine = [f"app-{number}" for number in range(0, COUNT, 4)]
    made = api.post("/api/v1/keys", json={"scope": ["deploy"], "endpoints": mine}).json()
    api.headers = {**api.headers, "x-puna-forwarded": "1", "authorization": f"Bearer {made['key']}"}
    try:
        for path, field in (("/endpoints", "name"), ("/builds", "subject")):
            found = walk(api, path, limit=20)
            assert [len(page) for page in found] == [20, 20, 13]
            assert sorted(item[field] for page in found for item in page) == sorted(mine)
    finally:
        for name in ("x-puna-forwarded", "authorization"):
            del api.headers[name]
        world.store.delete_key(made["id"])


@pytest.mark.parametrize("path", listing())
@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "99999999999999999999",
        "-1",
        "é",
        base64.urlsafe_b64encode(b"[]").decode(),
        base64.urlsafe_b64encode(b'{"a":1}').decode(),
        base64.urlsafe_b64encode(b"[[1]]").decode(),
        base64.urlsafe_b64encode(b'[NaN,"a"]').decode(),
        base64.urlsafe_b64encode(b'["\\ud800"]').decode(),
        base64.urlsafe_b64encode(b'[1,"\\ud800"]').decode(),
        base64.urlsafe_b64encode(b"[1e400]").decode(),
        base64.urlsafe_b64encode(b"[" * 700).decode(),
        base64.urlsafe_b64encode(b"[true]").decode(),
        base64.urlsafe_b64encode(b"[99999999999999999999]").decode(),
    ],
)
def test_a_cursor_that_is_none_is_refused(full: tuple[World, TestClient], path: str, cursor: str) -> None:
    _, api = full
    reply = api.get(f"/api/v1{path}", params={"after": cursor})
    assert reply.status_code == 400 and "next" in reply.json()["error"]["hint"], reply.text


@pytest.mark.parametrize("limit", [0, -1, 1001, "x", 10**30])
def test_a_limit_out_of_range_is_refused(full: tuple[World, TestClient], limit: Any) -> None:
    _, api = full
    reply = api.get("/api/v1/endpoints", params={"limit": limit})
    assert reply.status_code == 400 and "limit" in reply.json()["error"]["message"]


def test_the_client_gives_whole_lists(full: tuple[World, TestClient], monkeypatch: pytest.MonkeyPatch) -> None:
    world, api = full
    monkeypatch.setattr("puna.client.transport.PAGE", 200)
    client = Client(home=world.home, http=api)
    assert len({e["name"] for e in client.endpoints()}) == COUNT == len(client.volumes())
    builds = [build["created"] for build in client.builds()]
    assert builds == sorted(builds) and len(builds) == 2 * COUNT
    events = client.events("app-0")
    assert len(events) > COUNT and client.events("app-0", after=events[-2]["id"]) == events[-1:]


@pytest.mark.parametrize(
    ("text", "ago_s"),
    [
        ("90s", 90),
        ("1.5h", 5400),
        ("7d", 7 * 86400),
        ("2025-11-25", 43200),
        ("2025-11-25T11:00:00Z", 3600),
        ("2025-11-25T13:00:00+02:00", 3600),
        ("2025-11-25T11:59:59.370369921Z", 0.62963),
        ("1764071999.5", 0.5),
    ],
)
def test_what_a_moment_means(text: str, ago_s: float) -> None:
    assert NOW - moment(text, NOW) == pytest.approx(ago_s, abs=1e-5)


@pytest.mark.parametrize("text", ["", "soon", "-5", "7 days", "1e400", "99999999999999", "2025-13-01"])
def test_what_means_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no time"):
        moment(text, NOW)
