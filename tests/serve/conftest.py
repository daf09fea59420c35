"""A worker made of frames only: it speaks the protocol over a real Unix socket and does what each test tells it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from puna.control.wire import ReplicaRoute
from puna.worker import protocol

Handler = Callable[["StubWorker", int, dict[str, Any], bytes], Awaitable[None]]


async def echo(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
    """Reply with the body."""
    worker.send(protocol.encode(protocol.STARTED, request_id))
    worker.send(protocol.encode_reply(request_id, 200, body))


class StubWorker:
    """Accepts connections at `path`; `handler` answers requests, `seen` lists the frames that came."""

    def __init__(self, path: Path, handler: Handler = echo, concurrency: int = 4, id: str = "r1") -> None:
        self.path, self.handler, self.concurrency, self.id = path, handler, concurrency, id
        self.tier, self.born = "awake", "spawn"
        self.seen: list[tuple[int, int]] = []
        self.heads: list[dict[str, Any]] = []
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def route(self) -> ReplicaRoute:
        return ReplicaRoute(self.id, 1, str(self.path), self.concurrency)

    async def start(self) -> StubWorker:
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        hello = {"state": "ready", "concurrency": self.concurrency, "schema": None, "pid": 1, "tier": self.tier}
        hello["born"] = self.born
        writer.write(protocol.encode(protocol.HELLO, 0, hello))
        decoder = protocol.Decoder()
        pieces: dict[int, list[bytes]] = {}
        while data := await reader.read(1 << 16):
            for kind, request_id, payload in decoder.feed(data):
                self.seen.append((kind, request_id))
                if kind == protocol.BODY:
                    pieces.setdefault(request_id, []).append(payload)
                elif kind == protocol.REQUEST:
                    head, body = protocol.decode_request(payload)
                    body = b"".join([*pieces.pop(request_id, ()), body])
                    self.heads.append(head)
                    task = asyncio.ensure_future(self.handler(self, request_id, head, body))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
        writer.close()

    def tell_tier(self, tier: str) -> None:
        """Fall asleep, or be awake, and say so on every connection."""
        self.tier = tier
        frame = protocol.encode(protocol.ASLEEP if tier == "asleep" else protocol.AWAKE, 0, {"tier": tier})
        for writer in self._writers:
            writer.write(frame)

    def send(self, frame: bytes) -> None:
        self._writers[-1].write(frame)

    def event(self, request_id: int, **value: Any) -> None:
        self.send(protocol.encode(protocol.CHUNK, request_id, json.dumps(value).encode()))

    def die(self) -> None:
        """As SIGKILL would: the socket is gone, connections are cut."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        for writer in self._writers:
            writer.transport.abort()
        self._writers = []
        self.path.unlink(missing_ok=True)

    async def until_seen(self, kind: int, count: int = 1) -> None:
        """Wait until that many frames of that kind have come."""
        await until(lambda: sum(k == kind for k, _ in self.seen) >= count)


class Sleeper(StubWorker):
    """Asleep at first. A request wakes it, which ends when the test says so; `handler` comes after STARTED."""

    def __init__(self, path: Path, handler: Handler, concurrency: int, id: str) -> None:
        super().__init__(path, self.wake_first, concurrency, id)
        self.awake = handler
        self.tier = "asleep"
        self.wakes, self.came_asleep, self.said_ms = 0, 0, 0.0
        self.may_wake = asyncio.Event()
        self._is_waking = False

    async def wake_first(self, worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
        if self.tier == "asleep":
            began = asyncio.get_running_loop().time()
            self.came_asleep += 1
            if not self._is_waking:
                self._is_waking, self.wakes = True, self.wakes + 1
            await self.may_wake.wait()
            if self._is_waking:
                self._is_waking = False
                self.tell_tier("awake")
            self.said_ms = round((asyncio.get_running_loop().time() - began) * 1000, 1)
            worker.send(protocol.encode(protocol.STARTED, request_id, {"tier": "asleep", "wake_ms": self.said_ms}))
        else:
            worker.send(protocol.encode(protocol.STARTED, request_id))
        await self.awake(worker, request_id, head, body)


async def until(condition: Callable[[], Any], within_s: float = 30.0) -> None:
    """Wait until `condition()` holds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while not condition():
        assert loop.time() < deadline, "did not happen in time"
        await asyncio.sleep(0.002)


@pytest.fixture
def sockets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose path is short enough for Unix sockets."""
    return tmp_path_factory.mktemp("s")
