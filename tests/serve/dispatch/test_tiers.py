"""Replicas that sleep, wake, and are born, as the gateway's clients meet them: over real HTTP, with real frames."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from puna.worker import protocol
from serve.conftest import Handler, Sleeper, StubWorker, until
from serve.test_gateway import INFER, KEY, World, forever, story

pytestmark = pytest.mark.process

TIMINGS = ("x-puna-queue-ms", "x-puna-wake-ms", "x-puna-infer-ms")
ENGINE = {"inputs": [], "engine": {"kind": "vllm", "model": "m"}}


async def reply(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
    worker.send(protocol.encode_reply(request_id, 200, body))


async def sleeper(world: World, handler: Handler = reply, concurrency: int = 20, id: str = "r1") -> Sleeper:
    """A running one."""
    worker = Sleeper(world.folder / id, handler, concurrency, id)
    world.workers.append(worker)
    await worker.start()
    return worker


async def listed(world: World, *workers: StubWorker, **changes: Any) -> None:
    """The endpoint `e` with these replicas, all connected."""
    world.control.set(*workers, **changes)
    await until(lambda: "e" in world.gateway.pool.by_name)
    await world.connected(len(workers))


def ask(world: World, body: bytes = b"{}", path: str = INFER) -> "asyncio.Task[httpx.Response]":
    return asyncio.ensure_future(world.client.post(path, headers=KEY, content=body))


def waits(reply: httpx.Response) -> tuple[str, float, float, float]:
    """Tier, and milliseconds in the queue, waking, in infer."""
    queue, wake, infer = (float(reply.headers[name]) for name in TIMINGS)
    return reply.headers["x-puna-tier"], queue, wake, infer


async def metrics(world: World) -> dict[tuple[str, str, str], float]:
    """Samples of the endpoint `e`: name, tier, bucket -> value."""
    text = (await world.client.get("/metrics", headers=KEY)).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(s.name, s.labels.get("tier", ""), s.labels.get("le", "")): s.value for s in samples}


def test_twenty_requests_to_replicas_that_sleep_wake_one_of_them_once_and_none_is_lost(sockets: Path) -> None:
    async def play(world: World) -> None:
        first, second = await sleeper(world, id="r1"), await sleeper(world, id="r2")
        await listed(world, first, second)
        asked = [ask(world, b"%d" % n) for n in range(20)]
        await until(lambda: first.came_asleep == 20)
        await asyncio.sleep(0.01)  # replies tell tenths of a millisecond, and the last one may just have come
        first.may_wake.set()
        replies = await asyncio.gather(*asked)
        assert [r.content for r in replies] == [b"%d" % n for n in range(20)]
        assert (first.wakes, second.wakes) == (1, 0)
        assert {waits(r)[0] for r in replies} == {"asleep"}
        assert all(waits(r)[2] > 0 for r in replies)

    story(sockets, play)


def test_while_a_replica_wakes_it_is_sent_what_it_runs_at_once_and_the_rest_waits_in_the_room(sockets: Path) -> None:
    async def play(world: World) -> None:
        worker = await sleeper(world, concurrency=4)
        await listed(world, worker)
        dispatcher = world.gateway.pool.by_name["e"]
        asked = [ask(world, b"%d" % n) for n in range(20)]
        await until(lambda: worker.came_asleep == 4 and len(dispatcher.queue) == 16)
        worker.may_wake.set()
        replies = await asyncio.gather(*asked)
        assert [r.content for r in replies] == [b"%d" % n for n in range(20)]
        assert (worker.wakes, worker.came_asleep) == (1, 4)
        found = [waits(r) for r in replies]
        assert {tier for tier, *_ in found} == {"asleep"}
        assert sum(wake > 0 and not queue for _, queue, wake, _ in found) == 4
        assert sum(queue > 0 and not wake for _, queue, wake, _ in found) == 16

    story(sockets, play)


def test_a_wake_is_told_apart_from_infer_and_afterwards_the_replica_is_awake(sockets: Path) -> None:
    async def play(world: World) -> None:
        worker = await sleeper(world)
        await listed(world, worker)
        asked = ask(world)
        await until(lambda: worker.came_asleep)
        await asyncio.sleep(0.3)
        worker.may_wake.set()
        tier, queue, wake, infer = waits(await asked)
        assert (tier, queue) == ("asleep", 0.0)
        assert wake == pytest.approx(worker.said_ms, abs=0.2) and wake >= 300
        assert infer >= 0
        tier, queue, wake, infer = waits(await ask(world))
        assert (tier, queue, wake) == ("awake", 0.0, 0.0)

    story(sockets, play)


@pytest.mark.parametrize(("born", "tier"), [("zygote", "warm"), ("spawn", "cold")])
def test_a_request_that_waited_for_a_replica_to_be_born_says_how_it_was_born(
    sockets: Path, born: str, tier: str
) -> None:
    async def play(world: World) -> None:
        world.control.set(state="idle")
        await until(lambda: "e" in world.gateway.pool.by_name)
        asked = ask(world)
        await until(lambda: len(world.gateway.pool.by_name["e"].queue))
        worker = StubWorker(world.folder / "w")
        worker.born = born
        world.workers.append(await worker.start())
        world.control.set(worker)
        found, queue, wake, _ = waits(await asked)
        assert (found, wake) == (tier, 0.0) and queue > 0
        assert waits(await ask(world))[0] == "awake"

    story(sockets, play)


def test_the_workers_word_of_its_tier_wins_over_the_route_table(sockets: Path) -> None:
    async def play(world: World) -> None:
        worker = await sleeper(world)
        await listed(world, worker)
        connection = next(iter(world.gateway.pool.by_name["e"].connections.values()))
        assert connection.asleep
        worker.tell_tier("awake")
        await until(lambda: not connection.asleep)
        worker.tier = "asleep"  # what the stub's control plane will say; the worker says nothing
        revision = world.gateway.pool.by_name["e"].route.revision
        world.control.set(worker, revision=revision + 1)
        await until(lambda: world.gateway.pool.by_name["e"].route.revision == revision + 1)
        assert connection.usable and not connection.asleep

    story(sockets, play)


# -- errors


def test_a_refusal_says_what_was_found(sockets: Path) -> None:
    async def play(world: World) -> None:
        world.control.set(state="idle", max_queue=1)
        await until(lambda: "e" in world.gateway.pool.by_name)
        dispatcher = world.gateway.pool.by_name["e"]
        first = ask(world)
        await until(lambda: len(dispatcher.queue) == 1)
        refused = await ask(world)
        assert refused.status_code == 429 and waits(refused) == ("cold", 0.0, 0.0, 0.0)
        busy = await world.worker(forever, concurrency=1)
        world.control.set(busy, max_queue=1)
        await busy.until_seen(protocol.REQUEST)
        second = ask(world)
        await until(lambda: len(dispatcher.queue) == 1)
        refused = await ask(world)
        assert refused.status_code == 429 and waits(refused) == ("awake", 0.0, 0.0, 0.0)
        unknown = await ask(world, path="/v2/models/nope/infer")
        assert unknown.status_code == 404 and "x-puna-tier" not in unknown.headers
        assert unknown.headers["x-puna-request-id"]
        for task in (first, second):
            task.cancel()

    story(sockets, play)


def test_a_504_says_where_the_time_went(sockets: Path) -> None:
    async def play(world: World) -> None:
        await listed(world, await world.worker(forever, concurrency=1), inference_time_s=0.2)
        late = await ask(world)
        tier, queue, wake, infer = waits(late)
        assert (late.status_code, tier, queue, wake) == (504, "awake", 0.0, 0.0) and infer >= 200
        world.control.set(state="idle", inference_time_s=0.2)
        await until(lambda: not world.gateway.pool.by_name["e"].ready)
        late = await ask(world)
        tier, queue, wake, infer = waits(late)
        assert (late.status_code, tier, wake, infer) == (504, "cold", 0.0, 0.0) and queue >= 300
        found = await metrics(world)
        assert found["puna_infer_seconds_count", "awake", ""] == 1
        assert found["puna_queue_seconds_count", "cold", ""] == 1
        assert found["puna_infer_seconds_count", "cold", ""] == 0, "no replica ever had it"

    story(sockets, play, startup_allowance_s=0.1)


def test_a_request_waits_for_as_long_as_its_endpoints_start_may_take(sockets: Path) -> None:
    async def play(world: World) -> None:
        world.control.set(state="idle", inference_time_s=0.1, startup_timeout_s=1.0)
        await until(lambda: "e" in world.gateway.pool.by_name)
        late = await ask(world)
        assert late.status_code == 504 and 1100 <= waits(late)[1] < 5000

    story(sockets, play, startup_allowance_s=0.1)


# -- deadlines


def test_inference_time_does_not_run_while_the_replica_wakes(sockets: Path) -> None:
    async def play(world: World) -> None:
        worker = await sleeper(world, concurrency=1)
        await listed(world, worker, inference_time_s=0.3)
        asked, waiting = ask(world, b"1"), ask(world, b"2")
        await until(lambda: worker.came_asleep and len(world.gateway.pool.by_name["e"].queue))
        await asyncio.sleep(0.7)
        worker.may_wake.set()
        replies = await asyncio.gather(asked, waiting)
        assert [r.status_code for r in replies] == [200, 200]

    story(sockets, play)


def test_it_does_not_run_either_when_the_replica_fell_asleep_with_the_request_on_its_way(sockets: Path) -> None:
    async def play(world: World) -> None:
        async def just_asleep(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
            worker.tell_tier("asleep")
            await asyncio.sleep(0.7)
            worker.tell_tier("awake")
            worker.send(protocol.encode(protocol.STARTED, request_id, {"tier": "asleep", "wake_ms": 700.0}))
            worker.send(protocol.encode_reply(request_id, 200, body))

        await listed(world, await world.worker(just_asleep), inference_time_s=0.3)
        answer = await ask(world)
        assert answer.status_code == 200
        assert waits(answer)[0] == "asleep" and waits(answer)[2] == 700.0

    story(sockets, play)


def test_it_runs_from_the_moment_of_waking(sockets: Path) -> None:
    async def play(world: World) -> None:
        async def endless(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
            """STARTED has been sent."""

        worker = await sleeper(world, endless)
        await listed(world, worker, inference_time_s=0.3)
        asked = ask(world)
        await until(lambda: worker.came_asleep)
        await asyncio.sleep(0.5)
        worker.may_wake.set()
        late = await asked
        tier, _, wake, infer = waits(late)
        assert (late.status_code, tier) == (504, "asleep") and "inference_time" in late.json()["error"]
        assert wake >= 500 and infer >= 300

    story(sockets, play)


def test_a_replica_that_never_wakes_is_given_up_after_the_startup_allowance(sockets: Path) -> None:
    async def play(world: World) -> None:
        await listed(world, await sleeper(world), inference_time_s=0.1)
        late = await ask(world)
        tier, _, wake, infer = waits(late)
        assert (late.status_code, tier, infer) == (504, "asleep", 0.0) and wake >= 400
        assert "did not wake" in late.json()["error"]

    story(sockets, play, startup_allowance_s=0.3)


# -- streams, OpenAI, metrics


async def two_events(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
    worker.send(protocol.encode(protocol.BEGIN, request_id, {}))
    worker.event(request_id, OUT="one")
    worker.event(request_id, OUT="two")
    worker.send(protocol.encode(protocol.END, request_id, {}))


@pytest.mark.parametrize("path", ["/v2/models/e/generate_stream", "/v1/chat/completions"])
def test_a_stream_says_at_its_beginning_what_it_waited_for(sockets: Path, path: str) -> None:
    async def play(world: World) -> None:
        worker = await sleeper(world, two_events)
        await listed(world, worker, schema=ENGINE)
        asked = ask(world, b'{"model": "e", "stream": true}', path)
        await until(lambda: worker.came_asleep)
        worker.may_wake.set()
        answer = await asked
        assert answer.headers["content-type"].startswith("text/event-stream") and '"two"' in answer.text
        tier, queue, wake, _ = waits(answer)
        assert (tier, queue) == ("asleep", 0.0) and wake == pytest.approx(worker.said_ms, abs=0.2)
        found = await metrics(world)
        assert found["puna_first_byte_seconds_count", "asleep", ""] == 1
        assert found["puna_first_byte_seconds_sum", "asleep", ""] <= found["puna_request_seconds_sum", "", ""]

    story(sockets, play)


def test_openai_errors_say_it_too(sockets: Path) -> None:
    async def play(world: World) -> None:
        await listed(world, await world.worker(forever), schema=ENGINE, inference_time_s=0.2)
        late = await ask(world, b'{"model": "e"}', "/v1/completions")
        assert late.status_code == 504 and waits(late)[0] == "awake" and waits(late)[3] >= 200

    story(sockets, play)


def test_metrics_count_every_wait_by_tier_and_the_replicas_of_the_table(sockets: Path) -> None:
    async def play(world: World) -> None:
        worker, awake = await sleeper(world), await world.worker(id="r2", concurrency=1)
        await listed(world, worker)
        asked = [ask(world) for _ in range(3)]
        await until(lambda: worker.came_asleep == 3)
        worker.may_wake.set()
        await asyncio.gather(*asked)
        for _ in range(5):
            await ask(world)
        worker.tier = "asleep"
        world.control.set(worker, awake)
        await world.connected(2)
        found = await metrics(world)
        for name in ("queue", "infer", "first_byte"):
            assert found[f"puna_{name}_seconds_count", "asleep", ""] == 3
            assert found[f"puna_{name}_seconds_count", "awake", ""] == 5
            assert found[f"puna_{name}_seconds_bucket", "awake", "1000.0"] == 5
        assert found["puna_wake_seconds_count", "asleep", ""] == 3
        assert found["puna_wake_seconds_sum", "asleep", ""] > 0
        assert found["puna_wake_seconds_count", "awake", ""] == 0
        assert found["puna_request_seconds_count", "", ""] == 8
        assert (found["puna_replicas", "awake", ""], found["puna_replicas", "asleep", ""]) == (1, 1)
        world.control.endpoints.clear()
        world.control.version += 1
        world.control.changed.set()
        await until(lambda: not world.gateway.pool.by_name)
        found = await metrics(world)
        assert (found["puna_replicas", "awake", ""], found["puna_replicas", "asleep", ""]) == (0, 0)

    story(sockets, play)


def test_a_prompt_goes_back_to_the_replica_that_has_read_its_beginning(sockets: Path) -> None:
    async def play(world: World) -> None:
        release = asyncio.Event()

        async def answer(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
            if body == b"wait":
                await release.wait()
            worker.send(protocol.encode_reply(request_id, 200, worker.id.encode()))

        await listed(world, await world.worker(answer, 16, "r1"), await world.worker(answer, 16, "r2"), schema=ENGINE)
        question = b"what is the meaning of this? " * 20
        busy = ask(world, b"wait")
        await until(lambda: world.gateway.pool.by_name["e"].in_flight)
        other = (await ask(world, question + b"1")).content
        release.set()
        assert {other, (await busy).content} == {b"r1", b"r2"}
        again = {(await ask(world, question + b"%d" % n)).content for n in range(5)}
        assert again == {other}
        assert (await ask(world, b"short")).content == b"r1", "with nothing known the first idle one takes it"

    story(sockets, play)
