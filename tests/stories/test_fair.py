"""Callers of one endpoint side by side: what one asks for is not paid for by the others."""

from __future__ import annotations

import contextlib
import http.client
import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from puna.errors import PunaError
from stories.conftest import Callers, Up, write_app

pytestmark = pytest.mark.process


FATAL = """
import ctypes, os, time
class InferlessPythonModel:
    def initialize(self):
        print("ready", flush=True)
    def infer(self, inputs):
        kind = inputs["prompt"].split()[0]
        if kind == "exit":
            os._exit(1)
        if kind == "segfault":
            ctypes.string_at(0)
        if kind == "overrun":
            time.sleep(3600)
        if kind == "late":
            time.sleep(0.2)
            os._exit(1)
        time.sleep(0.005)
        return {"out": "v1:" + inputs["prompt"], "pid": str(os.getpid())}
    def finalize(self):
        pass
"""


class Loops:
    """Closed loops of one key: each calls, waits for its answer, and calls again at once."""

    def __init__(self, up: Up, key: str, count: int) -> None:
        self.statuses: Counter[int] = Counter()
        self._url, self._key, self._stop = urlsplit(up.url), key, threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(count)]

    def _call(self) -> None:
        client = http.client.HTTPConnection(str(self._url.hostname), self._url.port, timeout=60)
        with contextlib.closing(client):
            while not self._stop.is_set():
                status = ask(client, self._key)
                self.statuses[status] += 1
                if status == 429:
                    time.sleep(0.1)  # sooner than it was told to

    def __enter__(self) -> Loops:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def ask(client: http.client.HTTPConnection, key: str, text: str = "hi") -> int:
    """One call over a connection that stays; the status."""
    body = json.dumps({"inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": [text]}]})
    client.request("POST", "/v2/models/app/infer", body, {"authorization": f"Bearer {key}"})
    reply = client.getresponse()
    reply.read()
    return reply.status


@pytest.fixture(scope="module")
def up(shared_up: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One replica that takes 5 ms for a call, one at a time."""
    shared_up.deploy(write_app(tmp_path_factory.mktemp("app") / "app", infer_s=0.005), max_replica=1, min_replica=1)
    yield shared_up


def test_a_key_with_one_loop_is_served_beside_one_with_a_hundred_and_fifty(up: Up, tmp_path: Path) -> None:
    keys = [str(up.client.create_key(["infer"], name=name)["key"]) for name in ("many", "one")]
    url = urlsplit(up.url)
    client = http.client.HTTPConnection(str(url.hostname), url.port, timeout=60)
    with Loops(up, keys[0], 150) as many, contextlib.closing(client):
        up.until(lambda: many.statuses[429] > 0, what="a full room")
        assert [ask(client, keys[1]) for _ in range(21)] == [200] * 21
    assert many.statuses[200] and many.statuses[429] and not set(many.statuses) - {200, 429}


def deaths(up: Up, name: str) -> int:
    """How many replicas of an endpoint have died; whose doing one was may come to light only after its event."""
    return sum(event["kind"] == "died" for event in up.client.events(name))


def refusals(up: Up, name: str) -> int:
    """How often a control plane has said that a request is refused; -1 while there is none."""
    try:
        return sum(event["kind"] == "poison" for event in up.client.events(name))
    except (PunaError, httpx.TransportError):
        return -1


def kill(up: Up, role: str) -> None:
    """Kill a process of `puna up`, and wait for an answer that its successor had a part in."""
    up.replace(role)
    up.until(lambda: answers(up), 60, what="an answer")


def answers(up: Up) -> bool:
    """Whether the endpoint does."""
    with contextlib.suppress(httpx.TransportError):
        return up.call("fine", "fatal").status_code == 200
    return False


@pytest.fixture(scope="module")
def fatal(shared_up: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An endpoint whose replica some inputs kill, each in its way."""
    folder = write_app(tmp_path_factory.mktemp("fatal") / "fatal")
    (folder / "app.py").write_text(FATAL)
    shared_up.deploy(folder, "fatal", max_replica=1, min_replica=1, inference_time_s=3)
    yield "fatal"


def test_inputs_that_kill_replicas_are_refused_while_every_other_caller_is_answered(shared_up: Up, fatal: str) -> None:
    up = shared_up
    bad = str(up.client.create_key(["infer"], name="bad")["key"])
    with Callers(up, fatal, 4) as callers:
        callers.more(50)
        for number, text in enumerate(("exit a", "segfault b", "exit c"), 1):
            first = up.call(text, fatal, bad)
            assert first.status_code == 502 and "2 replicas died" in first.text, first.text
            again = up.call(text, fatal)
            assert again.status_code == 500 and "puna logs fatal" in again.text, again.text
            up.until(lambda n=number: deaths(up, fatal) == 2 * n, what="two deaths more")  # type: ignore[misc]
            callers.more(20)
        up.until(lambda: up.call("fine", fatal, bad).status_code == 429, what="an end to what one key can kill")
        refused = up.call("fine", fatal, bad)
        assert 0 < int(refused.headers["retry-after"]) <= 600 and "puna logs fatal" in refused.text
        callers.more(50)
    assert callers.failed() == []
    endpoint = up.client.endpoint(fatal)
    assert endpoint["state"] == "ready" and not endpoint["reason"], endpoint
    kinds = [event["message"] for event in up.client.events(fatal) if event["kind"] == "poison"]
    assert len(kinds) == 4, kinds


def test_a_gateway_and_a_control_plane_that_are_new_refuse_what_the_old_ones_did(shared_up: Up, fatal: str) -> None:
    up, before = shared_up, deaths(shared_up, fatal) + 2
    assert up.call("exit once", fatal).status_code == 502
    assert up.call("exit once", fatal).status_code == 500
    up.until(lambda: deaths(up, fatal) == before, what="two deaths more")
    told = refusals(up, fatal)
    kill(up, "puna.server control")
    up.until(lambda: refusals(up, fatal) > told, 60, what="a new control plane that has been told")
    assert up.call("exit once", fatal).status_code == 500
    kill(up, "puna.server gateway")
    assert up.call("exit once", fatal).status_code == 500
    assert deaths(up, fatal) == before


def test_an_input_that_overruns_its_time_again_and_again_does_not_hold_its_endpoint_back(
    shared_up: Up, fatal: str
) -> None:
    up = shared_up
    before = deaths(up, fatal)
    for number in (1, 2):
        assert up.call("overrun a", fatal).status_code == 504
        up.until(lambda n=number: deaths(up, fatal) == before + n, what="the end of the replica")  # type: ignore[misc]
        assert up.call("fine", fatal).status_code == 200
    again = up.call("overrun a", fatal)
    assert again.status_code == 500 and "2 replicas died of this very request" in again.text
    assert up.client.endpoint(fatal)["reason"] == ""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Two gateways on one port."""
    with tempfile.TemporaryDirectory(prefix="puna-") as root:
        up = Up(Path(root), gateways=2)
        up.deploy(write_app(tmp_path_factory.mktemp("two") / "app"), max_replica=1, min_replica=1)
        yield up
        up.down()


@contextlib.contextmanager
def one_each(up: Up) -> Iterator[list[http.client.HTTPConnection]]:
    """A connection to each of the two gateways; what a gateway calls its requests begins with a word of its own."""
    url, found = urlsplit(up.url), dict[str, http.client.HTTPConnection]()
    with contextlib.ExitStack() as opened:
        for _ in range(50):  # all stay open: who has fewer clients gets the next
            client = http.client.HTTPConnection(str(url.hostname), url.port, timeout=60)
            opened.callback(client.close)
            client.request("GET", "/v2/models/none")
            reply = client.getresponse()
            reply.read()
            found.setdefault(str(reply.getheader("x-puna-request-id")).rpartition("-")[0], client)
            if len(found) == 2:
                yield list(found.values())
                return
        raise AssertionError("all connections came to one gateway")


def test_who_shares_a_replica_with_a_killer_at_another_gateway_is_never_convicted(two: Up, tmp_path: Path) -> None:
    up = two
    folder = write_app(tmp_path / "fatal")
    (folder / "app.py").write_text(FATAL)
    up.deploy(folder, "app", max_replica=1, min_replica=1)
    bad = str(up.client.create_key(["infer"], name="bad")["key"])
    with one_each(up) as (killer, other):
        for number in range(3):
            statuses: dict[str, int] = {}

            def call(client: http.client.HTTPConnection, key: str, text: str, found: dict[str, int] = statuses) -> None:
                found[text] = ask(client, key, text)

            calls = ((killer, bad, f"late {number}"), (other, up.key, f"fine {number}"))
            threads = [threading.Thread(target=call, args=one) for one in calls]
            for thread in threads:
                thread.start()
                time.sleep(0.05)
            for thread in threads:
                thread.join()
            assert statuses == {f"late {number}": 502, f"fine {number}": 200}
            assert ask(killer, up.key, f"late {number}") == 500, "and what kills is refused"
            assert ask(other, up.key, f"fine {number}") == 200


def test_a_key_opens_every_gateway_once_it_is_made_and_none_once_it_is_revoked(two: Up) -> None:
    with one_each(two) as clients:
        for _ in range(10):
            made = two.client.create_key(["infer"])
            assert [ask(client, str(made["key"])) for client in clients] == [200, 200]
            two.client.delete_key(str(made["id"]))
            assert [ask(client, str(made["key"])) for client in clients] == [401, 401]


def test_limits_of_a_key_hold_over_two_gateways_and_are_shown(two: Up) -> None:
    up = two
    made = up.puna("key", "create", "ci", "--rate", "20/s", "--concurrency", "6", "--json")
    assert made.returncode == 0, made.stderr
    key = json.loads(made.stdout)
    assert (key["rate"], key["tokens"], key["concurrency"]) == ("20/s", None, 6)
    assert "20/s, 6 at once" in " ".join(up.puna("key", "list").stdout.split())
    wrong = up.puna("key", "create", "--rate", "fast")
    assert wrong.returncode == 2 and "10/s" in wrong.stderr + wrong.stdout
    times, others = [], Counter[int]()
    url, began, lock = urlsplit(up.url), time.monotonic(), threading.Lock()

    def call() -> None:
        client = http.client.HTTPConnection(str(url.hostname), url.port, timeout=60)
        with contextlib.closing(client):
            while time.monotonic() < began + 4:
                status = ask(client, key["key"])
                with lock:
                    if status == 200:
                        times.append(time.monotonic())
                    else:
                        others[status] += 1
                if status == 429:
                    time.sleep(0.02)

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s = max(times) - began
    assert set(others) == {429}
    assert len(times) <= 20 * (int(took_s) + 1), "no second has more than 20"
    assert len(times) >= 20, "and the first one has as many, however busy the machine"
    unlimited = http.client.HTTPConnection(str(url.hostname), url.port, timeout=60)
    with contextlib.closing(unlimited):
        assert [ask(unlimited, up.key) for _ in range(60)] == [200] * 60


def test_calls_at_once_are_counted_over_two_gateways(two: Up, tmp_path: Path) -> None:
    up = two
    up.deploy(write_app(tmp_path / "slow", infer_s=2.0), "app", max_replica=1, min_replica=1)
    key = str(up.client.create_key(["infer"], name="three", limits={"concurrency": 3})["key"])
    url, statuses = urlsplit(up.url), Counter[int]()
    clients = [http.client.HTTPConnection(str(url.hostname), url.port, timeout=60) for _ in range(12)]
    threads = [threading.Thread(target=lambda c=c: statuses.update([ask(c, key)])) for c in clients]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients:
        client.close()
    assert statuses == {200: 3, 429: 9}
    again = http.client.HTTPConnection(str(url.hostname), url.port, timeout=60)
    with contextlib.closing(again):
        assert ask(again, key) == 200, "their places are given back"
