"""Ways round the check: paths spelt otherwise, what only gateways may ask, requests within requests, inference."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from security.conftest import Tally
from security.fort import YOURS, Fort, differences, standing

pytestmark = pytest.mark.process

INTERNAL = [
    *("/internal/routes", "//internal/routes", "///internal/load", "/internal", "/internal/", "/INTERNAL/routes"),
    *(
        "/%69nternal/routes",
        "/%2finternal/routes",
        "/%2f%2finternal/routes",
        "/./internal/routes",
        "/x/../internal/routes",
    ),
    *("/x/%2e%2e/internal/routes", "/%2e/internal/load", "/api/../internal/routes", "/api/v1/../../internal/routes"),
    *("/internal%2froutes", "/internal%00/routes", "/internal;x/routes", "/internal?x", "/internal/routes?since=-1"),
    *(
        "/%2569nternal/routes",
        "/internal/./routes",
        "/internal//routes",
        "/v2/../internal/routes",
        "/v1/../internal/load",
    ),
    *(
        "/v2/%2e%2e/internal/load",
        "/console/../internal/routes",
        "/console/%2e%2e/internal/routes",
        "\\internal\\routes",
    ),
]
YOURS_AT = [
    *("/api/v1/endpoints/yours", "//api/v1/endpoints/yours", "/api//v1/endpoints/yours", "/api/v1//endpoints/yours"),
    *(
        "/api/v1/endpoints//yours",
        "/api/v1/endpoints/yours/",
        "/api/v1/endpoints/%79ours",
        "/api/v1/endpoints/%2579ours",
    ),
    *("/api/v1/endpoints/mine/../yours", "/api/v1/endpoints/mine/%2e%2e/yours", "/api/v1/endpoints/mine%2f..%2fyours"),
    *(
        "/api/v1/endpoints/./yours",
        "/api/v1/endpoints/%2e/yours",
        "/api/v1/x/../endpoints/yours",
        "/API/v1/endpoints/yours",
    ),
    *(
        "/api/V1/endpoints/yours",
        "/api/v1/Endpoints/yours",
        "/api/v1/endpoints;x/yours",
        "/api/v1/endpoints/yours;mine",
    ),
    *(
        "/api/v1/endpoints/yours%00",
        "/api/v1/endpoints/yours%0a",
        "/api/v1/endpoints/yours%20",
        "/api/v1/endpoints/yours?mine",
    ),
    *(
        "/%61pi/v1/endpoints/yours",
        "/api%2fv1%2fendpoints%2fyours",
        "/./api/v1/endpoints/yours",
        "/x/../api/v1/endpoints/yours",
    ),
    *(
        "/console/../api/v1/endpoints/yours",
        "/console/%2e%2e/api/v1/endpoints/yours",
        "/api/docs/../v1/endpoints/yours",
    ),
    *("/api/v1/health/../endpoints/yours", "/api/v1/hooks/../endpoints/yours", "/api/v1/hooks/x%2f..%2fendpoints"),
    *("/api/v1/console/sessions/../../endpoints/yours", "http://127.0.0.1/api/v1/endpoints/yours", "*"),
]


@pytest.fixture(scope="module")
def fort(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fort]:
    with standing(tmp_path_factory.mktemp("f")) as made:
        yield made


def raw(fort: Fort, text: bytes) -> bytes:
    """What the gateway answers to exactly these bytes."""
    with socket.create_connection(("127.0.0.1", fort.port), timeout=10) as client:
        client.sendall(text)
        client.shutdown(socket.SHUT_WR)
        said = b""
        while piece := client.recv(1 << 16):
            said += piece
        return said


def request(fort: Fort, method: str, target: str, key: str = "", body: bytes = b"", more: bytes = b"") -> bytes:
    authorization = f"Authorization: Bearer {fort.keys[key]}\r\n" if key else ""
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{authorization}"
    return raw(fort, head.encode() + more + b"Content-Length: %d\r\n\r\n" % len(body) + body)


def status(said: bytes) -> int:
    return int(said.split()[1]) if said.startswith(b"HTTP/1.1 ") else 400


def test_nothing_that_is_for_gateways_is_reached_through_one(fort: Fort, tally: Tally) -> None:
    load = json.dumps({"gateway": "evil", "at": time.time(), "endpoints": {"yours": {"queued": 99}}}).encode()
    for path in INTERNAL:
        for method, body in (("GET", b""), ("POST", load), ("HEAD", b""), ("OPTIONS", b"")):
            for key in ("", "admin"):
                said = request(fort, method, path, key, body)
                leaked = b"sha256" in said or b"salt" in said
                tally(f"{method} {path} {key}: {status(said)}", refused=status(said) >= 400 and not leaked)
    for more in (b"x-puna-forwarded: \r\n", b"Connection: x-puna-forwarded\r\nx-puna-forwarded: 1\r\n"):
        said = request(fort, "GET", "/internal/routes", "admin", more=more)
        tally(f"{more!r}", refused=status(said) >= 400)
    assert fort.app.state.control.loads.endpoint("yours", time.time()).queued == 0


@pytest.mark.parametrize("key", ["", "infer", "deploy of mine", "admin of mine", "expired"])
def test_no_spelling_of_a_path_reaches_another_owners_endpoint(key: str, fort: Fort, tally: Tally) -> None:
    before = fort.dump()
    for path in YOURS_AT:
        for method in ("GET", "DELETE", "PATCH", "POST"):
            target = f"{path}/deactivate" if method == "POST" and "?" not in path else path
            said = request(fort, method, target, key, b'{"max_replica": 9}' if method == "PATCH" else b"")
            tally(
                f"{method} {target} {key}: {status(said)}", refused=status(said) >= 300 and YOURS.encode() not in said
            )
    assert differences(before, fort.dump()) == []


def test_no_request_hides_within_another(fort: Fort, tally: Tally) -> None:
    before = fort.dump()
    inner = b"DELETE /api/v1/endpoints/yours HTTP/1.1\r\nHost: x\r\nx-puna-forwarded: \r\nContent-Length: 0\r\n\r\n"
    inner2 = b"DELETE /internal/x HTTP/1.1\r\nHost: x\r\n\r\n"
    head = (
        b"POST /api/v1/lint/runtime HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
        + fort.keys["deploy"].encode()
        + b"\r\n"
    )
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner)
    tries = {
        "length and chunks": head + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner,
        "chunks and length": head + b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n" + inner,
        "two lengths": head + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner,
        "a list of lengths": head + b"Content-Length: 0, %d\r\n\r\n" % len(inner) + inner,
        "a length with a sign": head + b"Content-Length: +%d\r\n\r\n" % len(inner) + inner,
        "a length in hex": head + b"Content-Length: 0x%x\r\n\r\n" % len(inner) + inner,
        "no colon": head + b"Transfer-Encoding chunked\r\n\r\n" + chunk + inner,
        "a space before the colon": head + b"Transfer-Encoding : chunked\r\nContent-Length: 0\r\n\r\n" + inner,
        "a folded line": head + b"X: y\r\n Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n" + inner,
        "chunked twice": head + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + chunk + inner,
        "another coding": head + b"Transfer-Encoding: identity, chunked\r\n\r\n" + chunk + inner,
        "a bare line feed": head + b"X: y\nContent-Length: 0\r\n\r\n" + inner,
        "a bare return": head + b"X: y\rTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n" + inner,
        "a chunk that lies": head + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n" + inner,
        "a chunk of 2^64": head + b"Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n" + inner,
        "a trailer": head
        + b"Transfer-Encoding: chunked\r\n\r\n0\r\nx-puna-forwarded: \r\nAuthorization: Bearer x\r\n\r\n",
        "a request in a path": b"GET /%20HTTP/1.1%0d%0a"
        + inner2.replace(b"\r\n", b"%0d%0a")
        + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        "an upgrade": head + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n" + inner,
        "a websocket": b"GET /api/v1/endpoints HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        "the old protocol": b"DELETE /api/v1/endpoints/yours\r\n\r\n",
        "a tunnel": b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: x\r\n\r\n",
        "an open proxy": b"GET http://169.254.169.254/latest/meta-data HTTP/1.1\r\nHost: x\r\n\r\n",
    }
    for name, text in tries.items():
        said = raw(fort, text)
        second = said.count(b"HTTP/1.1 2")
        tally(f"{name}: {status(said)}", refused=second <= (1 if text.startswith(head) else 0))
    assert differences(before, fort.dump()) == []


def test_no_key_of_another_endpoint_is_answered_by_an_app(fort: Fort, tally: Tally) -> None:
    body: dict[str, Any] = {"inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["hi"]}]}
    chat = {"model": "yours", "messages": [{"role": "user", "content": "hi"}], "prompt": "hi"}
    paths = [
        f"/v2/models/{name}{version}{verb}"
        for name in ("yours", "%79ours", "yours/", "mine/../yours", "yours%00")
        for version in ("", "/versions/1")
        for verb in ("/infer", "/generate_stream", "", "/ready")
    ]
    keys = ["infer of mine", "deploy of mine", "admin of mine", "deploy of nothing", "expired", "revoked", "never made"]
    keys += ["another's secret", "cut short", "in capitals", "its hash"]
    for path in paths:
        for name in ["", *keys]:
            headers = fort.bearer(name) if name else {}
            method = "POST" if path.endswith(("/infer", "/generate_stream")) else "GET"
            reply = fort.call.request(method, path, json=body if method == "POST" else None, headers=headers)
            tally(f"{method} {path} {name}: {reply.status_code}", refused=reply.status_code in (400, 401, 403, 404))
    for model in ("yours", "yours:x", "YOURS", "yours ", "acme/none", ["yours"], {"a": 1}, None, ""):
        for path in ("/v1/chat/completions", "/v1/completions"):
            for name in ["", *keys]:
                reply = fort.call.post(path, json=chat | {"model": model}, headers=fort.bearer(name) if name else {})
                # An adapter's name may be told not to exist: whether another's endpoint serves it, it is said alike.
                codes = (400, 401, 403, 404) if model == "acme/none" else (400, 401, 403)
                told = reply.text.replace(str(model), "")
                refused = reply.status_code in codes and "yours" not in told.lower()
                tally(f"{path} {model!r} {name}: {reply.status_code}", refused=refused)
    for name in keys[:4]:
        listed = fort.call.get("/v1/models", headers=fort.bearer(name)).text
        tally(f"/v1/models of {name}", refused="yours" not in listed)
        for path in ("/v1/models/yours", "/metrics"):
            reply = fort.call.get(path, headers=fort.bearer(name))
            tally(f"{path} {name}", refused=reply.status_code in (403, 404))
    for name in ["", "expired", "revoked", "infer of mine"]:
        reply = fort.call.get("/metrics", headers=fort.bearer(name) if name else {})
        tally(f"/metrics {name}: {reply.status_code}", refused=reply.status_code in (401, 403))


def test_no_body_fills_the_memory(fort: Fort, tally: Tally) -> None:
    before = fort.dump()

    def pieces() -> Iterator[bytes]:
        for _ in range(64):
            yield b" " * (1 << 18)

    for path in (
        "/api/v1/console/sessions",
        "/api/v1/keys",
        "/api/v1/runtimes",
        "/api/v1/endpoints",
        "/api/v1/lint/runtime",
    ):
        for name, content in (("a stated length", b" " * (16 << 20)), ("pieces", pieces())):
            headers = fort.bearer("admin") | {"content-type": "application/json"}
            reply = fort.call.post(path, content=content, headers=headers)
            tally(f"{path}: 16 MiB by {name}: {reply.status_code}", refused=reply.status_code == 413)
    nested = b'{"name": "mine", "source": ' + b"[" * 200_000
    for path in ("/api/v1/endpoints", "/api/v1/runtimes", "/api/v1/keys"):
        reply = fort.call.post(
            path, content=nested, headers=fort.bearer("admin") | {"content-type": "application/json"}
        )
        tally(f"{path}: nested: {reply.status_code}", refused=reply.status_code in (400, 413))
    assert differences(before, fort.dump()) == []
