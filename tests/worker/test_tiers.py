"""Sleeping and waking: the tier of one worker, alone and as a real process."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from puna.worker import protocol
from puna.worker.app.runner import App
from puna.worker.engines import engine
from puna.worker.tiers import ASLEEP, AWAKE, FALLING, WAKING, SleepCycle

NAPPER = """
    import os, time
    class InferlessPythonModel:
        def initialize(self):
            self.state, self.wakes = "awake", 0
        def sleep(self):
            self.state = "asleep"
        def wake(self):
            if os.path.exists("broken"):
                raise MemoryError("no room on the GPU")
            time.sleep(0.2)
            self.state, self.wakes = "awake", self.wakes + 1
        def infer(self, inputs):
            if inputs["prompt"] == "slow":
                time.sleep(0.5)
            return {"state": self.state, "wakes": self.wakes}
"""


class Sleeper:
    """Notes what it is told to do; `gate` holds `wake` until it is set."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.fault: Exception | None = None

    def prepare_sleep(self) -> None:
        self.did.append("prepare")
        if self.fault is not None:
            raise self.fault

    def sleep(self) -> None:
        self.did.append("sleep")

    def wake(self) -> None:
        self.gate.wait()
        self.did.append("wake")


def nap_of(sleeper: Sleeper, idle: bool = True) -> tuple[SleepCycle, list[tuple[str, str]]]:
    told: list[tuple[str, str]] = []
    return SleepCycle(sleeper, lambda: idle, lambda tier, _, reason: told.append((tier, reason))), told


def test_a_nap_goes_down_and_up_again() -> None:
    sleeper = Sleeper()
    nap, told = nap_of(sleeper)
    assert nap.ensure_awake() == 0.0
    nap.fall_asleep()
    assert (nap.state, nap.tier) == (ASLEEP, ASLEEP)
    nap.fall_asleep()  # once is enough
    assert nap.ensure_awake() > 0
    assert nap.state == AWAKE and sleeper.did == ["prepare", "sleep", "wake"]
    assert told == [(ASLEEP, ""), (AWAKE, "")]


def test_what_runs_keeps_it_awake() -> None:
    sleeper = Sleeper()
    nap, told = nap_of(sleeper, idle=False)
    nap.fall_asleep()
    assert nap.state == AWAKE and "sleep" not in sleeper.did
    assert told == [(AWAKE, "a request came")]


def test_what_cannot_sleep_says_why_and_goes_on() -> None:
    sleeper = Sleeper()
    sleeper.fault = MemoryError("16 GiB are not free")
    nap, told = nap_of(sleeper)
    nap.fall_asleep()
    assert nap.state == AWAKE and told == [(AWAKE, "MemoryError: 16 GiB are not free")]


def test_twenty_who_come_at_once_wake_it_once() -> None:
    sleeper = Sleeper()
    nap, _ = nap_of(sleeper)
    nap.fall_asleep()
    sleeper.gate.clear()
    waits: list[float] = []
    threads = [threading.Thread(target=lambda: waits.append(nap.ensure_awake())) for _ in range(20)]
    for thread in threads:
        thread.start()
    while nap.state != WAKING:
        time.sleep(0.001)
    assert nap.tier == ASLEEP
    sleeper.gate.set()
    for thread in threads:
        thread.join()
    assert sleeper.did.count("wake") == 1 and len(waits) == 20 and all(w > 0 for w in waits)


def test_a_move_that_is_in_no_table_is_a_fault() -> None:
    nap, _ = nap_of(Sleeper())
    with pytest.raises(AssertionError):
        nap._move(WAKING)
    nap._move(FALLING)


@pytest.mark.process
def test_a_request_wakes_a_worker_and_says_so(start: Callable, app: Callable, python: str) -> None:
    client = start(app(NAPPER), "--concurrency", "8", python=python).ready()
    client.socket.sendall(protocol.encode(protocol.SLEEP))
    assert client.until(protocol.ASLEEP)["tier"] == "asleep"
    for number in range(1, 9):
        client.send(number, {"prompt": "hello"})
    started, replies, awake = [], [], 0
    while len(replies) < 8:
        kind, _, payload = client.next()
        if kind == protocol.STARTED:
            started.append(json.loads(payload))
        elif kind == protocol.REPLY:
            status, body = protocol.decode_reply(payload)
            replies.append((status, [o["data"][0] for o in json.loads(body)["outputs"]]))
        elif kind == protocol.AWAKE:
            awake += 1
    assert replies == [(200, ["awake", 1])] * 8
    assert awake == 1
    assert all(s["tier"] == "asleep" and s["wake_ms"] >= 100 for s in started) and len(started) == 8
    client.send(9, {"prompt": "hello"})
    kind, _, payload = client.next()
    assert (kind, payload) == (protocol.STARTED, b"")


@pytest.mark.process
def test_others_hear_of_it_and_newcomers_too(start: Callable, app: Callable) -> None:
    worker = start(app(NAPPER))
    owner, gateway = worker.ready(), worker.ready()
    owner.socket.sendall(protocol.encode(protocol.SLEEP))
    assert gateway.until(protocol.ASLEEP)["tier"] == "asleep"
    said = worker.client().until(protocol.HELLO)
    assert (said["tier"], said["can_sleep"]) == ("asleep", True)
    owner.socket.sendall(protocol.encode(protocol.WAKE))
    assert gateway.until(protocol.AWAKE)["tier"] == "awake"


@pytest.mark.process
def test_a_running_call_keeps_a_worker_awake(start: Callable, app: Callable) -> None:
    client = start(app(NAPPER)).ready()
    client.send(1, {"prompt": "slow"})
    assert client.until(protocol.STARTED) is None
    client.socket.sendall(protocol.encode(protocol.SLEEP))
    assert client.until(protocol.AWAKE)["reason"] == "a request came"
    assert client.reply()[1] == 200


@pytest.mark.process
def test_an_app_that_cannot_sleep_says_so(start: Callable, app: Callable) -> None:
    worker = start(app())
    worker.ready()
    client = worker.client()
    assert client.until(protocol.HELLO)["can_sleep"] is False
    client.socket.sendall(protocol.encode(protocol.SLEEP))
    assert client.until(protocol.AWAKE)["reason"] == "this replica cannot sleep"


@pytest.mark.process
def test_a_worker_that_cannot_wake_ends_and_its_calls_are_not_begun(start: Callable, app: Callable) -> None:
    folder: Path = app(NAPPER)
    worker = start(folder)
    client = worker.ready()
    client.socket.sendall(protocol.encode(protocol.SLEEP))
    client.until(protocol.ASLEEP)
    (folder / "broken").touch()
    client.send(1, {"prompt": "hello"})
    assert client.next() == (0, 0, b"")  # no STARTED: the gateway tries it elsewhere
    assert worker.process.wait(5) == 71
    assert "no room on the GPU" in worker.text()


@pytest.mark.process
def test_the_time_of_a_call_begins_when_it_is_awake(start: Callable, app: Callable) -> None:
    client = start(app(NAPPER)).ready()
    client.socket.sendall(protocol.encode(protocol.SLEEP))
    client.until(protocol.ASLEEP)
    client.send(1, {"prompt": "hello"}, deadline_s=0.15)  # waking takes 0.2 s
    assert client.until(protocol.STARTED)["tier"] == "asleep"
    assert client.reply()[1] == 200


class Napping:
    """An engine that notes what it is told; `fails` names the method that raises."""

    can_sleep = True

    def __init__(self, fails: str = "") -> None:
        self.did: list[str] = []
        self._fails = fails

    def sleep(self) -> None:
        self._do("sleep")

    def wake(self) -> None:
        self._do("wake")

    def _do(self, what: str) -> None:
        self.did.append(what)
        if what == self._fails:
            raise MemoryError("no room to " + what)


class Grumpy:
    """An app's own methods; `sleep` raises."""

    def sleep(self) -> None:
        raise ValueError("not now")

    def wake(self) -> None:
        raise AssertionError("it never slept")


@pytest.mark.parametrize(
    ("model", "fails", "did", "dies"),
    [
        (Grumpy(), "", ["sleep", "wake"], False),
        (Grumpy(), "wake", ["sleep", "wake"], True),
        (object(), "sleep", ["sleep"], True),
    ],
    ids=["the app's sleep raises", "and the engine cannot wake", "the engine's sleep raises"],
)
def test_a_sleep_that_fails_leaves_a_working_engine_or_a_dead_one(
    model: object, fails: str, did: list[str], dies: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, deaths = Napping(fails), []
    monkeypatch.setattr(engine, "_engines", [one])
    monkeypatch.setattr(engine, "_death_listeners", [deaths.append])
    made = App(str(tmp_path))
    made.model = model
    nap, told = nap_of(made)
    monkeypatch.setattr(made, "prepare_sleep", lambda: None)
    nap.fall_asleep()
    assert nap.state == AWAKE and told[0][0] == AWAKE
    assert one.did == did and bool(deaths) == dies
