"""Large bodies on their way: on the disk while they wait, in pieces to the worker, again when that dies."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from puna.serve.http import body as spool
from puna.worker import protocol
from serve.conftest import StubWorker, echo, until
from serve.http.test_connection import Connect, post, raw_story
from serve.test_gateway import INFER, KEY, World, story

pytestmark = pytest.mark.process

MIB = 1 << 20
LARGE = os.urandom(MIB) * 24


async def digest(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
    """Reply with the body's length and digest."""
    worker.send(protocol.encode(protocol.STARTED, request_id))
    worker.send(protocol.encode_reply(request_id, 200, digest_of(body)))


def digest_of(body: bytes) -> bytes:
    return b"%d %s" % (len(body), hashlib.sha256(body).hexdigest().encode())


def is_empty(world: World) -> bool:
    """Nothing is held any more."""
    kept = world.gateway.spool
    return kept.files == 0 and kept.bytes_in_memory == 0


@pytest.mark.parametrize("size", [65_537, MIB, MIB + 1, spool.PIECE_BYTES * 5, len(LARGE)])
def test_a_body_of_any_length_arrives_as_it_was_stated_chunked_and_packed(sockets: Path, size: int) -> None:
    body = LARGE[:size]

    async def chunks() -> Any:
        for start in range(0, size, 700_001):
            yield body[start : start + 700_001]

    async def play(world: World) -> None:
        await world.serve(digest)
        packed = {**KEY, "content-encoding": "gzip"}
        for headers, content in ((KEY, body), (KEY, chunks()), (packed, gzip.compress(body, 1))):
            reply = await world.client.post(INFER, headers=headers, content=content)
            assert (reply.status_code, reply.content) == (200, digest_of(body))
            await until(lambda: is_empty(world))

    story(sockets, play)


def test_many_large_bodies_and_small_ones_share_a_connection_to_the_worker(sockets: Path) -> None:
    async def play(world: World) -> None:
        await world.serve(digest)
        bodies = [LARGE[n : n + (3 + n) * MIB] for n in range(8)] + [b"small %d" % n for n in range(8)]
        replies = await asyncio.gather(*(world.client.post(INFER, headers=KEY, content=body) for body in bodies))
        assert [reply.content for reply in replies] == [digest_of(body) for body in bodies]
        await until(lambda: is_empty(world))

    story(sockets, play)


def test_a_large_body_goes_to_another_replica_when_its_own_dies_before_or_after_it_has_it_all(sockets: Path) -> None:
    async def die(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
        worker.die()

    async def play(world: World) -> None:
        first = await world.serve(die)
        asking = asyncio.ensure_future(world.client.post(INFER, headers=KEY, content=LARGE))
        await first.until_seen(protocol.REQUEST)
        world.control.set(await world.worker(digest, id="r2"))
        assert (await asking).content == digest_of(LARGE)
        slow = await world.worker(digest, id="r3")
        world.control.set(slow)
        await until(lambda: list(world.gateway.pool.by_name["e"].connections) == [("r3", 1)])
        await world.connected()
        asking = asyncio.ensure_future(world.client.post(INFER, headers=KEY, content=LARGE))
        await slow.until_seen(protocol.BODY, 2)
        slow.die()
        world.control.set(await world.worker(digest, id="r4"))
        assert (await asking).content == digest_of(LARGE)
        await until(lambda: is_empty(world))

    story(sockets, play)


def test_a_client_that_leaves_while_its_body_comes_or_goes_frees_everything(sockets: Path) -> None:
    async def never(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
        worker.send(protocol.encode(protocol.STARTED, request_id))
        worker.waited = True  # type: ignore[attr-defined]

    async def play(world: World, connect: Connect) -> None:
        worker = await world.serve(never)
        coming = await connect()
        coming.writer.write(post(LARGE[: 5 * MIB], length=len(LARGE)))
        await until(lambda: world.gateway.spool.files == 1)
        coming.writer.transport.abort()
        await until(lambda: is_empty(world))
        assert not worker.heads
        going = await connect()
        going.writer.write(post(LARGE))
        await worker.until_seen(protocol.BODY)
        going.writer.transport.abort()
        await until(lambda: is_empty(world) and (protocol.CANCEL, 1) in worker.seen)
        worker.handler = echo
        asked = await connect()
        asked.writer.write(post(b"next"))
        assert (await asked.reply())[2] == b"next"

    raw_story(sockets, play)


def test_a_disk_without_room_refuses_that_request_and_no_other(sockets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(world: World) -> None:
        await world.serve(digest)
        with monkeypatch.context() as full:
            full.setattr(spool, "RESERVE_BYTES", 1 << 60)
            large, small = await asyncio.gather(
                world.client.post(INFER, headers=KEY, content=LARGE),
                world.client.post(INFER, headers=KEY, content=b"small"),
            )
        assert large.status_code == 507 and "has no place on the server's disk" in large.json()["error"]
        assert small.content == digest_of(b"small")
        await until(lambda: is_empty(world))
        assert (await world.client.post(INFER, headers=KEY, content=LARGE)).content == digest_of(LARGE)

    story(sockets, play)


def test_a_folder_that_was_deleted_comes_back(sockets: Path) -> None:
    folder = sockets / "spool"

    async def play(world: World) -> None:
        await world.serve(digest)
        for _ in range(2):
            assert (await world.client.post(INFER, headers=KEY, content=LARGE)).content == digest_of(LARGE)
            assert list(folder.iterdir()) == [], "files there have no names"
            folder.rmdir()

    story(sockets, play, spool=folder)


def test_there_are_only_so_many_large_bodies_at_a_time(sockets: Path) -> None:
    async def play(world: World, connect: Connect) -> None:
        await world.serve(digest)
        for _ in range(2):
            raw = await connect()
            raw.writer.write(post(LARGE[: 2 * MIB], length=len(LARGE)))
        await until(lambda: world.gateway.spool.files == 2)
        reply = await world.client.post(INFER, headers=KEY, content=LARGE)
        assert reply.status_code == 503 and "2 large requests" in reply.json()["error"]

    raw_story(sockets, play, most_spooled=2)


def test_when_much_is_in_memory_shorter_bodies_go_to_the_disk_as_well(sockets: Path) -> None:
    async def play(world: World, connect: Connect) -> None:
        await world.serve(digest)
        world.gateway.spool._memory_bytes = MIB
        held = []
        for _ in range(3):
            raw = await connect()
            raw.writer.write(post(LARGE[: MIB // 2], length=MIB // 2 + 1))
            held.append(raw)
        await until(lambda: world.gateway.spool.files == 1)
        assert world.gateway.spool.bytes_in_memory <= MIB
        for raw in held:
            raw.writer.write(b"x")
            assert (await raw.reply())[2] == digest_of(LARGE[: MIB // 2] + b"x")
        await until(lambda: is_empty(world))

    raw_story(sockets, play)


def test_a_packed_body_that_grows_without_end_is_refused_before_it_has_grown(sockets: Path) -> None:
    async def play(world: World) -> None:
        await world.serve(digest)
        bomb = gzip.compress(bytes(300 * MIB), 9)
        reply = await world.client.post(INFER, headers={**KEY, "content-encoding": "gzip"}, content=bomb)
        assert reply.status_code == 413
        await until(lambda: is_empty(world))

    story(sockets, play)
