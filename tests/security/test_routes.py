"""Every route that changes something: without a key, with a wrong one, another owner's, and from a foreign page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from security.conftest import Tally
from security.fort import Fort, differences, standing
from security.routes import OPEN, Example, examples, filled, mutating

pytestmark = pytest.mark.process

REFUSED = {401, 403}
WRONG = ["infer", "infer of mine", "expired", "revoked", "never made", "another's secret", "cut short", "in capitals"]
WRONG += ["its hash"]
HEADERS: dict[str, dict[str, str]] = {
    "no key": {},
    "an empty key": {"authorization": ""},
    "an empty bearer": {"authorization": "Bearer"},
    "basic": {"authorization": "Basic YWRtaW46YWRtaW4="},
    "the caller's own mark": {"x-puna-forwarded": "0"},
    "an empty mark": {"x-puna-forwarded": ""},
    "a mark to be dropped": {"connection": "x-puna-forwarded, close", "x-puna-forwarded": "1"},
    "an underscored mark": {"x_puna_forwarded": "", "X-Puna_Forwarded": "0"},
    "another address": {"x-forwarded-for": "127.0.0.1", "x-real-ip": "127.0.0.1", "forwarded": "for=127.0.0.1"},
    "another host": {"host": "localhost", "x-forwarded-host": "localhost"},
    "another method": {"x-http-method-override": "GET", "x-method-override": "GET"},
    "another path": {"x-original-url": "/api/v1/health", "x-rewrite-url": "/api/v1/health"},
}
ORIGINS = [
    *("http://evil.example", "null", "", "http://127.0.0.1:3000", "http://127.0.0.1", "https://127.0.0.1:8000"),
    *("http://127.0.0.1:8000.evil.example", "http://evil.example:8000", "http://a.127.0.0.1:8000", "file://"),
    *("http://127.0.0.1:8000@evil.example", "http://localhost:8001", "https://localhost:8000", "http://[::1]:80"),
    *("http://127.0.0.2:8000", "http://0.0.0.0:8000", "http://2130706433:8000", "http://[::1", "http://x:port"),
    *("chrome-extension://abc", "moz-extension://abc", "data:", "http://localhost.:8000", "ws://127.0.0.1:8000"),
]


@pytest.fixture(scope="module")
def fort(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fort]:
    with standing(tmp_path_factory.mktemp("f")) as made:
        yield made


def send(client: httpx.Client, method: str, path: str, example: Example, headers: dict[str, str]) -> httpx.Response:
    return client.request(method, path, json=example.json, content=example.content, headers=headers)


def test_every_route_that_changes_something_has_an_example_or_a_reason(fort: Fort) -> None:
    known = set(examples(fort)) | set(OPEN)
    missing = [f"{method} {path}" for method, path in mutating(fort.app) if (method, path) not in known]
    assert missing == [], "add it to tests/security/routes.py"
    assert len(mutating(fort.app)) >= 30


def attacks(fort: Fort) -> Iterator[tuple[str, str, Example]]:
    known = examples(fort)
    for method, path in mutating(fort.app):
        if (method, path) in known:
            example = known[method, path]
            yield method, filled(path, example.names), example


def test_nobody_without_a_right_key_changes_anything(fort: Fort, tally: Tally) -> None:
    before = fort.dump()
    for method, path, example in attacks(fort):
        tries = {name: HEADERS[name] for name in HEADERS} | {name: fort.bearer(name) for name in WRONG}
        if example.admin or example.not_by_key:
            tries["deploy"] = fort.bearer("deploy")
        if example.not_by_key:
            tries["admin"] = fort.bearer("admin")
        for name, headers in tries.items():
            reply = send(fort.call, method, path, example, headers)
            tally(f"{method} {path}: {name}: {reply.status_code}", refused=reply.status_code in REFUSED)
    assert differences(before, fort.dump()) == []


def test_no_key_for_other_endpoints_changes_anything(fort: Fort, tally: Tally) -> None:
    before = fort.dump()
    for method, path, example in attacks(fort):
        if example.ours:
            continue
        for name in ("deploy of mine", "admin of mine", "deploy of nothing"):
            reply = send(fort.call, method, path, example, fort.bearer(name))
            tally(f"{method} {path}: {name}: {reply.status_code}", refused=reply.status_code in REFUSED)
    assert differences(before, fort.dump()) == []


def test_no_key_reaches_another_owners_things_through_its_own_endpoint(fort: Fort, tally: Tally) -> None:
    mine, before = fort.bearer("deploy of mine"), fort.dump()
    git = {"url": "https://evil.example/a/b", "credential": "theirs"}
    tries: list[tuple[str, str, Any]] = [
        ("POST", "/endpoints", {"name": "mine", "source": fort.source, "settings": {"secrets": ["unused"]}}),
        ("POST", "/endpoints", {"name": "mine", "source": fort.source, "settings": {"secrets": ["theirs"]}}),
        ("POST", "/endpoints", {"name": "mine", "source": fort.source, "settings": {"volumes": {"vault": ""}}}),
        ("POST", "/endpoints", {"name": "mine", "git": git}),
        ("POST", "/endpoints", {"name": "", "git": git}),
        (
            "POST",
            "/endpoints",
            {"name": "mine", "git": git | {"url": "https://github.com/x/y", "credential": "unused"}},
        ),
        ("POST", "/endpoints", {"name": "mine", "model": {"name": "acme/none", "credential": "unused"}}),
        ("PATCH", "/endpoints/mine", {"secrets": ["unused"]}),
        ("PATCH", "/endpoints/mine", {"secrets": ["theirs"]}),
        ("PATCH", "/endpoints/mine", {"volumes": {"vault": "/mnt/x"}}),
        ("PATCH", "/endpoints/mine", {"git": git}),
        ("PATCH", "/endpoints/mine", {"git": {"url": "https://evil.example/a/b"}}),
        ("PATCH", "/endpoints/mine", {"git": {"credential": "unused"}}),
        ("POST", "/sources/from-git", git),
        ("POST", f"/endpoints/mine/deliveries/{fort.delivery}/replay", None),
        ("POST", f"/builds/{fort.runtime_build}/cancel", None),
        ("POST", f"/builds/{fort.build}/cancel", None),
        ("POST", "/keys", {"scope": ["infer"], "endpoints": ["mine"]}),
    ]
    for method, path, body in tries:
        reply = fort.call.request(method, f"/api/v1{path}", json=body, headers=mine)
        status = reply.status_code
        tally(f"{method} {path} {body}: {status}", refused=status in REFUSED or (status == 404 and "replay" in path))
    assert differences(before, fort.dump()) == []


def test_no_page_of_another_origin_changes_anything_whichever_way_it_comes(fort: Fort, tally: Tally) -> None:
    before = fort.dump()
    for method, path, example in attacks(fort):
        for origin in ORIGINS:
            for name, client, key in (("gateway", fort.call, fort.bearer("admin")), ("socket", fort.local, {})):
                reply = send(client, method, path, example, key | {"origin": origin})
                tally(f"{method} {path}: origin {origin!r} by the {name}", refused=reply.status_code == 403)
    for path in (path for _, path in OPEN):
        url = path.replace("{name}", "yours")
        for origin in ORIGINS:
            reply = fort.local.post(url, json={}, headers={"origin": origin})
            tally(f"POST {url}: origin {origin!r}", refused=reply.status_code == 403)
    assert differences(before, fort.dump()) == []


def test_two_origins_or_two_keys_are_not_better_than_one(fort: Fort, tally: Tally) -> None:
    before = fort.dump()
    for method, path, example in attacks(fort):
        twice = [("origin", "http://127.0.0.1:8000"), ("origin", "http://evil.example"), *fort.bearer("admin").items()]
        reply = fort.call.request(method, path, json=example.json, content=example.content, headers=twice)
        tally(f"{method} {path}: a second origin", refused=reply.status_code == 403)
        for first in ("Bearer x", "", f"Bearer {fort.keys['infer']}"):
            two = [("authorization", first), ("authorization", f"Bearer {fort.keys['admin']}")]
            reply = fort.call.request(method, path, json=example.json, content=example.content, headers=two)
            tally(f"{method} {path}: {first[:8]!r} before the right key", refused=reply.status_code in REFUSED)
    assert differences(before, fort.dump()) == []


def test_with_the_right_key_each_example_does_something(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What was refused above was refused for its key, and not because it made no sense."""
    odd = []
    with standing(tmp_path_factory.mktemp("f")) as fresh:
        # What deletes comes last, an endpoint with all that belongs to it at the very end.
        for method, path, example in sorted(attacks(fresh), key=lambda a: (a[0] == "DELETE", "/endpoints/" in a[1])):
            client, key = (fresh.local, {}) if example.not_by_key else (fresh.call, fresh.bearer("admin"))
            reply = send(client, method, path, example, key)
            # 404: what it needs is nothing that a fort has; 507: nobody fetches repositories or models here.
            if not (reply.status_code < 300 or reply.status_code in (404, 409, 507)):
                odd.append(f"{method} {path} {reply.status_code} {reply.text[:200]}")
    assert odd == []


def test_a_key_that_is_revoked_or_expires_opens_nothing_at_once(fort: Fort, tally: Tally) -> None:
    made = fort.call.post("/api/v1/keys", json={"scope": ["deploy"]}, headers=fort.bearer("admin")).json()
    headers = {"authorization": f"Bearer {made['key']}"}
    assert fort.call.post("/api/v1/lint/runtime", json={"yaml": ""}, headers=headers).status_code == 200
    fort.call.delete(f"/api/v1/keys/{made['id']}", headers=fort.bearer("admin"))
    reply = fort.call.post("/api/v1/lint/runtime", json={"yaml": ""}, headers=headers)
    tally("a revoked key, a moment later", refused=reply.status_code == 401)
    made = fort.call.post("/api/v1/keys", json={"scope": ["admin"], "expires_s": 0.2}, headers=fort.bearer("admin"))
    time.sleep(0.3)
    headers = {"authorization": f"Bearer {made.json()['key']}"}
    tally("an expired key", refused=fort.call.get("/api/v1/keys", headers=headers).status_code == 401)


def test_an_answer_that_is_kept_for_one_key_is_for_no_other(fort: Fort, tally: Tally) -> None:
    again = {"idempotency-key": "made-once"}
    first = fort.call.post("/api/v1/keys", json={"scope": ["admin"]}, headers=fort.bearer("admin") | again)
    assert first.status_code == 201
    for name in ("deploy", "deploy of mine", "infer", "revoked", "expired", "admin of mine"):
        reply = fort.call.post("/api/v1/keys", json={"scope": ["admin"]}, headers=fort.bearer(name) | again)
        tally(f"{name}: the kept answer", refused=first.json()["key"] not in reply.text)
    reply = fort.call.post("/api/v1/keys", json={"scope": ["admin"]}, headers=again)
    tally("no key: the kept answer", refused=reply.status_code == 401)
    reply = fort.call.post("/api/v1/keys", json={"scope": ["admin"]}, headers=fort.bearer("admin") | again)
    assert reply.json() == first.json()
