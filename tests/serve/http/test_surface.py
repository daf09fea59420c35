"""What callers, probes, proxies and pages see around inference: methods, versions, encodings, health, silence, CORS."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from puna.serve.http import delivery, health
from puna.worker import protocol
from serve.conftest import StubWorker, until
from serve.test_gateway import INFER, KEY, World, story

pytestmark = pytest.mark.process

CHAT = {"model": "e", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("path", "method", "allowed"),
    [
        (INFER, "GET", "POST, OPTIONS"),
        (INFER, "DELETE", "POST, OPTIONS"),
        ("/v2/models/e/generate_stream", "PUT", "POST, OPTIONS"),
        ("/v2/models/e", "POST", "GET, HEAD, OPTIONS"),
        ("/v2/health/live", "POST", "GET, HEAD, OPTIONS"),
        ("/v2", "DELETE", "GET, HEAD, OPTIONS"),
        ("/metrics", "POST", "GET, HEAD, OPTIONS"),
        ("/health", "PATCH", "GET, HEAD, OPTIONS"),
        ("/v1/models", "POST", "GET, HEAD, OPTIONS"),
        ("/v1/chat/completions", "GET", "POST, OPTIONS"),
    ],
)
def test_a_wrong_method_is_405_and_says_which_are_right(sockets: Path, path: str, method: str, allowed: str) -> None:
    async def play(world: World) -> None:
        await world.serve()
        refused = await world.client.request(method, path, headers=KEY)
        assert (refused.status_code, refused.headers["allow"]) == (405, allowed), refused.text
        assert "error" in refused.json()
        asked = await world.client.request("OPTIONS", path)  # browsers and load balancers ask without a key
        assert (asked.status_code, asked.headers["allow"], asked.content) == (204, allowed, b"")

    story(sockets, play)


@pytest.mark.parametrize(
    "path", ["/v1/", "/v1/x", "/v1/../internal/load", "/v2/x", "/v2/../internal/load", "/v2/models"]
)
def test_an_address_that_is_not_there_takes_no_method_either(sockets: Path, path: str) -> None:
    async def play(world: World) -> None:
        await world.serve()
        for method in ("OPTIONS", "GET", "POST"):
            reply = await world.client.request(method, path, headers=KEY)
            assert (reply.status_code, "allow" in reply.headers) == (404, False), (method, reply.text)
        assert (await world.client.request("OPTIONS", path)).status_code in (401, 404)

    story(sockets, play)


def test_head_is_answered_wherever_get_is_without_a_body(sockets: Path) -> None:
    async def play(world: World) -> None:
        await world.serve()
        for path in (
            "/v2",
            "/v2/models/e",
            "/v2/models/e/ready",
            "/v2/health/ready",
            "/v1/models",
            "/health",
            "/metrics",
        ):
            head, get = [await world.client.request(method, path, headers=KEY) for method in ("HEAD", "GET")]
            assert (head.status_code, head.content) == (get.status_code, b""), path
            assert head.status_code == 200

    story(sockets, play)


def test_a_version_that_does_not_serve_is_404_and_one_is_whichever_does(sockets: Path) -> None:
    async def play(world: World) -> None:
        await world.serve()  # revision 3
        for version, status in (("1", 200), ("3", 200), ("99", 404), ("2", 404), ("latest", 404)):
            for verb in ("infer", "ready", ""):
                path = f"/v2/models/e/versions/{version}" + (f"/{verb}" if verb else "")
                method = "POST" if verb == "infer" else "GET"
                reply = await world.client.request(method, path, headers=KEY, content=b"{}" if verb == "infer" else b"")
                assert reply.status_code == status, (path, reply.text)
        refused = await world.client.post("/v2/models/e/versions/99/infer", headers=KEY, content=b"{}")
        assert "e has no version 99 that serves" in refused.json()["error"] and "ask for 3" in refused.json()["error"]

    story(sockets, play)


def test_a_gzip_body_arrives_unpacked_on_every_path(sockets: Path) -> None:
    async def play(world: World) -> None:
        await world.serve(schema={"engine": "vllm"})
        packed = {**KEY, "content-encoding": "gzip"}
        plain = await world.client.post(INFER, headers=packed, content=gzip.compress(b'{"a": 1}'))
        assert (plain.status_code, plain.json()) == (200, {"a": 1})
        chat = json.dumps(CHAT).encode()
        reply = await world.client.post("/v1/chat/completions", headers=packed, content=gzip.compress(chat))
        assert (reply.status_code, reply.json()) == (200, CHAT)
        broken = await world.client.post(INFER, headers=packed, content=b"no gzip")
        assert broken.status_code == 400 and "no whole gzip" in broken.json()["error"]
        other = await world.client.post(INFER, headers={**KEY, "content-encoding": "br"}, content=b"x")
        assert other.status_code == 415 and "send gzip, deflate, or none" in other.json()["error"]

    story(sockets, play)


def test_binary_tensors_reach_the_worker_with_the_length_of_their_json_and_come_back_so(sockets: Path) -> None:
    async def binary(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
        worker.send(protocol.encode(protocol.STARTED, request_id))
        worker.send(protocol.encode_binary_reply(request_id, 200, b'{"n":1}\xff\xfe', 7))

    async def play(world: World) -> None:
        worker = await world.serve(binary)
        name = "inference-header-content-length"
        reply = await world.client.post(INFER, headers={**KEY, name: "2"}, content=b"{}\x00\x01")
        assert worker.heads[0]["json_bytes"] == 2
        assert (reply.content, reply.headers[name]) == (b'{"n":1}\xff\xfe', "7")
        assert reply.headers["content-type"] == "application/octet-stream"
        short = await world.client.post(INFER, headers=KEY, content=b"{}")  # asks for binary outputs in JSON alone
        assert (short.content, short.headers[name]) == (b'{"n":1}\xff\xfe', "7")
        for wrong in ("5", "-1", "x", "0"):
            refused = await world.client.post(INFER, headers={**KEY, name: wrong}, content=b"{}\x00\x01")
            assert refused.status_code == 400, refused.text

    story(sockets, play)


def test_probes_need_no_key_and_tell_the_truth(sockets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "GRACE_S", 0.2)
    monkeypatch.setattr(health, "REMEMBERED_S", 0.0)

    async def play(world: World) -> None:
        worker = await world.serve()
        get = world.client.get
        for path in ("/health", "/healthz"):
            reply = await get(path)
            assert reply.status_code == 200, reply.text
            assert reply.json()["status"] == "ok" and set(reply.json()["parts"].values()) == {"ok"}
        assert (await get("/ping")).status_code == 200
        assert list((await get("/version")).json()) == ["version"]
        worker.die()
        lost = await failing(world)
        assert lost["parts"]["replicas"] == "those of 1 endpoint cannot be reached"
        assert (await get("/ping")).status_code == 200 and (await get("/v2/health/ready")).status_code == 200
        world.control.set()
        while (await get("/health")).status_code != 200:  # the table names it no more
            await asyncio.sleep(0.02)
        world.control.sick = True
        sick = await failing(world)
        assert sick["parts"]["database"] == "it cannot be read"

    story(sockets, play)


async def failing(world: World) -> dict[str, Any]:
    """What /health says once it says 503."""
    for _ in range(200):
        reply = await world.client.get("/health")
        if reply.status_code == 503:
            told: dict[str, Any] = reply.json()
            assert told["status"] == "failing"
            return told
        await asyncio.sleep(0.02)
    raise AssertionError(f"/health still says {reply.text}")


def test_a_stream_that_is_silent_says_so_and_proxies_are_told_to_hand_it_on(
    sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "SILENCE_S", 0.05)

    async def slow(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
        worker.send(protocol.encode(protocol.STARTED, request_id))
        worker.send(protocol.encode(protocol.BEGIN, request_id, {}))
        worker.event(request_id, n=1)
        await asyncio.sleep(0.2)
        worker.event(request_id, n=2)
        worker.send(protocol.encode(protocol.END, request_id, {}))

    async def play(world: World) -> None:
        world.control.set(state="idle", schema={"engine": "vllm"})
        await until(lambda: "e" in world.gateway.pool.by_name)
        body = json.dumps({**CHAT, "stream": True}).encode()
        for path, content in (("/v2/models/e/generate_stream", b"{}"), ("/v1/chat/completions", body)):
            world.control.set(state="idle", schema={"engine": "vllm"})
            await until(lambda: not world.gateway.pool.by_name["e"].ready)
            async with world.client.stream("POST", path, headers=KEY, content=content) as reply:
                assert reply.headers["x-accel-buffering"] == "no" and "no-transform" in reply.headers["cache-control"]
                pieces = reply.aiter_lines()
                while await anext(pieces) != ": waiting":  # nobody has a replica yet
                    pass
                assert "x-puna-tier" not in reply.headers and reply.headers["x-request-id"]
                world.control.set(await world.worker(slow), schema={"engine": "vllm"})
                rest = [line async for line in pieces]
            events = [line for line in rest if line.startswith("data:")]
            assert events[:2] == ['data: {"n": 1}', 'data: {"n": 2}'] or events[:2] == [
                'data: {"n":1}',
                'data: {"n":2}',
            ]
            between = rest[rest.index(events[0]) : rest.index(events[1])]
            assert ": waiting" in between

    story(sockets, play)


def test_an_error_after_the_first_comment_is_the_streams_last_event(
    sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "SILENCE_S", 0.05)

    async def refused(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
        worker.send(protocol.encode(protocol.STARTED, request_id))
        if b"slow" in body:
            await asyncio.sleep(0.2)
        worker.send(protocol.encode_reply(request_id, 400, b'{"error": {"message": "no such thing"}}'))

    async def play(world: World) -> None:
        await world.serve(refused)
        path = "/v2/models/e/generate_stream"
        soon = await world.client.post(path, headers=KEY, content=b"{}")
        assert soon.status_code == 400
        late = await world.client.post(path, headers=KEY, content=b'{"slow": 1}')
        assert late.status_code == 200
        assert late.text.startswith(": waiting") and 'data: {"error":"no such thing"}' in late.text
        world.control.set(state="idle")
        await until(lambda: not world.gateway.pool.by_name["e"].ready)
        waiting = asyncio.ensure_future(world.client.post(path, headers=KEY, content=b"{}"))
        await until(lambda: len(world.gateway.pool.by_name["e"].queue) == 1)
        await asyncio.sleep(0.1)
        world.control.set(state="failed", reason="it broke")
        gone = await waiting
        assert gone.status_code == 200 and "could not be deployed: it broke" in gone.text.splitlines()[-2]

    story(sockets, play)


def test_pages_of_other_sites_may_call_where_that_was_allowed_and_nowhere_else(sockets: Path) -> None:
    page = "https://app.example.com"

    async def asked(world: World, origin: str) -> tuple[Any, Any]:
        preflight = {"origin": origin, "access-control-request-method": "POST"}
        preflight["access-control-request-headers"] = "authorization,content-type"
        before = await world.client.request("OPTIONS", INFER, headers=preflight)
        return before, await world.client.post(INFER, headers={**KEY, "origin": origin}, content=b"{}")

    async def allowed(world: World) -> None:
        await world.serve()
        before, reply = await asked(world, page)
        assert before.status_code == 200 and before.headers["access-control-allow-origin"] == page
        assert "authorization" in before.headers["access-control-allow-headers"]
        assert reply.status_code == 200 and reply.headers["access-control-allow-origin"] == page
        assert "x-request-id" in reply.headers["access-control-expose-headers"]
        refused = await world.client.post(INFER, headers={"origin": page}, content=b"{}")
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == page
        before, reply = await asked(world, "https://evil.example.com")
        assert before.status_code == 400 and "access-control-allow-origin" not in reply.headers
        own = await world.client.get("/api/v1/endpoints", headers={"origin": page})
        assert "access-control-allow-origin" not in own.headers  # the control plane is no page's business

    async def silent(world: World) -> None:
        await world.serve()
        before, reply = await asked(world, page)
        assert before.status_code == 204 and "access-control-allow-origin" not in {*before.headers, *reply.headers}

    story(sockets, allowed, cors_origins=(page,))
    story(sockets, silent)


def test_a_queue_of_none_is_none(sockets: Path) -> None:
    async def play(world: World) -> None:
        world.control.set(state="idle", max_queue=0)
        await until(lambda: "e" in world.gateway.pool.by_name)
        assert (await world.client.post(INFER, headers=KEY, content=b"{}")).status_code == 429

    story(sockets, play)
