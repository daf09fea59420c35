"""Who may call what: every route that changes something, with no key, a wrong one, and from a foreign page."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.exceptions import HTTPException
from starlette.types import Message

from control.conftest import World, control_of
from control.rows import build_revision
from puna.control.api import auth
from puna.control.api.app import create_app
from puna.control.api.auth import foreign
from puna.control.api.routing import Right, Route, declared
from puna.errors import TooLargeError

FORWARDED = {"x-puna-forwarded": "1"}


@pytest.fixture
def app(world: World) -> FastAPI:
    return create_app(control_of(world.store, world.home, base_url="http://127.0.0.1:8000"))


@pytest.fixture
def api(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def routes(app: FastAPI) -> list[tuple[str, str, Route]]:
    """Every method and path under /api/v1 that needs a key, with names filled in."""
    found = []
    for route in declared(app.routes):
        if route.needs is not Right.OPEN and route.path.startswith("/api/v1/"):
            filled = route.path_format.replace("{name}", "app").replace("{number}", "1")
            found += [(method, re.sub(r"\{[a-z_]+\}", "x", filled), route) for method in route.methods or ()]
    return found


def key(api: TestClient, scope: str, endpoints: list[str] | None = None) -> dict[str, str]:
    made = api.post("/api/v1/keys", json={"scope": [scope], "endpoints": endpoints}).json()
    return {"authorization": f"Bearer {made['key']}"}


def test_no_route_answers_a_forwarded_request_without_a_key_of_its_scope(app: FastAPI, api: TestClient) -> None:
    infer, scoped = key(api, "infer"), key(api, "deploy")
    listed = routes(app)
    assert len(listed) > 25
    got_through = []
    for method, path, route in listed:
        tries: list[tuple[int, dict[str, str]]] = [
            (401, {}),
            (401, {"authorization": "Bearer puna_00000000_" + "A" * 43}),
            (401, {"authorization": "Bearer "}),
            (401, {"authorization": "Basic YWRtaW46YWRtaW4="}),
            (403, infer),
        ]
        if route.needs is Right.ADMIN:
            tries.append((403, scoped))
        for expected, headers in tries:
            reply = api.request(method, path, headers=FORWARDED | headers, json={})
            if reply.status_code != expected:
                got_through.append((method, path, reply.status_code))
    assert got_through == []


def test_no_page_of_another_origin_changes_anything_whichever_way_it_comes(app: FastAPI, api: TestClient) -> None:
    admin = key(api, "admin")
    got_through = []
    for method, path, _ in routes(app):
        if method == "GET":
            continue
        for origin in ("http://evil.example", "null", "http://127.0.0.1:3000", "http://127.0.0.1:8000.evil.example"):
            for headers in ({}, FORWARDED | admin):
                reply = api.request(method, path, headers=headers | {"origin": origin}, json={})
                if reply.status_code != 403:
                    got_through.append((method, path, origin, reply.status_code))
    assert got_through == []
    assert api.post("/internal/load", headers={"origin": "http://evil.example"}, json={}).status_code == 403


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (None, False),
        ("http://127.0.0.1:8000", False),
        ("http://localhost:8000", False),
        ("http://[::1]:8000", False),
        ("http://localhost", True),
        ("http://localhost:abc", True),
        ("file://", True),
        ("null", True),
        ("http://puna.example:8000", True),
    ],
)
def test_which_origins_are_foreign(origin: str | None, expected: bool) -> None:
    assert foreign(origin, "http://127.0.0.1:8000") is expected


@pytest.mark.parametrize("base_url", ["http://0.0.0.0:8000", "http://[::]:8000"])
def test_who_listens_everywhere_knows_the_page_that_its_browser_asked(base_url: str) -> None:
    assert not foreign("http://10.0.0.7:8000", base_url, "10.0.0.7:8000")
    assert not foreign("http://localhost:8000", base_url, "127.0.0.1:8000")
    assert foreign("http://evil.example", base_url, "10.0.0.7:8000")
    assert foreign("http://10.0.0.7", base_url, "10.0.0.7:8000") and foreign("null", base_url, "10.0.0.7:8000")
    assert foreign("https://10.0.0.7:8000", base_url, "10.0.0.7:8000")
    # Who listens on one address has that one, whatever the request says of it.
    assert foreign("http://evil.example:8000", "http://127.0.0.1:8000", "evil.example:8000")


def test_a_public_name_is_its_own_origin_and_loopback_is_not() -> None:
    assert not foreign("https://puna.example", "https://puna.example")
    assert foreign("http://127.0.0.1", "https://puna.example")


@pytest.mark.parametrize("path", ["/internal/routes", "//internal/routes", "/INTERNAL/routes", "/internal"])
def test_nothing_internal_is_ever_forwarded(api: TestClient, path: str) -> None:
    admin = key(api, "admin")
    reply = api.request("GET", f"http://testserver{path}", headers=FORWARDED | admin)
    assert reply.status_code == 404


def test_a_key_for_one_endpoint_sees_and_changes_that_one_only(world: World, api: TestClient) -> None:
    world.deploy("mine")
    world.deploy("yours")
    mine = FORWARDED | key(api, "deploy", ["mine"])
    assert [e["name"] for e in api.get("/api/v1/endpoints", headers=mine).json()["items"]] == ["mine"]
    assert api.get("/api/v1/endpoints/mine", headers=mine).status_code == 200
    assert api.post("/api/v1/endpoints/mine/deactivate", headers=mine).status_code == 200
    for method, path in [("GET", ""), ("DELETE", ""), ("PATCH", ""), ("POST", "/rollback"), ("GET", "/logs")]:
        reply = api.request(method, f"/api/v1/endpoints/yours{path}", headers=mine, json={})
        assert reply.status_code == 403, (method, path)
    body = {"name": "yours", "source": "0" * 64}
    assert api.post("/api/v1/endpoints", headers=mine, json=body).status_code == 403
    build = build_revision(world.store, "yours", 2, 1.0)
    for method, path in [("GET", ""), ("GET", "/log"), ("POST", "/cancel")]:
        assert api.request(method, f"/api/v1/builds/{build.id}{path}", headers=mine).status_code == 403
    assert api.get("/api/v1/builds", headers=mine).json() == {"items": [], "next": None}


def test_a_revoked_key_opens_nothing_at_once(api: TestClient) -> None:
    made = api.post("/api/v1/keys", json={"scope": ["deploy"]}).json()
    headers = FORWARDED | {"authorization": f"Bearer {made['key']}"}
    assert api.get("/api/v1/endpoints", headers=headers).status_code == 200
    api.delete(f"/api/v1/keys/{made['id']}")
    assert api.get("/api/v1/endpoints", headers=headers).status_code == 401


def test_health_and_docs_are_open(api: TestClient) -> None:
    for path in ("/api/v1/health", "/api/docs", "/api/openapi.json"):
        assert api.get(path, headers=FORWARDED).status_code == 200


def test_where_no_route_is_a_key_for_all_endpoints_is_asked_for_all_the_same(api: TestClient) -> None:
    some, every = key(api, "deploy", ["mine"]), key(api, "deploy")
    for path in ("/api/v1/nothing", "/api/v1/endpoints/mine/nothing", "/api/v2/keys", "/rest/nothing", "/secrets"):
        found = [api.get(path, headers=FORWARDED | headers).status_code for headers in ({}, some, every)]
        assert found == [401, 403, 404], path
    # Another method of a path that there is: as the path's own, and then refused.
    assert api.put("/api/v1/keys", headers=FORWARDED | every).status_code == 403
    assert api.put("/api/v1/endpoints/mine", headers=FORWARDED | some).status_code == 405
    assert api.put("/api/v1/endpoints/yours", headers=FORWARDED | some).status_code == 403
    assert api.post("/internal/routes", headers=FORWARDED | every).status_code == 404


@pytest.mark.parametrize(
    ("sizes", "fits"), [([600, 424], True), ([1024], True), ([600, 425], False), ([0, 1025], False)]
)
def test_a_body_that_does_not_say_how_long_it_is_is_read_up_to_the_limit(
    sizes: list[int], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "MAX_BODY_BYTES", 1024)
    pieces = [{"type": "http.request", "body": b"x" * size, "more_body": True} for size in sizes]

    async def receive() -> Message:
        return pieces.pop(0)

    async def read() -> None:
        limited = auth._limited({"type": "http", "headers": []}, receive)
        for _ in sizes:
            await limited()

    if fits:
        asyncio.run(read())
        return
    with pytest.raises(HTTPException) as caught:
        asyncio.run(read())
    assert caught.value.status_code == 413


@pytest.mark.parametrize(("length", "fits"), [("1024", True), ("1025", False), ("many", True)])
def test_a_body_that_says_how_long_it_is_is_refused_unread(
    length: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "MAX_BODY_BYTES", 1024)
    scope = {"type": "http", "headers": [(b"content-length", length.encode())]}
    with contextlib.nullcontext() if fits else pytest.raises(TooLargeError):
        auth._limited(scope, receive=None)  # type: ignore[arg-type]
