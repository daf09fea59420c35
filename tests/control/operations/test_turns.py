"""Which build begins next."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from control.conftest import World, control_of
from puna.control.api.app import create_app
from puna.control.domain import api_keys
from puna.control.domain.records import Build, Step
from puna.control.domain.states import BuildState, StepState
from puna.control.operations.turns import Fetches, Slots, next_build, subject
from puna.errors import ProjectError, QueueFullError

STEPS = ("environment", "bundle", "validate")


def build(name: str, created: float = 1.0, *, owner: str = "", done: int = 0, kind: str = "revision") -> Build:
    """A build whose first `done` steps have ended."""
    steps = tuple(Step(step, StepState.DONE if i < done else StepState.PENDING) for i, step in enumerate(STEPS))
    return Build(f"{name}-{created}", kind, name, 1, BuildState.QUEUED, created, steps, owner=owner)


def chosen(queued: list[Build], running: list[Build], slots: Slots = Slots(building=2), **more: dict[str, str]) -> str:
    found = next_build(queued, running, slots, more.get("digests", {}), {})
    return found.id if found is not None else ""


def test_the_one_that_waits_longest_begins_unless_all_slots_are_taken() -> None:
    waiting = [build("b", 2.0), build("a", 1.0)]
    assert chosen(waiting, []) == "a-1.0"
    assert chosen(waiting, [build("c")]) == "a-1.0"
    assert chosen(waiting, [build("c"), build("d")]) == ""


def test_of_one_endpoint_one_is_built_at_a_time() -> None:
    waiting = [build("a", 1.0), build("b", 2.0)]
    assert chosen(waiting, [build("a", 0.5)]) == "b-2.0"
    assert chosen([build("a", 1.0)], [build("a", 0.5, kind="runtime")]) == "a-1.0"  # a runtime of that name is another


def test_an_app_that_is_tried_holds_no_slot_of_those_that_are_built() -> None:
    hanging = [build(f"h{number}", done=2) for number in range(8)]
    assert chosen([build("a")], hanging) == "a-1.0"
    assert chosen([build("a")], [*hanging, build("x"), build("y")]) == ""


def test_an_environment_is_built_once_while_others_wait_for_it_outside_the_slots() -> None:
    waiting, running = [build("a", 1.0), build("b", 2.0)], [build("c", 0.5)]
    digests = {"a-1.0": "same", "c-0.5": "same", "b-2.0": "other"}
    assert chosen(waiting, running, digests=digests) == "b-2.0"
    assert chosen(waiting, [build("c", 0.5, done=1)], digests=digests) == "a-1.0"  # it is there


def test_a_key_that_holds_nothing_finds_a_place_when_another_key_holds_all() -> None:
    running = [build("x", owner="a"), build("y", owner="a")]
    assert chosen([build("z", owner="a")], running) == ""
    assert chosen([build("z", owner="a"), build("m", 2.0, owner="b")], running) == "m-2.0"
    crowd = [build(f"e{number}", owner=f"k{number}") for number in range(4)]
    assert chosen([build("m", owner="b")], crowd) == "", "guests are few: a machine has only so many cores"


def test_endpoints_take_turns_whatever_waits_for_each() -> None:
    queued = [build("greedy", float(number)) for number in range(5)] + [build("modest", 100.0)]
    order, turns = [], {}
    while queued:
        found = next_build(queued, [], Slots(), {}, turns)
        assert found is not None
        turns[subject(found)] = len(order) + 1
        order.append(found.subject)
        queued.remove(found)
    assert order[:3] == ["greedy", "modest", "greedy"]


@pytest.fixture
def hangs() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


async def settled(*tasks: asyncio.Task[Any]) -> list[bool]:
    """Which of them are done once all that can go on has."""
    for _ in range(50):
        await asyncio.sleep(0.002)
    return [task.done() for task in tasks]


def test_a_key_has_so_many_fetches_and_others_have_their_turns(hangs: threading.Event) -> None:
    async def story() -> None:
        fetches = Fetches(each=2, places=3)
        first = [asyncio.create_task(fetches.run("a", hangs.wait)) for _ in range(5)]
        await settled(*first)
        assert fetches._holders == ["a", "a"]
        others = [asyncio.create_task(fetches.run(name, lambda: 1)) for name in "bcd"]
        assert await asyncio.wait_for(asyncio.gather(*others), 10) == [1, 1, 1]
        assert not any(await settled(*first))
        hangs.set()
        assert await asyncio.wait_for(asyncio.gather(*first), 10) == [True] * 5
        assert fetches._holders == [] and fetches._waiting == []

    asyncio.run(story())


def test_who_waits_too_long_is_told_to_come_again_and_leaves_no_trace(hangs: threading.Event) -> None:
    async def story() -> None:
        fetches = Fetches(each=1, wait_s=0.05)
        first = asyncio.create_task(fetches.run("a", hangs.wait))
        await settled(first)
        with pytest.raises(QueueFullError, match="1 repositories or models of yours are being fetched") as caught:
            await fetches.run("a", hangs.wait)
        assert caught.value.retry_after_s == 10 and "max_replica" not in caught.value.hint
        left = asyncio.create_task(fetches.run("a", hangs.wait))
        await asyncio.sleep(0)
        left.cancel()  # its caller went
        assert await settled(left) == [True] and fetches._waiting == []
        hangs.set()
        await asyncio.wait_for(first, 10)
        assert fetches._holders == []

    asyncio.run(story())


def test_an_error_is_raised_where_it_was_asked(hangs: threading.Event) -> None:
    def fails() -> None:
        raise ProjectError("no such branch")

    async def story() -> None:
        fetches = Fetches()
        with pytest.raises(ProjectError, match="no such branch"):
            await fetches.run("a", fails)
        assert fetches._holders == []

    asyncio.run(story())


def app_with(world: World, pull: Any, fetches: Fetches) -> FastAPI:
    store, home = world.store, world.home
    control = control_of(store, home, world.loads, pull=pull, fetches=fetches)
    return create_app(control)


def test_sixty_fetches_that_hang_keep_no_handler_and_no_gateway_waiting(world: World, hangs: threading.Event) -> None:
    def pull(git: Any) -> Any:
        hangs.wait(60)
        raise ProjectError("it never answered")

    key, text = api_keys.make("ci", ["deploy"], None, None, 1.0)
    world.store.add_key(key)
    app = app_with(world, pull, Fetches(wait_s=0.2))
    headers = {"authorization": f"Bearer {text}", "x-puna-forwarded": "1"}

    async def story() -> list[int]:
        async with AsyncClient(transport=ASGITransport(app), base_url="http://localhost", timeout=60) as client:
            body = {"url": "https://example.com/a.git"}
            asked = [
                asyncio.create_task(client.post("/api/v1/sources/from-git", json=body, headers=headers))
                for _ in range(60)
            ]
            await settled(*asked)
            made = await asyncio.wait_for(client.post("/api/v1/keys", json={"scope": ["infer"]}), 20)
            assert (await asyncio.wait_for(client.get("/api/v1/endpoints"), 20)).status_code == 200
            gone = await asyncio.wait_for(client.delete(f"/api/v1/keys/{made.json()['id']}"), 20)
            assert gone.status_code == 200
            report = {"gateway": "g", "at": 1.0, "endpoints": {}}
            assert (await asyncio.wait_for(client.post("/internal/load", json=report), 20)).status_code == 200
            assert (await asyncio.wait_for(client.get("/internal/routes"), 20)).status_code == 200
            await asyncio.wait(asked, timeout=20, return_when=asyncio.FIRST_COMPLETED)  # one is refused
            hangs.set()
            answers = await asyncio.gather(*asked)
            assert all(a.headers.get("retry-after") == "10" for a in answers if a.status_code == 429)
            return sorted({answer.status_code for answer in answers})

    assert asyncio.run(story()) == [400, 429]
