"""Bodies that kill replicas: suspects, convictions and their end; and a gateway whose replicas die of requests."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from puna.errors import PoisonError, RateLimitError
from puna.serve.dispatch.poison import CONVICTED_S, REMEMBERED, SUSPECTED_S, Poison, digest
from puna.worker import protocol
from serve.conftest import StubWorker, until
from serve.test_gateway import INFER, KEY, World, story


def test_a_body_that_two_replicas_died_of_alone_is_refused_for_ten_minutes_and_then_tried_again() -> None:
    poison = Poison("e")
    assert not poison
    poison.died("d", 100.0, 0.1, alone=True)
    suspect = poison.check("d", 100.0)
    assert suspect is not None and suspect.age_s == 0.1
    poison.died("d", 200.0, 0.1, alone=True)
    for now in (200.0, 200.0 + CONVICTED_S - 1):
        with pytest.raises(PoisonError, match=r"2 replicas died of this very request") as caught:
            poison.check("d", now)
        assert caught.value.hint == "puna logs e" and caught.value.http_status == 500
    assert poison.check("other", 200.0) is None
    assert poison.check("d", 200.0 + CONVICTED_S) is None
    poison.sweep(200.0 + CONVICTED_S)
    assert not poison


def test_company_convicts_nobody_and_an_answer_clears() -> None:
    poison = Poison("e")
    for now in (1.0, 2.0, 3.0):
        poison.died("d", now, 0.5, alone=False)
    assert poison.check("d", 3.0) is not None
    poison.died("d", 4.0, 0.5, alone=True)
    poison.lived("d")
    assert not poison
    poison.died("d", 5.0, 0.5, alone=True)
    assert poison.check("d", 5.0) is not None, "one death since it was answered: no more than a suspect"
    assert poison.check("d", 5.0 + SUSPECTED_S) is None


def test_what_other_gateways_found_out_is_refused_too_and_only_ones_own_is_told() -> None:
    poison = Poison("e")
    poison.learn({"theirs": 60.0}, {"k": 30.5}, 1000.0)
    with pytest.raises(PoisonError):
        poison.check("theirs", 1059.0)
    with pytest.raises(RateLimitError) as caught:
        poison.check_key("k", 1000.0)
    assert caught.value.retry_after_s == 31 and caught.value.http_status == 429
    poison.check_key("another", 1000.0)
    poison.check_key("k", 1031.0)
    for now in (1000.0, 1001.0):
        poison.died("mine", now, 0.1, alone=True)
    assert poison.convicted(1001.0) == {"mine": CONVICTED_S}


def test_suspects_are_bounded() -> None:
    poison = Poison("e")
    for number in range(REMEMBERED + 5):
        poison.died(str(number), float(number), 0.1, alone=False)
    assert poison.check("4", 1030.0) is None and poison.check("5", 600.0) is not None


def test_requests_are_equal_when_path_adapter_and_body_are() -> None:
    made = {digest(*of) for of in (("infer", b"x"), ("stream", b"x"), ("infer", b"y"), ("infer", b"x", "a/b"))}
    assert len(made) == 4 and digest("infer", b"x") in made


# ---- over HTTP, with stub workers -----------------------------------------------------------------------------


class Replicas:
    """Workers that die of some bodies; each that dies is replaced by another at once."""

    def __init__(self, world: World, count: int = 1, concurrency: int = 4, fatal: bytes = b"poison") -> None:
        self.world, self.fatal, self.concurrency = world, fatal, concurrency
        self.living: list[StubWorker] = []
        self.deaths: list[int] = []
        """How many requests each of the dead had."""
        self.alone_with: list[bytes] = []
        self._count, self._numbers = count, 0
        self._running: dict[str, list[bytes]] = {}
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def start(self) -> Replicas:
        while len(self.living) < self._count:
            self._numbers += 1
            worker = await self.world.worker(self._infer, concurrency=self.concurrency, id=f"w{self._numbers}")
            self._running[worker.id] = []
            self.living.append(worker)
        self.world.control.set(*self.living)
        return self

    async def _infer(self, worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
        running = self._running[worker.id]
        running.append(body)
        worker.send(protocol.encode(protocol.STARTED, request_id))
        if body.startswith(self.fatal):
            await asyncio.sleep(0.02)
            if worker in self.living:
                self.deaths.append(len(running))
                self.living.remove(worker)
                asyncio.get_running_loop().call_soon(worker.die)
                self._task = asyncio.ensure_future(self.start())
            await asyncio.sleep(3600)
        await self.may_end.wait()
        await asyncio.sleep(0.01)
        running.remove(body)
        worker.send(protocol.encode_reply(request_id, 200, body))

    async def call(self, body: bytes) -> httpx.Response:
        return await self.world.client.post(INFER, headers=KEY, content=body)


def usable(world: World) -> list[str]:
    """Replicas that the gateway has."""
    return [
        connection.replica_id
        for connection in world.gateway.pool.by_name["e"].connections.values()
        if connection.usable
    ]


def deaths_told(world: World) -> dict[str, dict[str, Any]]:
    """By replica, as the gateway has reported them."""
    loads = [report["endpoints"].get("e", {}) for report in world.control.loads]
    return {death["replica"]: death for load in loads for death in load.get("deaths", ())}


def test_a_body_that_kills_replicas_is_answered_500_at_once_after_two_and_others_are_served(sockets: Path) -> None:
    async def play(world: World) -> None:
        replicas = await Replicas(world).start()
        await until(lambda: "e" in world.gateway.pool.by_name)
        assert (await replicas.call(b"fine")).status_code == 200
        first = await replicas.call(b"poison")
        assert first.status_code == 502 and "2 replicas died" in first.json()["error"]
        for _ in range(3):
            again = await replicas.call(b"poison")
            assert again.status_code == 500 and "puna logs e" in again.json()["error"]
        assert replicas.deaths == [1, 1]
        assert (await replicas.call(b"fine")).status_code == 200
        await until(lambda: len(deaths_told(world)) == 2)
        told = list(deaths_told(world).values())
        assert [death["survived"] for death in told] == [1, 0]
        assert {(death["key"], death["revision"]) for death in told} == {("0123abcd", 3)}
        await until(lambda: world.control.loads[-1]["endpoints"]["e"]["poison"])
        (revision, _, left_s) = world.control.loads[-1]["endpoints"]["e"]["poison"][0]
        assert revision == 3 and 590 < left_s <= 600

    story(sockets, play)


def test_of_a_batch_that_died_together_the_culprit_is_singled_out_and_all_others_are_answered(sockets: Path) -> None:
    async def play(world: World) -> None:
        replicas = await Replicas(world, count=2, concurrency=8).start()
        await until(lambda: "e" in world.gateway.pool.by_name)
        await world.connected(2)
        replicas.may_end.clear()
        others = [asyncio.ensure_future(replicas.call(b"%d" % number)) for number in range(12)]
        await until(lambda: sum(map(len, replicas._running.values())) == 12)
        poison = asyncio.ensure_future(replicas.call(b"poison"))
        await until(lambda: replicas.deaths)
        replicas.may_end.set()
        assert (await poison).status_code == 502
        replies = await asyncio.gather(*others)
        assert [reply.status_code for reply in replies] == [200] * 12
        assert [reply.content for reply in replies] == [b"%d" % number for number in range(12)]
        assert len(replicas.deaths) == 2 and replicas.deaths[0] > 1 and replicas.deaths[1] == 1
        # The first time it had company: it is convicted when it has killed once more, and then at once.
        assert (await replicas.call(b"poison")).status_code == 500
        assert replicas.deaths[2:] == [1]
        assert (await replicas.call(b"poison")).status_code == 500 and len(replicas.deaths) == 3

    story(sockets, play)


def test_suspects_go_one_by_one_and_have_company_again_once_they_have_lived_long_enough(
    sockets: Path,
) -> None:
    async def play(world: World) -> None:
        replicas = await Replicas(world, count=1, concurrency=8, fatal=b"nothing").start()
        await until(lambda: "e" in world.gateway.pool.by_name)
        await world.connected(1)
        replicas.may_end.clear()
        both = [asyncio.ensure_future(replicas.call(body)) for body in (b"a", b"b")]
        await until(lambda: len(replicas._running["w1"]) == 2)
        replicas.living.pop().die()  # of something else
        await replicas.start()
        await until(lambda: replicas._running["w2"])
        later = asyncio.ensure_future(replicas.call(b"c"))
        await asyncio.sleep(0.1)
        assert replicas._running["w2"] == [b"b"], "the youngest first, alone"
        await until(lambda: replicas._running["w2"] == [b"b", b"a"])
        await until(lambda: replicas._running["w2"] == [b"b", b"a", b"c"])
        replicas.may_end.set()
        assert [reply.status_code for reply in await asyncio.gather(*both, later)] == [200] * 3
        assert not world.gateway.pool.by_name["e"].poison

    story(sockets, play)


def test_a_client_that_hangs_up_at_once_is_found_out_all_the_same(sockets: Path) -> None:
    async def play(world: World) -> None:
        replicas = await Replicas(world).start()
        await until(lambda: "e" in world.gateway.pool.by_name)
        for count in (1, 2):
            await world.connected(1)
            with pytest.raises(httpx.ReadTimeout):
                await world.client.post(INFER, headers=KEY, content=b"poison", timeout=httpx.Timeout(20.0, read=0.01))
            await until(lambda: len(replicas.deaths) == count)  # noqa: B023
            await until(lambda: replicas.living)
        await until(lambda: len(deaths_told(world)) == 2)
        assert (await replicas.call(b"poison")).status_code == 500 and len(replicas.deaths) == 2

    story(sockets, play)


def test_another_revision_dies_of_other_things(sockets: Path) -> None:
    async def play(world: World) -> None:
        replicas = await Replicas(world).start()
        await until(lambda: "e" in world.gateway.pool.by_name)
        await replicas.call(b"poison")
        assert (await replicas.call(b"poison")).status_code == 500
        replicas.fatal = b"nothing"
        world.control.set(*replicas.living, revision=4)
        await until(lambda: world.gateway.pool.by_name["e"].route.revision == 4)
        assert (await replicas.call(b"poison")).status_code == 200

    story(sockets, play)


def test_what_the_table_says_is_refused_by_a_gateway_that_saw_nobody_die(sockets: Path) -> None:
    async def play(world: World) -> None:
        replicas = await Replicas(world, fatal=b"nothing").start()
        await until(lambda: "e" in world.gateway.pool.by_name)
        dispatcher = world.gateway.pool.by_name["e"]
        world.control.set(*replicas.living, poison={digest("infer", b"poison"): 300.0})
        await until(lambda: dispatcher.poison)
        assert (await replicas.call(b"poison")).status_code == 500
        assert (await replicas.call(b"fine")).status_code == 200
        world.control.set(*replicas.living, blocked={"0123abcd": 300.0})
        await until(lambda: dispatcher.route.blocked)
        refused = await replicas.call(b"fine")
        assert refused.status_code == 429 and 290 < int(refused.headers["retry-after"]) <= 300

    story(sockets, play)


def test_a_worker_that_answers_504_and_ends_itself_has_died_of_that_call(sockets: Path) -> None:
    async def overrun(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
        worker.send(protocol.encode(protocol.STARTED, request_id))
        worker.send(protocol.encode_reply(request_id, 504, b"{}"))
        await asyncio.sleep(0.05)
        asyncio.get_running_loop().call_soon(worker.die)

    async def play(world: World) -> None:
        for number in (1, 2):
            world.control.set(await world.worker(overrun, id=f"w{number}"))
            await until(lambda: "e" in world.gateway.pool.by_name)
            await world.connected(1)
            assert (await world.client.post(INFER, headers=KEY, content=b"long")).status_code == 504
            await until(lambda: len(deaths_told(world)) == number)  # noqa: B023
        assert (await world.client.post(INFER, headers=KEY, content=b"long")).status_code == 500

    story(sockets, play)


def test_a_stream_that_has_begun_counts_and_one_that_ends_well_clears(sockets: Path) -> None:
    ends_well = [True]

    async def begin(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
        worker.send(protocol.encode(protocol.STARTED, request_id))
        worker.send(protocol.encode(protocol.BEGIN, request_id))
        worker.event(request_id, out="a")
        await asyncio.sleep(0.02)
        if ends_well[0]:
            worker.send(protocol.encode(protocol.END, request_id, {}))
        else:
            asyncio.get_running_loop().call_soon(worker.die)

    async def play(world: World) -> None:
        path = "/v2/models/e/generate_stream"
        for number, well in enumerate([True, False, True, False, False]):
            ends_well[0] = well
            world.control.set(await world.worker(begin, id=f"w{number}"))
            await until(lambda: "e" in world.gateway.pool.by_name)
            await until(lambda who=f"w{number}": who in usable(world))  # type: ignore[misc]
            reply = await world.client.post(path, headers=KEY, content=b"body")
            assert reply.status_code == 200 and ("died" in reply.text) is not well
        assert (await world.client.post(path, headers=KEY, content=b"body")).status_code == 500
        assert len(deaths_told(world)) == 3

    story(sockets, play)
