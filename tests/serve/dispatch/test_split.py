"""Two revisions behind one endpoint: turns, explicit wishes, and what becomes of requests when one loses its share."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from puna.control.telemetry.load import Loads
from puna.control.wire import EndpointLoad, EndpointRoute, LoadReport
from puna.serve.dispatch.call import Call
from puna.serve.dispatch.dispatcher import Dispatcher, Split
from puna.worker import protocol
from serve.conftest import StubWorker, until
from serve.test_gateway import INFER, KEY, World, story


def dispatcher(revision: int) -> Dispatcher:
    route = EndpointRoute("e", revision, True, "ready", "", 5.0, 100, 2, 0, None, ())
    return Dispatcher(route, lambda: None, 900.0)


@pytest.mark.parametrize("percent", [1, 10, 25, 33, 50, 75, 99])
def test_of_each_hundred_the_second_gets_exactly_its_share_spread_evenly(percent: int) -> None:
    first, split = dispatcher(3), Split(dispatcher(4), percent)
    turns = [split.pick(first, Call("e", "infer", b"", "t"), "").route.revision for _ in range(1000)]
    for start in range(900):
        assert turns[start : start + 100].count(4) == percent
    gaps = "".join(map(str, turns)).split("4")[1:-1]
    assert max(map(len, gaps), default=0) - min(map(len, gaps), default=0) <= 1


def test_who_asks_for_a_revision_with_a_share_gets_it_and_takes_nobodys_turn() -> None:
    first, split = dispatcher(3), Split(dispatcher(4), 50)

    def pick(asked: str) -> int:
        call = Call("e", "infer", b"", "t")
        picked = split.pick(first, call, asked).route.revision
        assert call.split == picked
        return picked

    assert [pick(asked) for asked in ("3", "4", "", "4", "", "7", "x", "")] == [3, 4, 3, 4, 4, 3, 4, 3]


def test_loads_are_told_apart_by_revision_and_what_is_not_divided_is_the_first_ones() -> None:
    loads = Loads()
    part = {3: EndpointLoad(3, 1, 9.0), 4: EndpointLoad(1, 0, 8.0)}
    loads.report(LoadReport("g1", 10.0, {"e": EndpointLoad(4, 1, 9.0, revisions=part)}))
    loads.report(LoadReport("g2", 10.0, {"e": EndpointLoad(2, 0, 9.5)}))  # its table is older
    assert loads.revision("e", 3, 10.1, is_first=True) == EndpointLoad(5, 1, 9.5)
    assert loads.revision("e", 4, 10.1, is_first=False) == EndpointLoad(1, 0, 8.0)
    assert loads.revision("e", 4, 20.0, is_first=False) == EndpointLoad(
        0, 0, 8.0
    )  # when it was last called outlives the reports


# ---- over HTTP, with stub workers ------------------------------------------------------------------------------


class Two:
    """A gateway with two revisions, one stub worker each, named by what they answer."""

    def __init__(self, world: World, first: StubWorker, second: StubWorker) -> None:
        self.world, self.first, self.second = world, first, second

    def share(self, percent: int, second: StubWorker | None = None, **changes: Any) -> None:
        """Revision 4 has so much."""
        worker = second or self.second
        replica: dict[str, Any] = {"id": worker.id, "epoch": 1, "socket": str(worker.path), "concurrency": 4}
        replica["revision"] = changes.get("revision", 4)
        self.world.control.set(self.first)
        split = {"revision": 4, "percent": percent, "schema": None, "adapters": {}, "replicas": [replica]}
        self.world.control.set(self.first, split=self.world.control.endpoints["e"] | split | changes)

    async def call(self, **headers: str) -> httpx.Response:
        return await self.world.client.post(INFER, json={}, headers=KEY | headers)

    def load(self) -> dict[str, Any]:
        """As last reported."""
        return dict(self.world.control.loads[-1]["endpoints"].get("e", {})) if self.world.control.loads else {}

    async def connected(self) -> None:
        def both() -> bool:
            mine = self.world.gateway.pool.by_name.get("e")
            return mine is not None and mine.split is not None and mine.ready and mine.split.dispatcher.ready

        await until(both)


async def two(world: World, percent: int, handler: Any = None) -> Two:
    made = Two(world, await world.worker(answer, id="r3"), await world.worker(handler or answer, id="r4"))
    made.share(percent)
    await made.connected()
    return made


async def answer(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
    worker.send(protocol.encode(protocol.STARTED, request_id))
    worker.send(protocol.encode_reply(request_id, 200, worker.id.encode()))


async def silent(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
    """Takes a request and never says a word."""


@pytest.mark.process
def test_replies_come_from_each_revision_by_its_share_and_say_from_which(sockets: Path) -> None:
    async def play(world: World) -> None:
        made = await two(world, 25)
        replies = [await made.call() for _ in range(80)]
        assert Counter(r.text for r in replies) == {"r3": 60, "r4": 20}
        assert all(r.headers["x-puna-revision"] == r.text[1:] for r in replies)
        assert {(await made.call(**{"x-puna-revision": "4"})).text for _ in range(5)} == {"r4"}
        made.share(50)
        await until(lambda: (s := world.gateway.pool.by_name["e"].split) is not None and s.percent == 50)
        assert Counter([(await made.call()).text for _ in range(20)]) == {"r3": 10, "r4": 10}
        streams = [
            await world.client.post("/v2/models/e/generate_stream", json={}, headers=KEY | {"x-puna-revision": "4"})
        ]
        assert streams[0].headers["x-puna-revision"] == "4"

    story(sockets, play)


@pytest.mark.process
def test_the_load_of_each_revision_is_reported_and_counted(sockets: Path) -> None:
    async def play(world: World) -> None:
        made = await two(world, 50, silent)
        waiting = asyncio.ensure_future(made.call(**{"x-puna-revision": "4"}))
        await made.second.until_seen(protocol.REQUEST)
        assert (await made.call(**{"x-puna-revision": "3"})).text == "r3"
        await until(lambda: made.load().get("in_flight") == 1)
        load = made.load()
        assert load["revisions"]["4"]["in_flight"] == 1 and load["revisions"]["3"]["in_flight"] == 0
        assert load["replicas"] == {"r3": 0, "r4": 1}
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        world.gateway.counts.flush()
        text = world.gateway.counts.text().decode()
        assert 'puna_revision_requests_total{endpoint="e",revision="3",status="200"} 1.0' in text
        assert 'puna_revision_request_seconds_count{endpoint="e",revision="3"} 1.0' in text

    story(sockets, play)


@pytest.mark.process
def test_without_a_split_nothing_is_counted_by_revision_and_a_wish_is_passed_over(sockets: Path) -> None:
    async def play(world: World) -> None:
        await world.serve(answer)
        reply = await world.client.post(INFER, json={}, headers=KEY | {"x-puna-revision": "9"})
        assert reply.status_code == 200 and reply.headers["x-puna-revision"] == "3"
        world.gateway.counts.flush()
        assert "puna_revision_requests_total{" not in world.gateway.counts.text().decode()

    story(sockets, play)


@pytest.mark.process
@pytest.mark.parametrize("heir", [3, 4])
def test_who_waits_for_a_revision_that_loses_its_share_is_answered_by_the_other(sockets: Path, heir: int) -> None:
    async def play(world: World) -> None:
        made = await two(world, 50)
        loser = made.second if heir == 3 else made.first
        loser.die()
        dispatchers = world.gateway.pool.by_name
        losing = dispatchers["e"].split.dispatcher if heir == 3 else dispatchers["e"]  # type: ignore[union-attr]
        await until(lambda: not losing.ready)
        asked = {"x-puna-revision": loser.id[1:]}
        waiting = [asyncio.ensure_future(made.call(**asked)) for _ in range(7)]
        await until(lambda: len(losing.queue) == 7)
        if heir == 3:
            world.control.set(made.first, max_queue=1)  # those who were accepted are not refused now
        else:
            world.control.set(made.second, revision=4, max_queue=1)
        replies = await asyncio.gather(*waiting)
        assert [(r.status_code, r.text) for r in replies] == [(200, f"r{heir}")] * 7
        assert dispatchers["e"].route.revision == heir and dispatchers["e"].split is None
        assert (await made.call()).text == f"r{heir}"
        world.gateway.counts.flush()
        metrics = world.gateway.counts.text().decode()
        assert 'puna_requests_total{endpoint="e",status="200"} 8.0' in metrics

    story(sockets, play)


@pytest.mark.process
def test_what_a_retired_revision_has_begun_it_finishes_and_is_counted_until_then(sockets: Path) -> None:
    async def play(world: World) -> None:
        go = asyncio.Event()

        async def slow(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
            await go.wait()
            await answer(worker, request_id, head, body)

        made = await two(world, 50, slow)
        begun = asyncio.ensure_future(made.call(**{"x-puna-revision": "4"}))
        await made.second.until_seen(protocol.REQUEST)
        world.control.set(made.first)
        await until(lambda: world.gateway.pool.by_name["e"].split is None)
        count = len(world.control.loads)
        await until(lambda: len(world.control.loads) > count + 1)
        assert made.load()["replicas"]["r4"] == 1
        go.set()
        assert (await begun).text == "r4"
        await until(lambda: "r4" not in made.load()["replicas"])

    story(sockets, play)


@pytest.mark.process
def test_a_request_whose_replica_dies_after_its_revision_lost_its_share_goes_on_elsewhere(sockets: Path) -> None:
    async def play(world: World) -> None:
        made = await two(world, 50, silent)
        begun = asyncio.ensure_future(made.call(**{"x-puna-revision": "4"}))
        await made.second.until_seen(protocol.REQUEST)
        world.control.set(made.first)
        await until(lambda: world.gateway.pool.by_name["e"].split is None)
        made.second.die()
        assert (await begun).text == "r3"

    story(sockets, play)


@pytest.mark.process
def test_another_second_revision_takes_the_place_of_the_first_one(sockets: Path) -> None:
    async def play(world: World) -> None:
        made = await two(world, 50)
        third = await world.worker(answer, id="r5")
        made.share(50, third, revision=5)
        await until(
            lambda: (s := world.gateway.pool.by_name["e"].split) is not None and s.dispatcher.route.revision == 5
        )
        assert Counter([(await made.call()).text for _ in range(10)]) == {"r3": 5, "r5": 5}
        world.control.endpoints.clear()
        world.control.version += 1
        world.control.changed.set()
        await until(lambda: not world.gateway.pool.by_name)
        assert (await made.call()).status_code == 404

    story(sockets, play)
