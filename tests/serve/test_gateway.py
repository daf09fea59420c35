"""The gateway over real HTTP, with a stub control plane and stub workers on real Unix sockets."""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import uvloop

from puna.serve.gateway import Gateway, GatewaySettings
from puna.serve.http import forward
from puna.serve.http.connection import ClientConnection
from puna.worker import protocol
from serve.conftest import StubWorker, echo, until

pytestmark = pytest.mark.process

SECRET = "x" * 43
KEY = {"authorization": f"Bearer puna_0123abcd_{SECRET}"}
INFER = "/v2/models/e/infer"


class StubControl:
    """Serves a route table by long poll, notes the load reports, and echoes every other request."""

    def __init__(self) -> None:
        self.version = 1
        self.endpoints: dict[str, dict[str, Any]] = {}
        self.limits: dict[str, Any] | None = None
        self.loads: list[dict[str, Any]] = []
        self.forwarded: list[str] = []
        self.changed = asyncio.Event()
        self.closing = False
        self.sick = False
        """Its health says that its database is gone."""

    def set(self, *workers: StubWorker, **changes: Any) -> None:
        """The endpoint `e` with these replicas."""
        replicas: list[dict[str, Any]] = [
            {"id": w.id, "epoch": 1, "socket": str(w.path), "concurrency": w.concurrency, "tier": w.tier}
            for w in workers
        ]
        fields = {"name": "e", "revision": 3, "active": True, "state": "ready", "reason": "", "inference_time_s": 5.0}
        fields |= {"max_queue": 100, "max_replica": 2, "min_replica": 0, "schema": None, "replicas": replicas}
        self.endpoints["e"] = fields | changes
        for replica in replicas:
            replica["revision"] = self.endpoints["e"]["revision"]
        self.version += 1
        self.changed.set()

    def close(self) -> None:
        """Let the long poll end, so that the server can."""
        self.closing = True
        self.changed.set()

    def table(self) -> dict[str, Any]:
        digest = hashlib.sha256(("salt" + SECRET).encode()).hexdigest()
        key: dict[str, Any] = {"id": "0123abcd", "salt": "salt", "sha256": digest, "scope": ["infer"]}
        key |= {"endpoints": None} | ({"name": "ci", "limits": self.limits} if self.limits else {})
        return {"version": self.version, "keys": [key | {"expires": None}], "endpoints": self.endpoints}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {k.decode(): v.decode() for k, v in scope["headers"]}
        if "x-puna-forwarded" in headers:
            self.forwarded.append(scope["path"])
        answer: Any = {"path": scope["path"], "query": scope["query_string"].decode(), "headers": headers}
        answer["body"] = body.decode(errors="replace")[:100]
        if scope["path"] == "/internal/routes":
            if f"since={self.version}&" in scope["query_string"].decode() and not self.closing:
                self.changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), 5)
            answer = self.table()
        elif scope["path"] == "/internal/load":
            self.loads.append(json.loads(body))
        if scope["path"].endswith("/follow"):  # a log that is written for ever
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a line\n", "more_body": True})
            await asyncio.Event().wait()
        status = 200
        if scope["path"] == "/api/v1/health" and self.sick:
            status, answer = 503, {"status": "failing", "parts": {"database": "it cannot be read"}}
        json_only = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": json_only})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


@contextlib.asynccontextmanager
async def running(
    app: Any, http: type[ClientConnection] = ClientConnection, **where: Any
) -> AsyncIterator[uvicorn.Server]:
    fixed: dict[str, Any] = {"log_level": "warning", "ws": "none", "proxy_headers": False}
    config = uvicorn.Config(app, http=http, timeout_graceful_shutdown=1, **fixed, **where)
    server = uvicorn.Server(config)
    task = asyncio.ensure_future(server.serve())
    await until(lambda: server.started or task.done())
    try:
        yield server
    finally:
        server.should_exit = True
        await task


class World:
    """A gateway, its control plane, and a client that talks to it."""

    def __init__(self, folder: Path, control: StubControl, client: httpx.AsyncClient, gateway: Gateway) -> None:
        self.folder, self.control, self.client, self.gateway = folder, control, client, gateway
        self.workers: list[StubWorker] = []
        self.server: uvicorn.Server | None = None

    def gateway_connections(self) -> list[ClientConnection]:
        """Those that the gateway has."""
        assert self.server is not None
        return list(self.server.server_state.connections)

    async def worker(self, handler: Any = None, concurrency: int = 4, id: str = "r1") -> StubWorker:
        worker = StubWorker(self.folder / id, *([handler] if handler else []), concurrency=concurrency, id=id)
        self.workers.append(worker)
        return await worker.start()

    async def connected(self, usable: int = 1) -> None:
        await until(lambda: sum(k.usable for k in self.gateway.pool.by_name["e"].connections.values()) == usable)

    async def serve(self, handler: Any = None, **changes: Any) -> StubWorker:
        """One connected worker behind the endpoint `e`."""
        worker = await self.worker(handler)
        self.control.set(worker, **changes)
        await until(lambda: "e" in self.gateway.pool.by_name)
        await self.connected()
        return worker


def story(
    folder: Path,
    play: Callable[[World], Awaitable[None]],
    http: type[ClientConnection] = ClientConnection,
    **settings: Any,
) -> None:
    async def main() -> None:
        control = StubControl()
        gateway = Gateway(GatewaySettings(folder / "control", **settings))
        async with (
            running(control, uds=str(folder / "control")),
            running(gateway, http, host="127.0.0.1", port=0) as server,
        ):
            port = server.servers[0].sockets[0].getsockname()[1]
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                world = World(folder, control, client, gateway)
                world.server = server
                try:
                    await asyncio.wait_for(play(world), 90)
                finally:
                    for worker in world.workers:
                        worker.die()
            control.close()

    uvloop.run(main())


async def forever(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
    worker.send(protocol.encode(protocol.STARTED, request_id))


async def die(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
    worker.send(protocol.encode(protocol.STARTED, request_id))
    asyncio.get_running_loop().call_later(0.02, worker.die)


async def late(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
    """Its thread hangs; what watches the deadlines lives on, and answers what was never begun."""
    await asyncio.sleep(head["deadline_s"])
    worker.send(protocol.encode_reply(request_id, 504, b"{}"))


def test_a_request_reaches_the_app_and_its_reply_comes_back_with_what_happened(sockets: Path) -> None:
    async def play(world: World) -> None:
        worker = await world.serve()
        reply = await world.client.post("/v2/models/e/versions/3/infer", headers=KEY, content=b'{"inputs": []}')
        assert (reply.status_code, reply.content) == (200, b'{"inputs": []}')
        assert reply.headers["x-puna-tier"] == "awake"
        assert float(reply.headers["x-puna-infer-ms"]) >= 0
        assert reply.headers["x-puna-request-id"]
        head = worker.heads[0]
        assert head["path"] == "infer" and head["model_name"] == "e" and head["model_version"] == "3"
        assert head["deadline_s"] == 5.0 and head["trace"] == reply.headers["x-puna-request-id"]

    story(sockets, play)


def test_keys_names_and_methods_are_checked(sockets: Path) -> None:
    async def play(world: World) -> None:
        await world.serve(schema={"inputs": [{"name": "prompt", "datatype": "STRING", "shape": [1]}]})
        get, post = world.client.get, world.client.post
        assert (await post(INFER, content=b"{}")).status_code == 401
        unknown = await post("/v2/models/nope/infer", headers=KEY, content=b"{}")
        assert unknown.status_code == 404 and "nope" in unknown.json()["error"]
        refused = await get(INFER, headers=KEY)
        assert refused.status_code == 405 and refused.headers["allow"] == "POST, OPTIONS"
        assert (await get("/v2/models/e")).status_code == 401
        about = (await get("/v2/models/e", headers=KEY)).json()
        assert about["versions"] == ["3"]
        assert about["inputs"] == [{"name": "prompt", "datatype": "BYTES", "shape": [1]}]
        assert (await get("/v2/models/e/ready", headers=KEY)).status_code == 200
        assert (await get("/v2/health/live")).status_code == 200
        assert (await get("/v2/health/ready")).status_code == 200
        assert (await get("/metrics")).status_code == 401

    story(sockets, play)


def test_a_request_to_a_sleeping_endpoint_waits_asks_for_a_replica_at_once_and_is_answered(
    sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puna.serve.gateway.REPORT_EVERY_S", 600.0)  # none comes but at once

    async def play(world: World) -> None:
        world.control.set(state="idle")
        await until(lambda: "e" in world.gateway.pool.by_name)
        reports = len(world.control.loads)
        asking = [asyncio.ensure_future(world.client.post(INFER, headers=KEY, content=b"%d" % n)) for n in range(5)]
        await until(lambda: any(r["endpoints"]["e"]["queued"] for r in world.control.loads[reports:]))
        world.control.set(await world.worker(concurrency=1))
        replies = await asyncio.gather(*asking)
        assert [r.content for r in replies] == [b"0", b"1", b"2", b"3", b"4"]
        assert {r.headers["x-puna-tier"] for r in replies} == {"cold"}
        metrics = (await world.client.get("/metrics", headers=KEY)).text
        assert 'puna_requests_total{endpoint="e",status="200"} 5.0' in metrics

    story(sockets, play)


def test_a_full_queue_answers_429_and_says_when_to_come_back(sockets: Path) -> None:
    async def play(world: World) -> None:
        world.control.set(state="idle", max_queue=2)
        await until(lambda: "e" in world.gateway.pool.by_name)
        waiting = [asyncio.ensure_future(world.client.post(INFER, headers=KEY, content=b"{}")) for _ in range(2)]
        await until(lambda: len(world.gateway.pool.by_name["e"].queue) == 2)
        refused = await world.client.post(INFER, headers=KEY, content=b"{}")
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
        world.control.set(await world.worker())
        assert [r.status_code for r in await asyncio.gather(*waiting)] == [200, 200]

    story(sockets, play)


def test_a_request_whose_replica_dies_is_answered_by_another(sockets: Path) -> None:
    async def play(world: World) -> None:
        dying = await world.worker(forever, id="dying")
        world.control.set(dying)
        await until(lambda: "e" in world.gateway.pool.by_name)
        await world.connected()
        asking = asyncio.ensure_future(world.client.post(INFER, headers=KEY, content=b"again"))
        await dying.until_seen(protocol.REQUEST)
        dying.die()
        world.control.set(await world.worker(id="second"))
        reply = await asking
        assert (reply.status_code, reply.content) == (200, b"again")

    story(sockets, play)


def test_a_request_that_kills_two_replicas_fails_with_a_clear_body(sockets: Path) -> None:
    async def play(world: World) -> None:
        world.control.set(await world.worker(die, id="a"), await world.worker(die, id="b"))
        await until(lambda: "e" in world.gateway.pool.by_name)
        await world.connected(2)
        reply = await world.client.post(INFER, headers=KEY, content=b"{}")
        assert reply.status_code == 502 and "2 replicas died" in reply.json()["error"]

    story(sockets, play)


def test_a_late_reply_is_504_and_its_place_stays_taken_until_the_worker_has_ended(sockets: Path) -> None:
    async def play(world: World) -> None:
        worker = await world.serve(forever, inference_time_s=0.2)
        reply = await world.client.post(INFER, headers=KEY, content=b"{}")
        assert reply.status_code == 504 and "inference_time" in reply.json()["error"]
        await worker.until_seen(protocol.CANCEL)
        dispatcher = world.gateway.pool.by_name["e"]
        assert dispatcher.in_flight == 1
        worker.send(protocol.encode(protocol.END, 1, {}))
        await until(lambda: dispatcher.in_flight == 0)

    story(sockets, play)


def test_a_client_that_hangs_up_is_cancelled_or_leaves_the_queue(sockets: Path) -> None:
    async def play(world: World) -> None:
        worker = await world.serve(forever)
        with pytest.raises(httpx.ReadTimeout):
            await world.client.post(INFER, headers=KEY, content=b"{}", timeout=httpx.Timeout(20.0, read=0.2))
        await worker.until_seen(protocol.CANCEL)
        world.control.set(state="idle")
        dispatcher = world.gateway.pool.by_name["e"]
        await until(lambda: not dispatcher.ready)
        with pytest.raises(httpx.ReadTimeout):
            await world.client.post(INFER, headers=KEY, content=b"{}", timeout=httpx.Timeout(20.0, read=0.2))
        await until(lambda: len(dispatcher.queue) == 0)

    story(sockets, play)


def test_a_stream_arrives_event_by_event_and_a_death_is_its_last_event(sockets: Path) -> None:
    async def stream(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
        worker.send(protocol.encode(protocol.BEGIN, request_id, {}))
        worker.event(request_id, OUT="one")
        if head["path"] == "stream" and b"die" in body:
            await asyncio.sleep(0.05)
            asyncio.get_running_loop().call_soon(worker.die)
            return
        worker.event(request_id, OUT="two")
        worker.send(protocol.encode(protocol.END, request_id, {}))

    async def play(world: World) -> None:
        await world.serve(stream)
        path = "/v2/models/e/generate_stream"
        reply = await world.client.post(path, headers=KEY, content=b"{}")
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.text == 'data: {"OUT": "one"}\n\ndata: {"OUT": "two"}\n\n'
        reply = await world.client.post(path, headers=KEY, content=b"die")
        first, last = reply.text.strip().split("\n\n")
        assert first == 'data: {"OUT": "one"}'
        assert "died after its reply had begun" in json.loads(last.removeprefix("data: "))["error"]

    story(sockets, play)


def test_a_body_over_the_limit_is_413_whether_its_length_is_stated_or_not(sockets: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100

    async def play(world: World) -> None:
        await world.serve()
        assert (await world.client.post(INFER, headers=KEY, content=b"x" * 1000)).status_code == 200
        assert (await world.client.post(INFER, headers=KEY, content=b"x" * 1001)).status_code == 413
        assert (await world.client.post(INFER, headers=KEY, content=pieces())).status_code == 413

    story(sockets, play, max_body_bytes=1000)


def test_endpoints_that_cannot_serve_say_why_at_once(sockets: Path) -> None:
    async def play(world: World) -> None:
        world.control.set(state="failing", reason="app.py line 3: no module named foo")
        await until(lambda: "e" in world.gateway.pool.by_name)
        reply = await world.client.post(INFER, headers=KEY, content=b"{}")
        assert reply.status_code == 503 and "no module named foo" in reply.json()["error"]
        world.control.set(active=False)
        await until(lambda: not world.gateway.pool.by_name["e"].route.active)
        reply = await world.client.post(INFER, headers=KEY, content=b"{}")
        assert reply.status_code == 503 and "deactivated" in reply.json()["error"]

    story(sockets, play)


def test_the_rest_goes_to_the_control_plane_marked_as_forwarded_but_never_its_internal_paths(sockets: Path) -> None:
    async def play(world: World) -> None:
        headers = {"x-puna-forwarded": "0", "x-mine": "kept"}
        reply = await world.client.put("/api/v1/sources?a=1", content=b"body", headers=headers)
        seen = reply.json()
        assert (seen["path"], seen["query"], seen["body"]) == ("/api/v1/sources", "a=1", "body")
        assert seen["headers"]["x-puna-forwarded"] == "1" and seen["headers"]["x-mine"] == "kept"
        for path in ("/internal/routes", "//internal/load", "/%69nternal/routes", "/api/../internal/x", "/INTERNAL"):
            reader, writer = await asyncio.open_connection("127.0.0.1", world.client.base_url.port)
            writer.write(f"GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n".encode())
            assert b" 404 " in await reader.readline(), path
            writer.close()
        assert world.control.forwarded == ["/api/v1/sources"]

    story(sockets, play)


def test_a_reply_without_an_end_ends_when_the_gateway_winds_down(sockets: Path) -> None:
    async def play(world: World) -> None:
        async with world.client.stream("GET", "/api/v1/logs/follow", headers=KEY) as reply:
            pieces = reply.aiter_bytes()
            assert await anext(pieces) == b"a line\n"
            world.gateway.wind_down()
            with pytest.raises((httpx.RemoteProtocolError, StopAsyncIteration)):
                await asyncio.wait_for(anext(pieces), 20)

    story(sockets, play)


def test_without_a_control_plane_inference_goes_on_and_the_api_says_503(sockets: Path) -> None:
    async def main() -> None:
        control = StubControl()
        gateway = Gateway(GatewaySettings(sockets / "control"))
        worker = await StubWorker(sockets / "w").start()
        control.set(worker)
        upstream = running(control, uds=str(sockets / "control"))
        await upstream.__aenter__()
        async with running(gateway, host="127.0.0.1", port=0) as server:
            port = server.servers[0].sockets[0].getsockname()[1]
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
                await until(lambda: gateway.pool.by_name["e"].ready)
                control.close()
                await upstream.__aexit__(None, None, None)
                (sockets / "control").unlink(missing_ok=True)
                reply = await client.get("/api/v1/health")
                assert reply.status_code == 503 and "control plane" in reply.json()["error"]["message"]
                assert (await client.post(INFER, headers=KEY, content=b"on")).content == b"on"
        worker.die()

    uvloop.run(asyncio.wait_for(main(), 20))


def test_a_gateway_that_knows_no_table_yet_says_503_and_when_to_come_back(
    sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puna.serve.gateway.FIRST_TABLE_S", 0.1)
    monkeypatch.setattr(forward, "RESTART_S", 0.1)

    async def main() -> None:
        gateway = Gateway(GatewaySettings(sockets / "control"))
        async with running(gateway, host="127.0.0.1", port=0) as server:
            port = server.servers[0].sockets[0].getsockname()[1]
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
                for path in (INFER, "/v1/chat/completions", "/api/v1/deploys"):
                    reply = await client.post(path, headers=KEY, content=b"{}")
                    assert reply.status_code == 503 and int(reply.headers["retry-after"]) >= 1, path
                    assert "control plane" in reply.text
                assert (await client.get("/v2/health/ready")).status_code == 503

    uvloop.run(asyncio.wait_for(main(), 20))


def test_a_request_that_one_replica_never_began_does_not_wait_there_again(sockets: Path) -> None:
    async def slow(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
        await asyncio.sleep(0.02)
        await echo(worker, request_id, head, body)

    async def play(world: World) -> None:
        sick = await world.worker(late, id="a", concurrency=4)
        world.control.set(sick, await world.worker(slow, id="b", concurrency=1), inference_time_s=0.3)
        await until(lambda: "e" in world.gateway.pool.by_name)
        await world.connected(2)
        for _ in range(3):
            calls = [world.client.post(INFER, headers=KEY, content=b"%d" % n) for n in range(12)]
            assert [(r.status_code, r.content) for r in await asyncio.gather(*calls)] == [
                (200, b"%d" % n) for n in range(12)
            ]
        assert 0 < sum(kind == protocol.REQUEST for kind, _ in sick.seen) <= 4  # given nothing since

    story(sockets, play)


def test_a_replica_that_let_its_time_pass_is_not_counted_among_those_that_died_of_a_request(sockets: Path) -> None:
    async def play(world: World) -> None:
        first = await world.worker(late, id="a")
        world.control.set(first, *[await world.worker(die, id=id) for id in "bc"], inference_time_s=0.3)
        await until(lambda: "e" in world.gateway.pool.by_name)
        await world.connected(3)
        reply = await world.client.post(INFER, headers=KEY, content=b"{}")
        assert first.heads and reply.status_code == 502 and "2 replicas died" in reply.json()["error"], reply.text

    story(sockets, play)


def test_a_replica_that_let_a_requests_time_pass_gets_others_after_a_while(
    sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puna.serve.dispatch.worker_connection.STALLED_S", 0.1)
    busy = asyncio.Event()

    async def after_others(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
        """It runs a call of another gateway's, and says nothing of that here."""
        if busy.is_set():
            await echo(worker, request_id, head, body)

    async def play(world: World) -> None:
        await world.serve(after_others, inference_time_s=0.3)
        asking = asyncio.ensure_future(world.client.post(INFER, headers=KEY, content=b"on"))
        await asyncio.sleep(0.35)
        busy.set()
        assert (await asking).content == b"on"

    story(sockets, play)


HOOK = "/api/v1/hooks/e"


async def _drip(world: World, count: int, size: int) -> list[asyncio.StreamWriter]:
    """So many deliveries whose last byte never comes."""
    writers = []
    for _ in range(count):
        _, writer = await asyncio.open_connection("127.0.0.1", world.client.base_url.port)
        writer.write(f"POST {HOOK} HTTP/1.1\r\nhost: h\r\ncontent-length: {size + 1}\r\n\r\n".encode() + b"x" * size)
        writers.append(writer)
    return writers


def test_bodies_of_strangers_are_held_here_bounded_in_all_and_passed_on_whole(sockets: Path) -> None:
    async def play(world: World) -> None:
        await world.serve()
        control, size = world.gateway.control, 4 << 20
        writers = await _drip(world, 8, size)
        await until(lambda: control._held_bytes >= 7 * size)
        assert control._open == 0 and HOOK not in world.control.forwarded, "the control plane sees nothing of it yet"
        refused = await world.client.post(HOOK, content=b"x" * size)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert control._held_bytes <= forward.ALL_STRANGERS_BYTES
        assert (await world.client.get("/api/v1/endpoints")).status_code == 200
        assert (await world.client.post(INFER, headers=KEY, content=b"x" * 100_000)).status_code == 200
        for writer in writers:
            writer.transport.abort()
        await until(lambda: control._held_bytes == 0)
        reply = await world.client.post(HOOK, content=b"signed")
        assert reply.status_code == 200 and reply.json()["body"] == "signed"
        await until(lambda: control._held_bytes == 0)
        assert (await world.client.post(HOOK, content=b"x" * (6 << 20))).status_code == 413

    story(sockets, play)


def test_who_has_a_key_is_passed_on_as_it_comes_however_long_and_an_unknown_one_is_refused(sockets: Path) -> None:
    async def play(world: World) -> None:
        await world.serve()

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield b"x" * (1 << 20)
            await until(lambda: world.gateway.control._open == 1)  # it is on its way already
            assert world.gateway.control._held_bytes == 0

        reply = await world.client.put("/api/v1/sources", headers=KEY, content=pieces())
        assert reply.status_code == 200 and reply.json()["body"] == "x" * 100
        unknown = {"authorization": f"Bearer puna_0123abcd_{'y' * 43}"}
        refused = await world.client.put("/api/v1/sources", headers=unknown, content=b"x" * (6 << 20))
        assert refused.status_code == 401 and world.control.forwarded.count("/api/v1/sources") == 1

    story(sockets, play)


def test_only_so_many_requests_are_passed_on_at_a_time_and_strangers_get_half_of_them(sockets: Path) -> None:
    async def play(world: World) -> None:
        await world.serve()
        control = world.gateway.control
        control._open = 2
        assert (await world.client.post(HOOK, content=b"x")).status_code == 503
        assert (await world.client.put("/api/v1/sources", headers=KEY, content=b"x")).status_code == 200
        await until(lambda: control._open == 2)
        control._open = 4
        assert (await world.client.put("/api/v1/sources", headers=KEY, content=b"x")).status_code == 503
        control._open = 0
        assert (await world.client.post(HOOK, content=b"x")).status_code == 200
        await until(lambda: control._open == 0)

    story(sockets, play, most_forwarded=4)
