"""Clients as they come: pipelining, trickling, lying about lengths, flooding, not reading; over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from puna.serve.http.client_limits import ArrivalLimits, Unread
from puna.serve.http.connection import ClientConnection
from puna.worker import protocol
from serve.conftest import StubWorker, until
from serve.test_gateway import INFER, KEY, World, story

pytestmark = pytest.mark.process

AUTH = f"authorization: {KEY['authorization']}\r\n"


class Hasty(ClientConnection):
    """With limits that a test can wait for."""

    limits = ArrivalLimits(head_bytes=8192, head_s=0.3, body_s=0.3, unread_s=0.5, look_every_s=0.05)


def post(body: bytes, *headers: str, path: str = INFER, length: int | None = None) -> bytes:
    """A request as bytes."""
    lines = "".join(f"{line}\r\n" for line in headers)
    size = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nhost: h\r\n{AUTH}{lines}content-length: {size}\r\n\r\n"
    return head.encode() + body


class Raw:
    """A client that writes what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def reply(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next reply."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(head[0].split()[1]), headers, body

    async def is_hung_up(self) -> bool:
        with contextlib.suppress(ConnectionError):
            return await self.reader.read() == b""
        return True


Connect = Callable[[], Awaitable[Raw]]


def raw_story(
    folder: Path,
    play: Callable[[World, Connect], Awaitable[None]],
    http: type[ClientConnection] = ClientConnection,
    **settings: Any,
) -> None:
    """A story whose clients are hung up in the end."""

    async def whole(world: World) -> None:
        opened: list[Raw] = []

        async def connect() -> Raw:
            opened.append(Raw(*await asyncio.open_connection("127.0.0.1", world.client.base_url.port)))
            return opened[-1]

        try:
            await play(world, connect)
        finally:
            for raw in opened:
                raw.writer.transport.abort()

    story(folder, whole, http, **settings)


def test_pipelined_requests_are_answered_in_order_also_when_the_first_is_the_slowest(sockets: Path) -> None:
    async def slow_first(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
        await asyncio.sleep(0.1 if body == b"0" else 0.0)
        worker.send(protocol.encode_reply(request_id, 200, body))

    async def play(world: World, connect: Connect) -> None:
        await world.serve(slow_first)
        raw = await connect()
        health = b"GET /v2/health/live HTTP/1.1\r\nhost: h\r\n\r\n"
        raw.writer.write(post(b"0") + post(b"1") + health + post(b"2"))
        replies = [await raw.reply() for _ in range(4)]
        assert [body for _, _, body in replies] == [b"0", b"1", b'{"live":true}', b"2"]

    raw_story(sockets, play)


def test_a_request_may_arrive_byte_by_byte_in_chunks_or_after_it_was_asked_for(sockets: Path) -> None:
    async def play(world: World, connect: Connect) -> None:
        await world.serve()
        raw = await connect()
        for byte in post(b"by bytes"):
            raw.writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert (await raw.reply())[2] == b"by bytes"
        chunked = f"POST {INFER} HTTP/1.1\r\nhost: h\r\n{AUTH}transfer-encoding: chunked\r\n\r\n".encode()
        raw.writer.write(chunked + b"2\r\nin\r\n7\r\n chunks\r\n0\r\n\r\n")
        assert (await raw.reply())[2] == b"in chunks"
        asked = post(b"", "expect: 100-continue", length=5)
        raw.writer.write(asked)
        assert (await raw.reply())[0] == 100
        raw.writer.write(b"asked")
        assert (await raw.reply())[2] == b"asked"
        body = b"x" * 300_000
        raw.writer.write(post(body))
        assert (await raw.reply())[2] == body

    raw_story(sockets, play)


def test_a_client_that_wants_to_be_hung_up_on_is(sockets: Path) -> None:
    async def play(world: World, connect: Connect) -> None:
        await world.serve()
        raw = await connect()
        raw.writer.write(post(b"bye", "connection: close"))
        status, headers, _ = await raw.reply()
        assert status == 200 and headers["connection"] == "close" and await raw.is_hung_up()
        raw = await connect()
        raw.writer.write(f"POST {INFER} HTTP/1.0\r\n{AUTH}content-length: 3\r\n\r\nold".encode())
        assert (await raw.reply())[0] == 200 and await raw.is_hung_up()

    raw_story(sockets, play)


def test_requests_that_upgrade_or_are_none_do_no_harm(sockets: Path) -> None:
    async def play(world: World, connect: Connect) -> None:
        await world.serve()
        raw = await connect()
        raw.writer.write(post(b"h2", "connection: upgrade", "upgrade: h2c"))
        assert (await raw.reply())[0] == 200
        raw = await connect()
        raw.writer.write(b"\x16\x03\x01 this is TLS")
        assert (await raw.reply())[0] == 400 and await raw.is_hung_up()

    raw_story(sockets, play)


def test_heads_that_are_endless_in_bytes_or_in_time_are_refused(sockets: Path) -> None:
    async def play(world: World, connect: Connect) -> None:
        await world.serve()
        raw = await connect()
        raw.writer.write(f"POST {INFER} HTTP/1.1\r\nx: ".encode())
        await asyncio.sleep(0.02)
        raw.writer.write(b"y" * 9000)  # and no more: what is sent to a server that has hung up resets the connection
        assert (await raw.reply())[0] == 431
        raw = await connect()
        raw.writer.write(b"POST /v2/models/e/infer HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):  # the last line may come too late
            while not (raw.reader.at_eof() or raw.reader._buffer):  # type: ignore[attr-defined]
                raw.writer.write(b"a: b\r\n")  # a header line now and then, as a slow loris sends them
                await asyncio.sleep(0.02)
            assert (await raw.reply())[0] == 408
        assert await raw.is_hung_up()

    raw_story(sockets, play, Hasty)


@pytest.mark.parametrize("length", [100, 100_000])
def test_a_body_that_never_comes_is_refused_on_either_way(sockets: Path, length: int) -> None:
    async def play(world: World, connect: Connect) -> None:
        worker = await world.serve()
        raw = await connect()
        raw.writer.write(post(b"some of it", length=length))
        assert (await raw.reply())[0] == 408 and await raw.is_hung_up()
        assert not worker.heads

    raw_story(sockets, play, Hasty)


def test_a_client_that_never_reads_is_hung_up_on(sockets: Path) -> None:
    async def large(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
        worker.send(protocol.encode_reply(request_id, 200, b"x" * 1_000_000))

    async def play(world: World, connect: Connect) -> None:
        worker = await world.serve(large)
        raw = await connect()
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(60):
            raw.writer.write(post(b"more"))
        connections = next(iter(world.gateway_connections()))
        await until(lambda: connections.transport.is_closing(), 15)
        assert len(worker.heads) < 60, "requests whose answers nobody reads are not taken"

    raw_story(sockets, play, Hasty)


@pytest.mark.parametrize("size", [200, 20_000, 1 << 20])
def test_a_stream_whose_client_does_not_read_costs_some_bytes_ends_and_frees_its_place(
    sockets: Path, size: int
) -> None:
    """However large its events are; another request on the same connection to the worker is answered meanwhile."""
    sent = 0

    async def flood(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
        nonlocal sent
        if body == b"small":
            worker.send(protocol.encode_reply(request_id, 200, body))
            return
        worker.send(protocol.encode(protocol.STARTED, request_id))
        worker.send(protocol.encode(protocol.BEGIN, request_id, {}))
        while (protocol.CANCEL, request_id) not in worker.seen and sent < 256 << 20:
            for _ in range(1 + 100_000 // size):
                worker.event(request_id, OUT="x" * size)
                sent += size
            await worker._writers[-1].drain()
        worker.send(protocol.encode(protocol.END, request_id, {}))

    async def play(world: World, connect: Connect) -> None:
        worker = await world.serve(flood)
        before = resident_bytes()
        raw = await connect()
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        raw.writer.write(post(json.dumps({}).encode(), path="/v2/models/e/generate_stream"))
        other = await connect()
        while (protocol.CANCEL, 1) not in worker.seen:
            other.writer.write(post(b"small"))
            assert (await asyncio.wait_for(other.reply(), 5))[2] == b"small"
        await until(lambda: world.gateway.pool.by_name["e"].in_flight == 0)
        assert sent < 64 << 20 and resident_bytes() - before < 48 << 20  # this process plays client and worker as well

    raw_story(sockets, play)


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_stream_that_is_read_gets_all_its_events_however_fast_they_come(sockets: Path) -> None:
    async def burst(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
        worker.send(protocol.encode(protocol.STARTED, request_id))
        worker.send(protocol.encode(protocol.BEGIN, request_id, {}))
        for number in range(30_000):
            worker.event(request_id, n=number)
        worker.send(protocol.encode(protocol.CHUNK, request_id, json.dumps("x" * (10 << 20)).encode()))
        worker.send(protocol.encode(protocol.END, request_id, {}))

    async def play(world: World, connect: Connect) -> None:
        await world.serve(burst)
        reply = await world.client.post("/v2/models/e/generate_stream", headers=KEY, content=b"{}")
        events = [json.loads(line[6:]) for line in reply.text.split("\n\n") if line.startswith("data: ")]
        assert [event["n"] for event in events[:30_000]] == list(range(30_000))
        assert [len(event) for event in events[30_000:]] == [10 << 20]

    raw_story(sockets, play)


def test_replies_that_nobody_reads_are_bounded_in_all(sockets: Path) -> None:
    class Small(ClientConnection):
        unread = Unread(40 << 20)

    async def large(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
        worker.send(protocol.encode_reply(request_id, 200, b"x" * (15 << 20)))

    async def play(world: World, connect: Connect) -> None:
        await world.serve(large)
        for _ in range(6):
            raw = await connect()
            raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
            raw.writer.write(post(b"large"))
            await until(lambda: world.gateway.pool.by_name["e"].in_flight == 0)
            await asyncio.sleep(0.1)
        held = sum(c.transport.get_write_buffer_size() for c in world.gateway_connections())
        assert 0 < held <= Small.unread.most_bytes and Small.unread.bytes <= Small.unread.most_bytes
        reading = await connect()
        reading.writer.write(post(b"large"))
        assert len((await reading.reply())[2]) == 15 << 20
        await until(lambda: Small.unread.bytes <= Small.unread.most_bytes)

    raw_story(sockets, play, Small)


def test_a_wish_for_another_protocol_is_passed_over_and_the_body_and_the_next_request_are_kept(sockets: Path) -> None:
    """As `curl --http2 -d` asks: with a body, and with a second request behind it."""
    wish = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAoAAAAAIAAAAA")

    async def play(world: World, connect: Connect) -> None:
        worker = await world.serve()
        raw = await connect()
        raw.writer.write(post(b"kept", *wish))
        assert (await raw.reply())[::2] == (200, b"kept")
        raw.writer.write(post(b"the next"))
        assert (await raw.reply())[::2] == (200, b"the next")
        raw.writer.write(post(b"one", *wish) + post(b"two", "connection: upgrade", "upgrade: websocket") + post(b"3"))
        assert [(await raw.reply())[2] for _ in range(3)] == [b"one", b"two", b"3"]
        large = post(b"x" * 300_000, *wish)
        for start in range(0, len(large), 50_000):
            raw.writer.write(large[start : start + 50_000])
            await raw.writer.drain()
        assert (await raw.reply())[2] == b"x" * 300_000
        raw.writer.write(post(b"y", *wish) * 3000)  # many at once: nothing is nested
        assert all([(await raw.reply())[2] == b"y" for _ in range(3000)])
        assert len(worker.heads) == 3006
        raw.writer.write(b"CONNECT 10.0.0.1:22 HTTP/1.1\r\nhost: h\r\n\r\n")
        assert (await raw.reply())[0] == 405 and await raw.is_hung_up()

    raw_story(sockets, play)


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        (("content-length: 3", "content-length: 3"), b"abc"),
        (("content-length: 3", "transfer-encoding: chunked"), b"0\r\n\r\n"),
        (("transfer-encoding: chunked", "content-length: 3"), b"0\r\n\r\n"),
        (("transfer-encoding: chunked, identity",), b"0\r\n\r\n"),
        (("transfer-encoding: identity",), b"abc"),
        (("content-length: 3", "host: other"), b"abc"),
        (("content-length: +3",), b"abc"),
        (("content-length : 3",), b"abc"),
        (("x: 1", " folded: 2", "content-length: 3"), b"abc"),
    ],
)
def test_what_two_readers_could_read_in_two_ways_is_refused(sockets: Path, lines: tuple[str, ...], body: bytes) -> None:
    async def play(world: World, connect: Connect) -> None:
        worker = await world.serve()
        raw = await connect()
        head = "".join(f"{line}\r\n" for line in ("host: h", AUTH.strip(), *lines))
        raw.writer.write(f"POST {INFER} HTTP/1.1\r\n{head}\r\n".encode() + body + post(b"smuggled"))
        assert (await raw.reply())[0] == 400 and await raw.is_hung_up()
        assert not worker.heads

    raw_story(sockets, play)


def test_a_request_names_its_host_unless_it_is_of_http_1_0(sockets: Path) -> None:
    async def play(world: World, connect: Connect) -> None:
        raw = await connect()
        raw.writer.write(b"GET /v2/health/live HTTP/1.1\r\n\r\n")
        assert (await raw.reply())[0] == 400 and await raw.is_hung_up()
        raw = await connect()
        raw.writer.write(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
        assert (await raw.reply())[0] == 200

    raw_story(sockets, play)


def test_a_head_that_is_too_large_is_refused_also_when_it_comes_in_one_packet_with_its_body(sockets: Path) -> None:
    async def play(world: World, connect: Connect) -> None:
        worker = await world.serve()
        for path in (INFER, "/v2/models/e/generate_stream", "/api/v1/endpoints"):
            raw = await connect()
            raw.writer.write(post(b"body", "x: " + "y" * 9000, path=path))
            assert (await raw.reply())[0] == 431 and await raw.is_hung_up()
        raw = await connect()
        raw.writer.write(post(b"x" * 30_000, "x: " + "y" * 7000))  # a large packet, whose head is none
        assert (await raw.reply())[0] == 200 and len(worker.heads) == 1

    raw_story(sockets, play, Hasty)


def test_who_connects_and_says_nothing_or_sends_a_body_drop_by_drop_is_hung_up_on(sockets: Path) -> None:
    async def play(world: World, connect: Connect) -> None:
        await world.serve()
        silent = await connect()
        assert await asyncio.wait_for(silent.is_hung_up(), 5)
        for path, length in ((INFER, 100), (INFER, 100_000), ("/api/v1/hooks/e", 100), ("/api/v1/sources", 100_000)):
            raw = await connect()
            raw.writer.write(post(b"", path=path, length=length))
            began = asyncio.get_running_loop().time()
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):  # the last byte may come too late
                while not (raw.reader.at_eof() or raw.reader._buffer):  # type: ignore[attr-defined]
                    raw.writer.write(b"x")  # a byte now and then buys no time
                    await asyncio.sleep(0.02)
                assert (await raw.reply())[0] == 408, path
            assert await raw.is_hung_up() and asyncio.get_running_loop().time() - began < 5

    raw_story(sockets, play, Hasty)


def test_a_connection_that_works_is_kept_between_its_requests(sockets: Path) -> None:
    async def play(world: World, connect: Connect) -> None:
        await world.serve()
        raw = await connect()
        for _ in range(3):
            raw.writer.write(post(b"again"))
            assert (await raw.reply())[0] == 200
            await asyncio.sleep(0.6)  # twice what a first request has

    raw_story(sockets, play, Hasty)


def test_what_is_refused_behind_a_request_waits_for_that_ones_reply(sockets: Path) -> None:
    async def slow(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
        await asyncio.sleep(0.2)
        worker.send(protocol.encode_reply(request_id, 200, body))

    async def play(world: World, connect: Connect) -> None:
        await world.serve(slow)
        for first in (post(b"good"), post(b"g" * 100_000)):
            raw = await connect()
            raw.writer.write(first + b"\x16\x03\x01 this is TLS")
            assert (await raw.reply())[::2] == (200, first.partition(b"\r\n\r\n")[2])
            assert (await raw.reply())[0] == 400 and await raw.is_hung_up()

    raw_story(sockets, play)


def test_trailers_are_nobodys_headers_and_do_not_grow_without_end(sockets: Path) -> None:
    async def play(world: World, connect: Connect) -> None:
        worker = await world.serve()
        chunked = f"POST {INFER} HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n".encode()
        raw = await connect()
        raw.writer.write(chunked + b"\r\n2\r\n{}\r\n0\r\n" + AUTH.encode() + b"\r\n")
        assert (await raw.reply())[0] == 401 and not worker.heads
        raw = await connect()
        raw.writer.write(chunked + AUTH.encode() + b"\r\n2\r\n{}\r\n0\r\nx: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                raw.writer.write(b"y" * 8000)
                await raw.writer.drain()
                await asyncio.sleep(0)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            assert (await raw.reply())[0] == 400
        assert not worker.heads

    raw_story(sockets, play)
