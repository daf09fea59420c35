"""Limits of keys, counted by several gateways in one memory; and what a caller over the limit is told."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from puna.control.wire import KeyRoute
from puna.errors import RateLimitError
from puna.serve.limits import KeyUse, LimitCounts, size_bytes
from puna.worker import protocol
from serve.conftest import StubWorker, until
from serve.test_gateway import INFER, KEY, World, story


@pytest.fixture
def shared() -> Iterator[list[LimitCounts]]:
    """The counts of three gateways."""
    fd = os.memfd_create("limits")
    os.ftruncate(fd, size_bytes(3))
    yield [LimitCounts(fd, index) for index in range(3)]
    os.close(fd)


def use(counts: LimitCounts, id: str = "0123abcd", **limits: Any) -> KeyUse:
    key = KeyRoute(id, "", "", ("infer",), None, None, "ci", limits)
    return KeyUse(key, counts, counts.place(id))


def entered(counts: LimitCounts, now: float, id: str = "0123abcd", **limits: Any) -> bool:
    try:
        use(counts, id, **limits).enter(now)
    except RateLimitError:
        return False
    return True


@pytest.mark.parametrize("seed", range(10))
def test_in_any_period_all_gateways_together_let_in_no_more_than_the_limit_and_hardly_fewer(
    shared: list[LimitCounts], seed: int
) -> None:
    chance = random.Random(seed)
    now, most, period_s = 1000.0 * seed, chance.choice([1, 3, 10, 50]), 60.0
    times = []
    for _ in range(2000):
        now += chance.choice([0.0, 0.01, 0.3, 2.0]) * chance.random() * period_s / most
        if entered(chance.choice(shared), now, rate=f"{most}/min"):
            times.append(now)
    assert all(later - first >= period_s for first, later in zip(times, times[most:], strict=False))
    # Whoever is refused is let in when the time that was told is over, and not much sooner.
    while entered(shared[0], now, rate=f"{most}/min"):
        pass
    with pytest.raises(RateLimitError) as caught:
        use(shared[1], rate=f"{most}/min").enter(now)
    assert 1 <= caught.value.retry_after_s <= 62
    assert not entered(shared[2], now + caught.value.retry_after_s - 2.1, rate=f"{most}/min")
    assert entered(shared[2], now + caught.value.retry_after_s, rate=f"{most}/min")


def test_who_asks_all_the_time_gets_as_many_in_a_period_and_a_sixtieth(shared: list[LimitCounts]) -> None:
    let_in = sum(entered(shared[n % 3], n / 1000, rate="10/s") for n in range(10_000))
    assert 95 <= let_in <= 100


def test_tokens_are_charged_when_a_call_is_over_and_the_next_waits_until_there_is_room(
    shared: list[LimitCounts],
) -> None:
    first, second = use(shared[0], tokens="100/min"), use(shared[1], tokens="100/min")
    first.enter(0.0)
    second.enter(0.0)
    first.leave(90, 10.0)
    assert entered(shared[2], 11.0, tokens="100/min")
    second.leave(500, 12.0)
    with pytest.raises(RateLimitError, match="tokens 100/min of key `ci`") as caught:
        use(shared[2], tokens="100/min").enter(13.0)
    assert 12.0 + 60 - 13.0 <= caught.value.retry_after_s <= 62
    assert entered(shared[2], 13.0 + caught.value.retry_after_s, tokens="100/min")


def test_calls_at_once_are_counted_over_all_gateways_and_those_of_a_dead_one_are_forgotten(
    shared: list[LimitCounts],
) -> None:
    open_now = [use(counts, concurrency=3) for counts in shared]
    for one in open_now:
        one.enter(0.0)
    with pytest.raises(RateLimitError, match="concurrency 3 of key `ci`"):
        use(shared[0], concurrency=3).enter(0.0)
    open_now[0].leave()
    open_now[0].leave()
    assert entered(shared[1], 0.0, concurrency=3) and not entered(shared[0], 0.0, concurrency=3)
    successor = LimitCounts(shared[1]._fd, 1)
    assert [entered(successor, 0.0, concurrency=3) for _ in range(3)] == [True, True, False]


def test_a_refused_call_is_not_counted_by_any_of_its_limits(shared: list[LimitCounts]) -> None:
    limits: dict[str, Any] = {"rate": "1/s", "concurrency": 5}
    assert entered(shared[0], 0.0, **limits)
    for _ in range(20):
        assert not entered(shared[1], 0.5, **limits)
    for n in range(1, 5):
        assert entered(shared[2], 1.2 * n, **limits)


def test_keys_have_places_of_their_own_which_all_gateways_agree_on(shared: list[LimitCounts]) -> None:
    ids = [f"{n:08x}" for n in (0, 1, 0xFFFFFFFF, 7)]
    assert [shared[n % 3].place(id) for n, id in enumerate(ids)] == [0, 1, 2, 3]
    assert [[counts.place(id) for id in ids] for counts in shared] == [[0, 1, 2, 3]] * 3
    assert entered(shared[0], 0.0, ids[0], rate="1/s") and entered(shared[0], 0.0, ids[1], rate="1/s")


# ---- over HTTP ----------------------------------------------------------------------------------------------------


def test_over_the_limit_is_429_with_its_name_when_to_come_back_and_what_is_left(sockets: Path) -> None:
    async def play(world: World) -> None:
        world.control.limits = {"rate": "3/h", "tokens": None, "concurrency": None}
        await world.serve()
        for path in (INFER, "/v2/models/e/versions/3/infer", INFER):
            assert (await world.client.post(path, headers=KEY, content=b"{}")).status_code == 200
        for path in (INFER, "/v2/models/e/generate_stream"):
            refused = await world.client.post(path, headers=KEY, content=b"{}")
            assert refused.status_code == 429 and "rate 3/h of key `ci`" in refused.json()["error"]
            assert 3500 < int(refused.headers["retry-after"]) <= 3661
            assert refused.headers["x-ratelimit-limit-requests"] == "3"
            assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert (await world.client.get("/v2/models/e", headers=KEY)).status_code == 200, "only inference is counted"

    story(sockets, play)


def test_calls_at_once_are_given_back_however_a_call_ends(sockets: Path) -> None:
    async def play(world: World) -> None:
        world.control.limits = {"rate": None, "tokens": None, "concurrency": 1}
        worker = await world.serve(inference_time_s=0.3)
        assert (await world.client.post("/v2/models/nope/infer", headers=KEY, content=b"{}")).status_code == 404
        assert (await world.client.post(INFER, headers=KEY, content=b"{}")).status_code == 200

        async def never(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
            worker.send(protocol.encode(protocol.STARTED, request_id))

        echo, worker.handler = worker.handler, never
        for path in (INFER, "/v2/models/e/versions/3/infer"):
            assert (await world.client.post(path, headers=KEY, content=b"{}")).status_code == 504
        worker.handler = echo
        assert (await world.client.post(INFER, headers=KEY, content=b"{}")).status_code == 200

    story(sockets, play)


def test_tokens_of_openais_paths_are_what_the_reply_or_the_worker_says(sockets: Path) -> None:
    async def answer(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
        worker.send(protocol.encode(protocol.STARTED, request_id))
        if json.loads(body).get("stream"):
            worker.send(protocol.encode(protocol.BEGIN, request_id))
            worker.event(request_id, choices=[])
            worker.send(protocol.encode(protocol.END, request_id, {"tokens": 60}))
        else:
            said = json.dumps({"choices": [], "usage": {"total_tokens": 50}}).encode()
            worker.send(protocol.encode_reply(request_id, 200, said))

    async def play(world: World) -> None:
        world.control.limits = {"rate": None, "tokens": "100/h", "concurrency": None}
        await world.serve(answer, schema={"engine": "x"})

        async def chat(**more: Any) -> Any:
            body = {"model": "e", "messages": [], **more}
            return await world.client.post("/v1/chat/completions", headers=KEY, json=body)

        first = await chat()
        assert first.status_code == 200 and first.headers["x-ratelimit-remaining-tokens"] == "100"
        assert (await chat(stream=True)).status_code == 200
        refused = await chat()
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 3500
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert "tokens 100/h of key `ci`" in refused.json()["error"]["message"]
        assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
        assert float(refused.headers["x-ratelimit-reset-tokens"].rstrip("s")) > 3500

    story(sockets, play)


def test_a_limit_that_a_newer_table_brings_holds_at_once(sockets: Path) -> None:
    async def play(world: World) -> None:
        worker = await world.serve()
        assert (await world.client.post(INFER, headers=KEY, content=b"{}")).status_code == 200
        world.control.limits = {"rate": "1/h", "tokens": None, "concurrency": None}
        world.control.set(worker)
        await until(lambda: any(key.limits for key in world.gateway.admission.access._keys.values()))
        statuses = [(await world.client.post(INFER, headers=KEY, content=b"{}")).status_code for _ in range(2)]
        assert statuses == [200, 429]

    story(sockets, play)
