"""What asks other machines has threads of its own, in turns by key; handlers and gateways never wait for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from control.conftest import World
from puna.control.api.app import create_app
from puna.control.domain import api_keys
from puna.control.operations.context import Control
from puna.control.operations.fetches import Fetches
from puna.control.resources.secrets import Secrets
from puna.errors import ProjectError, QueueFullError


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
    control = Control(store, home, world.loads, Secrets(store, home.key), pull=pull, fetches=fetches)
    return create_app(store, home, control=control)


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
            hangs.set()
            answers = await asyncio.gather(*asked)
            assert all(a.headers.get("retry-after") == "10" for a in answers if a.status_code == 429)
            return sorted({answer.status_code for answer in answers})

    assert asyncio.run(story()) == [400, 429]
