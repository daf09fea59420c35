"""A call that comes again with its idempotency key: answered from what is kept, refused when it is another call."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from control.conftest import World, control_of, make_source
from puna.control.api import idempotency
from puna.control.api.app import create_app
from puna.control.api.idempotency import LIVES_S, REPLAYED

FORWARDED = {"x-puna-forwarded": "1"}
KEY = {"idempotency-key": "5f1c0a9e-first"}


class Clock:
    """A clock that tests move."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def app(world: World, clock: Clock) -> FastAPI:
    control = control_of(world.store, world.home, world.loads, clock=clock)
    return create_app(control)


@pytest.fixture
def api(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def scope(method: str, path: str, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    """A request as a server hands it to an application."""
    rest = {"headers": headers, "scheme": "http", "server": ("t", 80), "client": None, "root_path": ""}
    return {"type": "http", "http_version": "1.1", "method": method, "path": path, "query_string": b""} | rest


def rows(world: World) -> int:
    with world.store.engine.connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM replies")).scalar_one())


def test_the_same_call_again_is_answered_and_not_done(api: TestClient, world: World) -> None:
    body = {"name": "ci", "scope": ["infer"]}
    first, again = (api.post("/api/v1/keys", json=body, headers=KEY) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.content == first.content and again.headers["content-type"] == first.headers["content-type"]
    assert REPLAYED not in first.headers and again.headers[REPLAYED] == "true"
    assert [key.id for key in world.store.keys()] == [first.json()["id"]]
    assert api.post("/api/v1/keys", json=body).json()["id"] != first.json()["id"]


def test_a_call_without_a_body_is_kept_too(api: TestClient, world: World) -> None:
    world.deploy(min_replica=1)
    world.settle(10)
    first, again = (api.post("/api/v1/endpoints/app/rebuild", headers=KEY) for _ in range(2))
    assert first.status_code == 202 and again.json() == first.json()
    assert [r.number for r in world.store.revisions("app")] == [2, 1]


def test_each_creating_route_answers_again(api: TestClient, world: World, app: FastAPI) -> None:
    source = make_source(world.home)
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/endpoints", {"json": {"name": "app", "source": source.digest}}),
        ("POST", "/endpoints/app/rebuild", {}),
        ("PATCH", "/endpoints/app", {"json": {"max_replica": 3}}),
        ("POST", "/runtimes", {"json": {"name": "rt", "yaml": "build: {}\n"}}),
        ("POST", "/secrets", {"json": {"name": "hub", "values": {"A": "1"}}}),
        ("POST", "/volumes", {"json": {"name": "data"}}),
        ("PUT", "/volumes/data/files/a/b.bin", {"content": b"x" * 300_000}),
        ("DELETE", "/volumes/data/files/a", {}),
        ("POST", "/endpoints/app/rollback", {"json": {}}),  # 409: a refusal is an answer as well
    ]
    for number, (method, path, more) in enumerate(calls):
        for turn in range(2):
            reply = api.request(method, f"/api/v1{path}", headers={"idempotency-key": f"k{number}"}, **more)
            if not turn:
                first = reply
        assert reply.headers.get(REPLAYED) == "true" and first.status_code < 500, (path, reply.text)
        assert (reply.status_code, reply.content) == (first.status_code, first.content), path
    assert len(world.store.revisions("app")) == 2


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/volumes", {"name": "other"}, "with another body"),
        ("/volumes?x=1", {"name": "data"}, "with another body"),
        ("/secrets", {"name": "data", "values": {}}, "for POST /api/v1/volumes"),
    ],
)
def test_another_call_under_the_same_key_is_refused(
    api: TestClient, world: World, path: str, body: dict[str, Any], said: str
) -> None:
    assert api.post("/api/v1/volumes", json={"name": "data"}, headers=KEY).status_code == 201
    refused = api.post(f"/api/v1{path}", json=body, headers=KEY)
    error = refused.json()["error"]
    assert refused.status_code == 422 and error["code"] == "key_reused"
    assert said in error["message"] and KEY["idempotency-key"] in error["message"]
    assert world.store.secrets() == {} and not (world.home.volumes / "other").exists()


def test_callers_do_not_share_keys(api: TestClient) -> None:
    keys = [api.post("/api/v1/keys", json={"scope": ["admin"]}).json()["key"] for _ in range(2)]
    made = []
    for key in keys:
        headers = FORWARDED | KEY | {"authorization": f"Bearer {key}"}
        made.append(api.post("/api/v1/keys", json={"scope": ["infer"]}, headers=headers))
    assert [reply.status_code for reply in made] == [201, 201] and made[0].json()["id"] != made[1].json()["id"]
    assert REPLAYED not in made[1].headers


def test_a_link_that_opens_the_console_works_once_whatever_key_comes_with_it(api: TestClient) -> None:
    link = api.post("/api/v1/console/links", headers=KEY).json()["url"]
    body = {"token": link.rpartition("/")[2]}
    first, again = (api.post("/api/v1/console/sessions", json=body, headers=FORWARDED | KEY) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 401)


def test_a_call_in_flight_is_not_done_twice(api: TestClient, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    began, go_on, kept = threading.Event(), threading.Event(), world.store.save_secret

    def slow(*values: Any) -> None:
        began.set()
        assert go_on.wait(20)
        kept(*values)

    monkeypatch.setattr(world.store, "save_secret", slow)
    body = {"name": "hub", "values": {"A": "1"}}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: api.post("/api/v1/secrets", json=body, headers=KEY))
        assert began.wait(20)
        second = api.post("/api/v1/secrets", json=body, headers=KEY)
        go_on.set()
        assert first.result().status_code == 201
    assert second.status_code == 409 and second.json()["error"]["code"] == "in_flight"
    assert second.headers["retry-after"] == "1"
    assert api.post("/api/v1/secrets", json=body, headers=KEY).headers[REPLAYED] == "true"


def test_what_failed_here_is_done_again(api: TestClient, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(world.store, "save_secret", lambda *_: 1 / 0)
        failed = api.post("/api/v1/secrets", json={"name": "hub", "values": {}}, headers=KEY)
    assert failed.status_code == 500 and rows(world) == 0
    done = api.post("/api/v1/secrets", json={"name": "hub", "values": {}}, headers=KEY)
    assert done.status_code == 201 and REPLAYED not in done.headers


def test_a_refused_body_that_was_not_read_is_not_kept(app: FastAPI, world: World) -> None:
    left, statuses = 64, []

    async def receive() -> dict[str, Any]:
        nonlocal left
        left -= 1
        return {"type": "http.request", "body": b"x" * 65_536, "more_body": left > 0}

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    headers = [(b"idempotency-key", b"k"), (b"transfer-encoding", b"chunked")]
    asyncio.run(app(scope("PUT", "/api/v1/volumes/none/files/a", headers), receive, send))
    assert statuses[0] == 404 and rows(world) == 0 and 64 - left == idempotency.REST_BYTES // 65_536 + 1


def test_replies_are_kept_for_a_day_and_then_pruned(api: TestClient, world: World, clock: Clock, app: FastAPI) -> None:
    body = {"scope": ["infer"]}
    first = api.post("/api/v1/keys", json=body, headers=KEY).json()
    clock.now += LIVES_S - 1
    assert api.post("/api/v1/keys", json=body, headers=KEY).json() == first
    clock.now += 2
    later = api.post("/api/v1/keys", json=body, headers=KEY)
    assert later.json()["id"] != first["id"] and REPLAYED not in later.headers and rows(world) == 1
    clock.now += LIVES_S + 1
    api.post("/api/v1/volumes", json={"name": "data"}, headers={"idempotency-key": "other"})
    assert rows(world) == 1
    with TestClient(create_app(replace(app.state.control, clock=lambda: 1e12))) as api:
        api.get("/api/v1/health")
    assert rows(world) == 0


def test_no_key_and_no_secret_lies_in_the_database_in_clear(api: TestClient, world: World, tmp_path: Path) -> None:
    made = api.post("/api/v1/keys", json={"scope": ["infer"]}, headers=KEY).json()["key"]
    api.post(
        "/api/v1/secrets", json={"name": "hub", "values": {"T": "hf_very_secret"}}, headers={"idempotency-key": "s"}
    )
    assert rows(world) == 2
    world.store.close()
    read = 0
    for file in world.home.root.rglob("*"):
        if file.is_file() and file != world.home.key:
            content, read = file.read_bytes(), read + 1
            for secret in (made, made.split("_", 2)[2], "hf_very_secret", KEY["idempotency-key"]):
                assert secret.encode() not in content, file
    assert read


@pytest.mark.parametrize("text", ["", " ", "a b", "x" * 256, "é"])
def test_a_key_that_is_none_is_refused(api: TestClient, text: str) -> None:
    headers = {"idempotency-key": text.encode("latin-1")}
    reply = api.request("POST", "/api/v1/volumes", json={"name": "data"}, headers=headers)  # type: ignore[arg-type]
    assert reply.status_code == 400 and "Idempotency-Key" in reply.json()["error"]["message"]


def test_reading_is_never_answered_from_what_is_kept(api: TestClient, world: World) -> None:
    for _ in range(2):
        assert REPLAYED not in api.get("/api/v1/endpoints", headers=KEY).headers
    assert rows(world) == 0


def test_a_reply_stands_before_it_is_sent_though_the_client_has_gone(
    app: FastAPI, world: World, api: TestClient
) -> None:
    body = b'{"name": "data"}'
    headers = [(b"idempotency-key", b"gone"), (b"content-type", b"application/json"), (b"content-length", b"16")]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(_: Any) -> None:
        raise OSError("the client has gone")

    with pytest.raises(OSError, match="has gone"):
        asyncio.run(app(scope("POST", "/api/v1/volumes", headers), receive, send))
    again = api.post("/api/v1/volumes", content=body, headers=dict([*headers[1:2], headers[0]]))
    assert again.status_code == 201 and again.headers[REPLAYED] == "true" and again.json()["created"]
