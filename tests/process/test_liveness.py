"""A worker that runs and does not live is ended, a busy one is not; the judge's own pauses count for nobody."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import time
from collections.abc import Callable

import pytest

from backends.replicas import call, is_alive, wait_for
from puna.backends.base import Launch, Phase
from puna.backends.local import LocalBackend
from puna.process.liveness import IDLE_SILENCE_S, Liveness
from worker import wire

Make = Callable[..., Launch]
INFERENCE_TIME_S = 2.0
SICK = """
    import ctypes, os, re, signal, threading, time
    lock = threading.Lock()
    class InferlessPythonModel:
        def infer(self, inputs):
            exec(inputs["prompt"], globals())
            return {"text": "done"}
"""
KINDS = {
    "stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
    "held in C": "ctypes.PyDLL(None).pause()",
    "held in a regular expression": "re.match(r'(a+)+$', 'a' * 60 + 'b')",
    "descriptors closed": "os.closerange(3, 1000); time.sleep(600)",
    "deadlocked": "lock.acquire(); lock.acquire()",
    "deadlocked with the worker": "threading._active_limbo_lock.acquire(); time.sleep(600)",
}


def turns(liveness: Liveness, begin: float, end: float, page: tuple[float, float] = (0.0, 0.0)) -> str:
    """What the judge says in the end, when it turns ten times a second and hears nothing."""
    now, why = begin, ""
    while now < end and not why:
        now += 0.1
        why = liveness.turn(now, *page)
    return why


def test_an_idle_worker_is_sick_when_it_is_silent_for_long() -> None:
    liveness = Liveness(100.0, 180.0)
    assert turns(liveness, 100.0, 100.0 + IDLE_SILENCE_S - 1) == ""
    liveness.answered()
    assert turns(liveness, 119.0, 119.0 + IDLE_SILENCE_S - 1) == ""
    assert "did not answer for 20 s" in turns(liveness, 138.0, 141.0)


def test_who_waits_only_a_little_waits_for_a_silent_worker_only_a_little() -> None:
    assert Liveness(0.0, 3.0).idle_silence_s == 8.0
    assert Liveness(0.0, 10.0).idle_silence_s == 15.0
    assert Liveness(0.0, 180.0).idle_silence_s == Liveness(0.0).idle_silence_s == 20.0


def test_a_call_within_its_time_may_be_silent_and_soon_after_it_may_not() -> None:
    liveness = Liveness(0.0, 60.0)
    assert turns(liveness, 0.0, 60.0, (60.0, 0.0)) == ""
    assert turns(liveness, 60.0, 64.5, (60.0, 0.0)) == ""
    assert "after the time of its call" in turns(liveness, 64.5, 66.0, (60.0, 0.0))


def test_a_call_that_ended_after_long_silence_is_given_time_to_answer() -> None:
    liveness = Liveness(0.0, 60.0)
    assert turns(liveness, 0.0, 59.0, (60.0, 0.0)) == ""
    assert turns(liveness, 59.0, 65.0) == ""


def test_a_worker_that_answers_and_does_not_end_its_overdue_calls_is_sick() -> None:
    liveness, now, why = Liveness(0.0, 2.0), 0.0, ""
    while not why:
        now += 0.5
        liveness.answered()
        why = liveness.turn(now, 2.0, 0.0)
    assert "overran its time" in why and 9.0 <= now <= 11.0


def test_going_to_sleep_and_waking_are_work() -> None:
    liveness = Liveness(0.0, 2.0)
    assert turns(liveness, 0.0, 60.0, (2.0, 60.0)) == ""
    assert turns(liveness, 60.0, 69.0, (2.0, 60.0)) != ""


def test_the_time_that_the_judge_stood_still_counts_for_nobody() -> None:
    liveness = Liveness(0.0, 2.0)
    assert liveness.turn(1.0, 0.0, 0.0) == ""
    assert liveness.turn(5000.0, 0.0, 0.0) == "" and liveness.turn(5000.1, 4990.0, 0.0) == ""
    liveness.answered()
    assert turns(liveness, 5000.1, 5007.0) == ""


def begin_call(launch: Launch, code: str, deadline_s: float = INFERENCE_TIME_S) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(launch.socket))
    body = json.dumps({"inputs": [{"name": "prompt", "shape": [1], "data": [code]}]}).encode()
    head = {"path": "infer", "deadline_s": deadline_s, "trace": "t", "model_name": "m"}
    client.sendall(wire.request(1, head, body))
    return client


@pytest.mark.process
@pytest.mark.parametrize("kind", KINDS)
def test_a_sick_worker_is_ended_soon_after_the_time_of_its_call(local: LocalBackend, launch: Make, kind: str) -> None:
    made = launch(source=SICK, inference_time_s=INFERENCE_TIME_S)
    local.start(made)
    worker = wait_for(local, Phase.READY).pid
    with begin_call(made, KINDS[kind]):
        seen = wait_for(local, Phase.EXITED, limit_s=INFERENCE_TIME_S + 10)
    assert not is_alive(worker)
    expected = {
        "descriptors closed": "closed the descriptors",
        "deadlocked": "overran its time",
        "deadlocked with the worker": "overran its time",
    }
    assert expected.get(kind, "did not answer") in seen.reason


@pytest.mark.process
def test_an_idle_worker_that_is_stopped_is_ended(local: LocalBackend, launch: Make) -> None:
    local.start(launch(inference_time_s=INFERENCE_TIME_S))
    os.kill(wait_for(local, Phase.READY).pid, signal.SIGSTOP)
    seen = wait_for(local, Phase.EXITED, limit_s=15)
    assert "did not answer for 8 s" in seen.reason


@pytest.mark.process
def test_native_code_that_holds_the_interpreter_within_its_time_is_let_be(local: LocalBackend, launch: Make) -> None:
    made = launch(source=SICK, inference_time_s=20)
    local.start(made)
    worker = wait_for(local, Phase.READY).pid
    with begin_call(made, "ctypes.PyDLL(None).sleep(11)", 20) as client:
        client.settimeout(30)
        answer = b""
        while b"done" not in answer:
            answer += client.recv(65536)
    assert wait_for(local, Phase.READY).pid == worker


@pytest.mark.process
def test_a_long_initialize_that_holds_the_interpreter_is_not_sick(local: LocalBackend, launch: Make) -> None:
    source = """
        import ctypes
        class InferlessPythonModel:
            def initialize(self): ctypes.PyDLL(None).sleep(10)
            def infer(self, inputs): return {"text": "x"}
    """
    local.start(launch(source=source, inference_time_s=1))
    assert wait_for(local, Phase.READY, limit_s=30).pid


@pytest.mark.process
def test_a_guard_that_stays_stopped_is_ended_with_its_worker_and_keeps_nobody_waiting(
    local: LocalBackend, launch: Make
) -> None:
    local.start(launch("r1"))
    local.start(launch("r2"))
    workers = [wait_for(local, Phase.READY, name).pid for name in ("r1", "r2")]
    told = local._ask("r1", {"command": "status"})
    assert told is not None
    os.kill(told["pid"], signal.SIGSTOP)
    began, looks = time.monotonic(), []
    while local.list()[0].phase is not Phase.EXITED:
        looks.append(time.monotonic())
        assert looks[-1] - began < 20
        assert local.list()[1].phase is Phase.READY
        time.sleep(0.2)
    gaps = [later - earlier for earlier, later in itertools.pairwise(looks)]
    assert sum(gap > 1.5 for gap in gaps) <= 1, "one look may wait a second, all others go on"
    assert "did not answer for 12 s" in local.list()[0].reason
    assert not is_alive(workers[0]) and is_alive(workers[1])


@pytest.mark.process
def test_a_guard_that_was_stopped_blames_nobody(local: LocalBackend, launch: Make) -> None:
    made = launch(inference_time_s=1)
    local.start(made)
    worker = wait_for(local, Phase.READY).pid
    told = local._ask("r1", {"command": "status"})
    assert told is not None
    for _ in range(2):
        os.kill(told["pid"], signal.SIGSTOP)
        time.sleep(10)
        os.kill(told["pid"], signal.SIGCONT)
        time.sleep(0.5)
    assert wait_for(local, Phase.READY).pid == worker and call(made, "x") == "you said x"
