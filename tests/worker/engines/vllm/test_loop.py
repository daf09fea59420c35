"""The loop that steps an engine: whose options count, and that a paused engine is left alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from puna.worker.engines.vllm.loop import EngineDied, EngineLoop, LoopJob


class Steps:
    """An engine that ends every request with its first step, and counts."""

    def __init__(self) -> None:
        self.requests: dict[str, dict[str, Any]] = {}
        self.seen: list[dict[str, Any]] = []
        self.steps = 0
        self.is_broken = False
        self.aborted: list[str] = []

    def add_request(self, request_id: str, prompt: str, **options: Any) -> None:
        if prompt == "refuse":
            raise ValueError("refused")
        self.requests[request_id] = options
        self.seen.append(options)

    def abort_request(self, request_ids: list[str]) -> None:
        self.aborted += request_ids
        for request_id in request_ids:
            del self.requests[request_id]

    def has_unfinished_requests(self) -> bool:
        return bool(self.requests)

    def step(self) -> list[Any]:
        self.steps += 1
        if self.is_broken:
            raise RuntimeError("illegal memory access")
        ended, self.requests = list(self.requests), {}
        return [SimpleNamespace(request_id=request_id, finished=True) for request_id in ended]


@pytest.fixture
def engine() -> Steps:
    return Steps()


@pytest.fixture
def deaths() -> list[str]:
    return []


@pytest.fixture
def loop(engine: Steps, deaths: list[str]) -> Iterator[EngineLoop]:
    yield EngineLoop(engine, lambda: None, deaths.append)


def test_a_paused_engine_is_not_stepped_and_its_requests_wait(engine: Steps, loop: EngineLoop) -> None:
    loop.call(lambda: loop.pause(True))
    loop.desk.add("1", ("hi",), {})
    for _ in range(50):
        loop.call(lambda: None)
    assert engine.steps == 0 and list(engine.requests) == ["1"]
    loop.post(LoopJob(lambda: loop.pause(False)))
    assert [request_id for request_id, _ in loop.desk.receive()] == ["1"] and engine.steps == 1


def test_a_requests_own_option_wins_over_the_default_and_none_is_no_option(engine: Steps, loop: EngineLoop) -> None:
    loop.defaults["lora_request"] = "default"
    for number, options in enumerate(({"lora_request": "own"}, {"lora_request": None}, {})):
        loop.desk.add(str(number), ("hi",), options)
        loop.desk.receive()
    assert [options["lora_request"] for options in engine.seen] == ["own", "default", "default"]


def test_what_needs_an_idle_engine_waits_for_the_requests_before_it(engine: Steps, loop: EngineLoop) -> None:
    found = []
    loop.call(lambda: loop.pause(True))
    loop.desk.add("1", ("hi",), {})
    loop.post(LoopJob(lambda: loop.pause(False)))
    loop.post(LoopJob(lambda: found.append(engine.steps), needs_idle=True))
    loop.desk.receive()
    loop.call(lambda: None)
    assert found == [1]


def test_a_refusal_is_the_callers_and_leaves_the_others_their_requests(engine: Steps, loop: EngineLoop) -> None:
    loop.desk.add("1", ("refuse",), {})
    with pytest.raises(ValueError, match="refused"):
        loop.desk.receive()
    loop.desk.add("2", ("hi",), {})
    assert [request_id for request_id, _ in loop.desk.receive()] == ["2"] and engine.aborted == []


def test_an_engine_that_failed_is_never_stepped_again_and_everybody_hears(
    engine: Steps, loop: EngineLoop, deaths: list[str]
) -> None:
    loop.call(lambda: loop.pause(True))
    heard: list[BaseException] = []

    def ask(name: str) -> None:
        loop.desk.add(name, ("hi",), {})
        try:
            loop.desk.receive()
        except EngineDied as error:
            heard.append(error)

    threads = [threading.Thread(target=ask, args=(str(n),)) for n in range(3)]
    for thread in threads:
        thread.start()
    while len(engine.requests) < 3:
        loop.call(lambda: None)
    engine.is_broken = True
    loop.call(lambda: loop.pause(False))
    for thread in threads:
        thread.join(10)
    assert len(heard) == 3 and len(deaths) == 1 and "illegal memory access" in deaths[0]
    ask("4")
    assert len(heard) == 4 and engine.steps == 1 and len(deaths) == 1
