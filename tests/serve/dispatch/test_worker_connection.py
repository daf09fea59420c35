"""One connection to one worker, over a real Unix socket with real frames."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from puna.serve.dispatch.worker_connection import InFlight, Lost, Refused, Reply, WorkerConnection
from puna.worker import protocol
from serve.conftest import StubWorker, until

HEAD = {"path": "infer", "deadline_s": 5, "trace": "t"}


def talk(worker: StubWorker, story: Callable[[WorkerConnection], Awaitable[None]]) -> None:
    """Run `story` with a connection to a running `worker`."""

    async def main() -> None:
        await worker.start()
        connection = WorkerConnection(worker.route, lambda: None)
        task = asyncio.ensure_future(connection.run())
        await until(lambda: connection.usable)
        try:
            await asyncio.wait_for(story(connection), 10)
        finally:
            connection.close()
            await asyncio.wait_for(task, 5)
            worker.die()

    uvloop.run(main())


async def never(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
    worker.send(protocol.encode(protocol.STARTED, request_id))


async def silent(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
    pass


class Asked:
    """An exchange, and what was heard of it as a future."""

    def __init__(self, connection: WorkerConnection, body: bytes) -> None:
        self.outcome: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
        self.exchange = connection.send(HEAD, body, self.heard)

    def heard(self, reply: Reply | None, error: BaseException | None) -> None:
        assert not self.outcome.done(), "heard twice"
        if error is None:
            self.outcome.set_result(reply)
        else:
            self.outcome.set_exception(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.exchange, name)


def ask(connection: WorkerConnection, body: bytes = b"x") -> Any:
    return Asked(connection, body)


def test_many_requests_share_the_connection_and_each_gets_its_own_reply(sockets: Path) -> None:
    async def last_first(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
        await asyncio.sleep(0.05 - int(body) / 1000)
        worker.send(protocol.encode_reply(request_id, 200, body))

    async def story(connection: WorkerConnection) -> None:
        exchanges = [ask(connection, b"%d" % n) for n in range(40)]
        assert connection.outstanding == 40
        replies = await asyncio.gather(*(e.outcome for e in exchanges))
        assert replies == [Reply(200, b"%d" % n) for n in range(40)]
        assert connection.outstanding == 0

    talk(StubWorker(sockets / "w", last_first), story)


def test_a_body_of_megabytes_arrives_whole_both_ways(sockets: Path) -> None:
    async def story(connection: WorkerConnection) -> None:
        body = bytes(range(256)) * 4096 * 8
        assert await ask(connection, body).outcome == Reply(200, body)

    talk(StubWorker(sockets / "w"), story)


def test_when_the_worker_dies_unbegun_requests_are_lost_and_it_is_dialled_again(sockets: Path) -> None:
    worker = StubWorker(sockets / "w", never)

    async def story(connection: WorkerConnection) -> None:
        exchange = ask(connection)
        await worker.until_seen(protocol.REQUEST)
        worker.die()
        with pytest.raises(Lost):
            await exchange.outcome
        assert not connection.usable and connection.outstanding == 0
        await worker.start()
        await until(lambda: connection.usable)

    talk(worker, story)


def test_a_begun_stream_ends_at_once_with_a_reason_when_its_worker_dies(sockets: Path) -> None:
    async def begin(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
        worker.send(protocol.encode(protocol.BEGIN, request_id, {}))
        worker.event(request_id, OUT="a")

    worker = StubWorker(sockets / "w", begin)

    async def story(connection: WorkerConnection) -> None:
        exchange = ask(connection)
        assert await exchange.outcome is None
        await exchange.more()
        assert exchange.take() == [b'{"OUT": "a"}']
        more = exchange.more()
        worker.die()
        await more
        assert exchange.ended and "died after its reply had begun" in exchange.error

    talk(worker, story)


def test_a_whole_stream_ends_without_an_error(sockets: Path) -> None:
    async def stream(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
        worker.send(protocol.encode(protocol.BEGIN, request_id, {}))
        for n in range(3):
            worker.event(request_id, n=n)
        worker.send(protocol.encode(protocol.END, request_id, {}))

    async def story(connection: WorkerConnection) -> None:
        exchange = ask(connection)
        assert await exchange.outcome is None
        await until(lambda: exchange.ended)
        assert [*exchange.take(), exchange.error] == [b'{"n": 0}', b'{"n": 1}', b'{"n": 2}', ""]
        assert connection.outstanding == 0

    talk(StubWorker(sockets / "w", stream), story)


def test_an_abandoned_request_that_runs_keeps_its_place_until_the_worker_says_end(sockets: Path) -> None:
    worker = StubWorker(sockets / "w", never)

    async def story(connection: WorkerConnection) -> None:
        exchange = ask(connection)
        await until(lambda: exchange.started)
        connection.abandon(exchange.exchange)
        await worker.until_seen(protocol.CANCEL)
        assert connection.outstanding == 1
        worker.send(protocol.encode(protocol.END, exchange.request_id, {}))
        await until(lambda: connection.outstanding == 0)

    talk(worker, story)


def test_an_abandoned_request_that_had_not_begun_frees_its_place_at_once(sockets: Path) -> None:
    worker = StubWorker(sockets / "w", silent)

    async def story(connection: WorkerConnection) -> None:
        exchange = ask(connection)
        await worker.until_seen(protocol.REQUEST)
        connection.abandon(exchange.exchange)
        assert connection.outstanding == 0
        # ... but STARTED was on its way already: it runs after all
        worker.send(protocol.encode(protocol.STARTED, exchange.request_id))
        await until(lambda: connection.outstanding == 1)
        worker.send(protocol.encode(protocol.END, exchange.request_id, {}))
        await until(lambda: connection.outstanding == 0)

    talk(worker, story)


def test_a_draining_worker_refuses_and_the_link_rests(sockets: Path) -> None:
    async def refuse(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
        worker.send(protocol.encode_reply(request_id, 503, b"{}"))

    async def story(connection: WorkerConnection) -> None:
        with pytest.raises(Refused):
            await ask(connection).outcome
        assert not connection.usable
        await until(lambda: connection.usable)

    talk(StubWorker(sockets / "w", refuse), story)


def test_an_unlisted_link_finishes_what_it_has_and_then_hangs_up(sockets: Path) -> None:
    worker = StubWorker(sockets / "w", never)

    async def story(connection: WorkerConnection) -> None:
        exchange = ask(connection)
        await until(lambda: exchange.started)
        connection.retire()
        assert not connection.usable
        worker.send(protocol.encode_reply(exchange.request_id, 200, b"late"))
        assert await exchange.outcome == Reply(200, b"late")
        await until(lambda: connection.closed)

    talk(worker, story)


def test_garbage_from_a_worker_ends_the_connection_not_the_gateway(sockets: Path) -> None:
    worker = StubWorker(sockets / "w", never)

    async def story(connection: WorkerConnection) -> None:
        exchange = ask(connection)
        await until(lambda: exchange.started)
        worker.send(b"\xff" * 64)
        with pytest.raises(Lost):
            await exchange.outcome

    talk(worker, story)


def test_a_worker_that_answers_at_once_is_sent_a_few_requests_ahead_a_slow_one_is_not(sockets: Path) -> None:
    delay_s = 0.0

    async def after_a_while(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
        await asyncio.sleep(delay_s)
        worker.send(protocol.encode_reply(request_id, 200, body))

    async def story(connection: WorkerConnection) -> None:
        nonlocal delay_s
        assert connection.places == 1, "an unknown app counts as slow"
        for _ in range(30):
            await ask(connection).outcome
        assert connection.places > 1
        delay_s = 0.2
        await ask(connection).outcome
        assert connection.places == 1

    talk(StubWorker(sockets / "w", after_a_while, concurrency=1), story)


def test_of_a_dead_worker_the_first_requests_may_have_begun_those_sent_ahead_have_not(sockets: Path) -> None:
    worker = StubWorker(sockets / "w", silent, concurrency=2)

    async def story(connection: WorkerConnection) -> None:
        asked = [ask(connection) for _ in range(4)]
        await worker.until_seen(protocol.REQUEST, 4)
        worker.die()
        lost = await asyncio.gather(*(one.outcome for one in asked), return_exceptions=True)
        assert [one.started for one in lost if isinstance(one, Lost)] == [True, True, False, False]

    talk(worker, story)


# -- tiers


def test_a_worker_that_sleeps_is_sent_no_more_than_it_runs_at_once_however_brisk_it_was(sockets: Path) -> None:
    worker = StubWorker(sockets / "w", concurrency=2)

    async def story(connection: WorkerConnection) -> None:
        for _ in range(30):
            await ask(connection).outcome
        assert connection.places > 2
        worker.tell_tier("asleep")
        await until(lambda: connection.asleep)
        assert connection.places == 2
        worker.tell_tier("awake")
        await until(lambda: not connection.asleep)
        assert connection.places > 2, "a wake says nothing of how long a call takes"

    talk(worker, story)


def test_a_request_found_the_worker_asleep_when_started_says_so_or_while_it_may_yet_say_so(sockets: Path) -> None:
    worker = StubWorker(sockets / "w", silent)

    async def story(connection: WorkerConnection) -> None:
        begun, woken, in_time = ask(connection), ask(connection), ask(connection)
        await worker.until_seen(protocol.REQUEST, 3)
        worker.send(protocol.encode(protocol.STARTED, begun.request_id))
        await until(lambda: begun.started)
        worker.tell_tier("asleep")
        await until(lambda: connection.asleep)
        assert [one.found_asleep for one in (begun, woken, in_time)] == [False, True, True]
        worker.tell_tier("awake")
        worker.send(protocol.encode(protocol.STARTED, woken.request_id, {"tier": "asleep", "wake_ms": 250.0}))
        worker.send(protocol.encode(protocol.STARTED, in_time.request_id))
        await until(lambda: in_time.started)
        assert (woken.found_asleep, woken.wake_s) == (True, 0.25)
        assert (in_time.found_asleep, in_time.wake_s) == (False, 0.0)

    talk(worker, story)


def test_each_connection_begins_with_the_tier_and_the_birth_of_the_worker_that_it_reached(sockets: Path) -> None:
    worker = StubWorker(sockets / "w")

    async def story(connection: WorkerConnection) -> None:
        assert (connection.asleep, connection.born) == (False, "spawn")
        worker.die()
        worker.tier, worker.born = "asleep", "zygote"
        await until(lambda: not connection.usable)
        await worker.start()
        await until(lambda: connection.usable)
        assert (connection.asleep, connection.born) == (True, "zygote")

    talk(worker, story)


def test_a_worker_that_hangs_up_before_it_has_said_who_it_is_is_dialled_ever_more_seldom(sockets: Path) -> None:
    dials = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            dials.append(loop.time())
            writer.close()

        server = await asyncio.start_unix_server(hang_up, str(sockets / "w"))
        connection = WorkerConnection(StubWorker(sockets / "w").route, lambda: None)
        task = asyncio.ensure_future(connection.run())
        await asyncio.sleep(1.0)
        connection.close()
        await asyncio.wait_for(task, 5)
        server.close()

    uvloop.run(main())
    assert 3 <= len(dials) <= 8, [round(at - dials[0], 3) for at in dials]


def test_a_worker_that_is_not_there_yet_is_dialled_again_soon_and_then_ever_more_seldom(
    sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses, sleep = [], asyncio.sleep

    async def note(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)
        if len(pauses) == 7:
            connection.listed = False

    async def main() -> None:
        nonlocal connection
        connection = WorkerConnection(StubWorker(sockets / "none").route, lambda: None)
        monkeypatch.setattr(asyncio, "sleep", note)
        await connection.run()

    connection: WorkerConnection = None  # type: ignore[assignment]
    uvloop.run(main())
    assert pauses == [0.02, 0.05, 0.1, 0.2, 0.5, 0.5, 0.5]


def test_a_stream_has_something_to_take_when_an_event_came_or_it_ended() -> None:
    async def play() -> None:
        stream = InFlight(1, None)
        assert not stream.more().done()
        stream._events.append(b"{}")
        assert stream.more().done() and stream.take() == [b"{}"] and not stream.more().done()
        stream.ended = True
        assert stream.more().done() and stream.take() == []

    asyncio.run(play())


def test_a_worker_has_as_many_places_as_it_runs_more_when_it_is_brisk_and_none_when_it_is_one_suspects(
    sockets: Path,
) -> None:
    async def play() -> None:
        connection = WorkerConnection(StubWorker(sockets / "none").route, lambda: None)
        connection.concurrency, ahead = 3, {}
        for call_s in (1.0, 0.02, 0.019, 0.002, 0.0019):
            connection._call_s = call_s
            ahead[call_s] = connection.places - 3
        assert ahead == {1.0: 0, 0.02: 0, 0.019: 4, 0.002: 4, 0.0019: 16}
        connection.asleep = True
        assert connection.places == 3
        connection.is_reserved = True
        assert connection.places == 0

    asyncio.run(play())
