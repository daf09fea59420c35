"""The loop that steps an engine: whose options count, and that a paused engine is left alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from puna.worker import protocol
from puna.worker.app import scope
from puna.worker.engines.vllm.loop import EngineDied, EngineLoop, LoopJob, RequestHandle, SharedEngine
from worker import fake_vllm
from worker.test_server import wait_for


class Steps:
    """An engine that ends every request with its first step, and counts."""

    def __init__(self) -> None:
        self.requests: dict[str, dict[str, Any]] = {}
        self.seen: list[dict[str, Any]] = []
        self.steps = 0
        self.is_broken = self.is_endless = False
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

    def get_metrics(self) -> int:
        return threading.get_ident()

    def list_loras(self) -> int:
        return threading.get_ident()

    def reset_prefix_cache(self) -> int:
        assert not self.requests, "requests run"
        return threading.get_ident()

    def step(self) -> list[Any]:
        self.steps += 1
        if self.is_broken:
            raise RuntimeError("illegal memory access")
        if self.is_endless:
            return []
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


def until(is_so: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.002)


def in_thread(function: Callable[[], Any]) -> Any:
    """The result of a function that must not hang, or what it raises."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(function())
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert found, "it hangs"
    return found[0]


def test_a_client_that_disconnects_ends_its_requests_in_the_engine(engine: Steps, loop: EngineLoop) -> None:
    engine.is_endless = True
    request = scope.RequestScope()

    def ask() -> None:
        with scope.entered(request):
            loop.handle.add("1", ("hi",), {})
            loop.handle.receive()

    def leave() -> None:
        until(lambda: engine.requests)
        request.cancel()

    threading.Thread(target=leave, daemon=True).start()
    assert isinstance(in_thread(ask), scope.Cancelled)
    loop.call(lambda: None)
    assert engine.aborted == ["1"] and not engine.requests


def test_a_client_that_disconnects_after_its_reply_reaches_no_later_request(engine: Steps, loop: EngineLoop) -> None:
    request = scope.RequestScope()
    with scope.entered(request):
        loop.handle.add("1", ("hi",), {})
        loop.handle.receive()
    request.cancel()
    assert loop.handle.inbox.empty() and engine.aborted == []


def test_an_error_of_one_request_ends_the_callers_others_for_good(engine: Steps, loop: EngineLoop) -> None:
    engine.is_endless = True
    shared = SharedEngine(engine, loop)
    shared.add_request("1", "hi")
    shared.add_request("2", "refuse")
    with pytest.raises(ValueError, match="refused"):
        shared.step()
    assert not shared.has_unfinished_requests() and in_thread(shared.step) == []
    loop.call(lambda: None)
    assert engine.aborted == ["1"] and not engine.requests


def test_requests_and_calls_join_an_engine_that_is_busy(engine: Steps, loop: EngineLoop) -> None:
    engine.is_endless = True
    loop.handle.add("1", ("hi",), {})
    until(lambda: "1" in engine.requests)
    loop.handle.add("2", ("hi",), {})
    until(lambda: "2" in engine.requests)
    assert in_thread(lambda: loop.call(lambda: "called")) == "called"
    engine.is_endless = False
    received = {request_id for _ in range(2) if loop.handle.pending for request_id, _ in loop.handle.receive()}
    assert received == {"1", "2"}


def test_a_request_that_is_withdrawn_before_its_turn_never_enters_the_engine(engine: Steps, loop: EngineLoop) -> None:
    engine.is_endless = True
    loop.handle.add("1", ("hi",), {})
    until(lambda: engine.requests)
    loop.submit(LoopJob(lambda: None, needs_idle=True))
    other = RequestHandle(loop)
    other.add("2", ("hi",), {})
    other.withdraw()
    loop.handle.withdraw()
    loop.call(lambda: None)
    assert engine.aborted == ["1"] and len(engine.seen) == 1


def test_one_caller_at_a_time_renders_its_prompts_and_lets_the_next_before_it_waits(loop: EngineLoop) -> None:
    with loop.own_handle():
        assert loop.rendering.locked()
        loop.handle.add("1", ("hi",), {})
        with loop.own_handle():  # a call that the first one makes
            loop.handle.receive()
        assert not loop.rendering.locked()
    with loop.own_handle():
        assert loop.rendering.locked()
    assert not loop.rendering.locked()


def test_a_shared_engine_reads_here_calls_in_the_loops_thread_and_waits_where_it_must(
    engine: Steps, loop: EngineLoop
) -> None:
    shared, mine = SharedEngine(engine, loop), threading.get_ident()
    loops = loop.call(threading.get_ident)
    assert isinstance(shared, Steps) and shared.requests is engine.requests and shared.get_metrics() == mine
    engine.is_endless = True
    shared.add_request("1", "hi")
    until(lambda: engine.requests)
    assert in_thread(shared.list_loras) == loops, "it may run between two steps"
    waiting: list[int] = []
    thread = threading.Thread(target=lambda: waiting.append(shared.reset_prefix_cache()), daemon=True)
    thread.start()
    thread.join(0.1)
    assert waiting == [], "it waits for the requests"
    shared.abort_request("1")
    assert not shared.has_unfinished_requests()
    thread.join(10)
    assert waiting == [loops] and engine.aborted == ["1"]
    shared.steps = 7
    assert engine.steps == 7


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
