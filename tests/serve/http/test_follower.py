"""The route table is polled: at once at first, then for as long as nothing changes, anew after an error."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import parse_qs, urlsplit

import pytest

from puna.control import wire
from puna.control.wire import RouteTable
from puna.serve.http import forward
from puna.serve.http.forward import LONG_POLL_S, Follower


def test_the_first_poll_does_not_wait_and_the_next_ones_do_until_the_table_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forward, "RETRY_S", 0.0)
    answers: list[RouteTable | OSError] = [
        RouteTable(7), RouteTable(7), OSError("it is replaced"), RouteTable(2), RouteTable(3)
    ]  # fmt: skip
    asked: list[tuple[str, str, str]] = []
    taken: list[int] = []

    async def fetch(method: str, path: str, body: bytes) -> bytes:
        query = {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}
        asked.append((query["since"], query["wait_s"], query["gateway"]))
        if not answers:
            await asyncio.Event().wait()
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return wire.encode(answer)

    async def follow() -> None:
        follower = Follower(fetch, lambda table: taken.append(table.version), "g1")
        running = asyncio.ensure_future(follower.run())
        while answers:
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        assert follower.first.is_set() and follower.connected and follower.table.version == 3
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    asyncio.run(follow())
    waits = f"{LONG_POLL_S:g}"
    assert asked == [
        ("-1", "0", "g1"), ("7", waits, "g1"), ("7", waits, "g1"), ("-1", "0", "g1"), ("2", waits, "g1"),
        ("3", waits, "g1"),
    ]  # fmt: skip
    assert taken == [7, 2, 3], "a table that has not changed is not taken over again"
