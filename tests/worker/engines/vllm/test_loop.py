"""The loop that steps an engine: whose options count, and that a paused engine is left alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from puna.worker import protocol
from puna.worker.engines.vllm.loop import EngineDied, EngineLoop, LoopJob
from worker import fake_vllm
from worker.test_server import wait_for


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
    loop.handle.add("1", ("hi",), {})
    for _ in range(50):
        loop.call(lambda: None)
    assert engine.steps == 0 and list(engine.requests) == ["1"]
    loop.submit(LoopJob(lambda: loop.pause(False)))
    assert [request_id for request_id, _ in loop.handle.receive()] == ["1"] and engine.steps == 1


def test_a_requests_own_option_wins_over_the_default_and_none_is_no_option(engine: Steps, loop: EngineLoop) -> None:
    loop.defaults["lora_request"] = "default"
    for number, options in enumerate(({"lora_request": "own"}, {"lora_request": None}, {})):
        loop.handle.add(str(number), ("hi",), options)
        loop.handle.receive()
    assert [options["lora_request"] for options in engine.seen] == ["own", "default", "default"]


def test_what_needs_an_idle_engine_waits_for_the_requests_before_it(engine: Steps, loop: EngineLoop) -> None:
    found = []
    loop.call(lambda: loop.pause(True))
    loop.handle.add("1", ("hi",), {})
    loop.submit(LoopJob(lambda: loop.pause(False)))
    loop.submit(LoopJob(lambda: found.append(engine.steps), needs_idle=True))
    loop.handle.receive()
    loop.call(lambda: None)
    assert found == [1]


def test_a_refusal_is_the_callers_and_leaves_the_others_their_requests(engine: Steps, loop: EngineLoop) -> None:
    loop.handle.add("1", ("refuse",), {})
    with pytest.raises(ValueError, match="refused"):
        loop.handle.receive()
    loop.handle.add("2", ("hi",), {})
    assert [request_id for request_id, _ in loop.handle.receive()] == ["2"] and engine.aborted == []


def test_an_engine_that_failed_is_never_stepped_again_and_everybody_hears(
    engine: Steps, loop: EngineLoop, deaths: list[str]
) -> None:
    loop.call(lambda: loop.pause(True))
    heard: list[BaseException] = []

    def ask(name: str) -> None:
        loop.handle.add(name, ("hi",), {})
        try:
            loop.handle.receive()
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


Write = Callable[..., Path]
Start = Callable[..., Any]

APP = """
    from vllm import LLM, SamplingParams

    class InferlessPythonModel:
        def initialize(self):
            self.llm = LLM(model="acme/tiny")
            self.params = SamplingParams(max_tokens=3)

        def infer(self, inputs):
            if inputs["prompt"] == "reset":
                return {"text": str(self.llm.reset_prefix_cache())}
            outputs = self.llm.generate(inputs["prompt"].split("|"), self.params)
            return {"text": [o.prompt + ":" + o.outputs[0].text for o in outputs]}
"""


@pytest.fixture
def ready(app: Write, start: Start) -> Callable[..., tuple[Any, Any, Any]]:
    """`ready(app.py, ...)` -> the worker, a client, and what READY said."""

    def begin(source: str = APP, *options: str, llm: str = fake_vllm.LLM, **how: Any) -> tuple[Any, Any, Any]:
        folder = app(source)
        fake_vllm.write(folder, llm)
        worker = start(folder, *options, **how)
        client = worker.client()
        said = client.until(protocol.HELLO)
        return worker, client, said if said["state"] == "ready" else client.until(protocol.READY)

    return begin


def texts(client: Any, count: int) -> dict[int, Any]:
    """Request id -> status and text or error."""
    replies = [client.reply() for _ in range(count)]
    return {
        number: (status, body["outputs"][0]["data"] if status == 200 else body["error"])
        for number, status, body in replies
    }


@pytest.mark.process
def test_blocking_calls_meet_in_one_engine_under_every_python(ready: Any, python: str) -> None:
    _, client, said = ready(python=python)
    assert said["concurrency"] == 8
    assert said["engine"] == {"kind": "vllm", "model": "acme/tiny", "can_sleep": False}
    for number in range(5):
        client.send(number, {"prompt": "together"})  # this engine lets none of them go on before all five are in it
    assert texts(client, 5) == {number: (200, ["together:w0 w1 w2"]) for number in range(5)}


@pytest.mark.process
def test_a_list_comes_back_in_order_while_others_run(ready: Any) -> None:
    _, client, _ = ready()
    for number in range(6):
        client.send(number, {"prompt": f"a{number}|b{number}|c{number}"})
    expected = {n: (200, [f"{letter}{n}:w0 w1 w2" for letter in "abc"]) for n in range(6)}
    assert texts(client, 6) == expected


@pytest.mark.process
def test_what_the_engine_refuses_reaches_its_caller_only(ready: Any) -> None:
    worker, client, _ = ready()
    for number, prompt in enumerate(["x", "y|refuse", "z"]):
        client.send(number, {"prompt": prompt})
    replies = texts(client, 3)
    assert replies[0] == (200, ["x:w0 w1 w2"]) and replies[2] == (200, ["z:w0 w1 w2"])
    assert replies[1][0] == 500 and "this prompt is refused" in replies[1][1]
    client.send(4, {"prompt": "x"})
    assert texts(client, 1) == {4: (200, ["x:w0 w1 w2"])}  # and the refused call has left nothing behind


@pytest.mark.process
def test_a_client_that_hangs_up_ends_its_request_in_the_engine(ready: Any, tmp_path: Path) -> None:
    _, client, _ = ready()
    client.send(1, {"prompt": "forever"})
    wait_for(tmp_path / "app" / "running-forever")
    client.socket.sendall(protocol.encode(protocol.CANCEL, 1))
    assert client.next(protocol.STARTED)[:2] == (protocol.END, 1)
    wait_for(tmp_path / "app" / "aborted-forever")
    assert client.call({"prompt": "x"})[0] == 200


@pytest.mark.process
def test_other_calls_of_the_engine_wait_until_nothing_runs(ready: Any) -> None:
    _, client, _ = ready()
    for number, prompt in enumerate(["a|b|c", "reset", "d|e|f"]):
        client.send(number, {"prompt": prompt})
    replies = texts(client, 3)
    assert replies[1] == (200, ["True"]) and {status for status, _ in replies.values()} == {200}


@pytest.mark.process
def test_the_death_of_an_engine_reaches_all_who_wait_and_ends_the_worker(ready: Any) -> None:
    worker, client, _ = ready()
    for number, prompt in enumerate(["forever", "forever", "explode"]):
        client.send(number, {"prompt": prompt})
    for status, error in texts(client, 3).values():
        assert status == 500 and "the engine failed in a step: RuntimeError: CUDA error" in error
    assert worker.process.wait(5) == 71 and "this worker ends so that a fresh one takes over" in worker.text()


@pytest.mark.process
def test_an_explicit_concurrency_wins(ready: Any) -> None:
    _, _, said = ready(APP, "--concurrency", "3")
    assert said["concurrency"] == 3


@pytest.mark.process
def test_the_class_stays_the_one_class_for_subclasses_isinstance_and_every_import(ready: Any) -> None:
    source = """
        import vllm, vllm.entrypoints.llm
        from vllm import LLM, SamplingParams

        class Mine(LLM):
            def ask(self, prompt):
                return self.generate(prompt, SamplingParams(max_tokens=1))[0].outputs[0].text

        class InferlessPythonModel:
            def initialize(self):
                assert LLM is vllm.LLM is vllm.entrypoints.llm.LLM
                self.llm = Mine("acme/tiny")
                assert isinstance(self.llm, LLM) and isinstance(self.llm.llm_engine, vllm.engine.LLMEngine)
            def infer(self, inputs):
                return {"text": self.llm.ask(inputs["prompt"])}
    """
    _, client, said = ready(source)
    assert said["concurrency"] == 8 and client.call({"prompt": "x"})[1]["outputs"][0]["data"] == ["w0"]


@pytest.mark.process
def test_an_unknown_engine_is_used_as_it_is_and_the_log_says_so(ready: Any) -> None:
    plain = """
        class LLM:
            def __init__(self, model):
                self.llm_engine = None
            def generate(self, prompts, sampling_params):
                class Output: text = "plain"
                class One: prompt, outputs = prompts[0], [Output]
                return [One]
    """
    worker, client, said = ready(llm=plain)
    assert said["concurrency"] == 1 and said["engine"] is None
    assert client.call({"prompt": "x"})[1]["outputs"][0]["data"] == ["x:plain"]
    assert "has no add_request, step, abort_request, has_unfinished_requests: calls of LLM run one at" in worker.text()
