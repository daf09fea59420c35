"""A replica that falls asleep, wakes for whoever calls, and is gone when nobody does, on a real `puna up`."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from stories.conftest import SCHEMA, Up

pytestmark = pytest.mark.process

NAPPER = """
import os, time
class InferlessPythonModel:
    def initialize(self):
        self.sleeps = self.wakes = 0
    def sleep(self):
        self.sleeps += 1
        print("sleeps", self.sleeps, flush=True)
    def wake(self):
        time.sleep(0.5)
        self.wakes += 1
        print("wakes", self.wakes, flush=True)
    def infer(self, inputs):
        return {"pid": os.getpid(), "sleeps": self.sleeps, "wakes": self.wakes}
"""
AWAKE, DROWSY = {"scale_down_delay_s": 600}, {"scale_down_delay_s": 0.3}


@pytest.fixture
def napper(shared_up: Up, tmp_path: Path) -> Iterator[Up]:
    """An app with `sleep` and `wake` methods that count."""
    folder = tmp_path / "napper"
    folder.mkdir()
    (folder / "app.py").write_text(NAPPER)
    (folder / "input_schema.py").write_text(SCHEMA)
    shared_up.deploy(folder, "napper", evict_after_s=3600, container_concurrency=8, **AWAKE)
    yield shared_up
    shared_up.client.delete("napper")


def replicas(up: Up) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = up.client.endpoint("napper")["replicas"]
    return found


def falls_asleep(up: Up) -> None:
    up.until(lambda: [r["state"] for r in replicas(up)] == ["ready"], 60, "a ready replica in the books")
    up.client.patch("napper", **DROWSY)
    up.until(lambda: [r["state"] for r in replicas(up)] == ["asleep"], 60, "falling asleep")
    up.client.patch("napper", **AWAKE)


def values(reply: httpx.Response) -> tuple[int, int, int]:
    assert reply.status_code == 200, reply.text
    pid, sleeps, wakes = [o["data"][0] for o in reply.json()["outputs"]]
    return pid, sleeps, wakes


def waits(reply: httpx.Response) -> dict[str, float]:
    return {name: float(reply.headers[f"x-puna-{name}-ms"]) for name in ("queue", "wake", "infer")}


def at_once(up: Up, count: int) -> list[httpx.Response]:
    """So many calls that leave together: one client, whose connections share what is slow to set up."""
    body = {"inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["hi"]}]}
    together = threading.Barrier(count)
    limits = httpx.Limits(max_connections=count)
    with httpx.Client(headers={"authorization": f"Bearer {up.key}"}, timeout=60, limits=limits) as client:

        def call(_: int) -> httpx.Response:
            together.wait()
            return client.post(f"{up.url}/v2/models/napper/infer", json=body)

        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(call, range(count)))


def test_the_life_of_a_sleeper(napper: Up) -> None:
    up = napper
    pid, _, _ = values(up.call(name="napper"))
    falls_asleep(up)
    endpoint = up.client.endpoint("napper")
    assert (endpoint["state"], endpoint["label"]) == ("asleep", "asleep: wakes on the next request")
    assert endpoint["replicas"][0]["tier"] == "asleep"

    # A request wakes it, and says so; the next one finds it awake.
    first, second = up.call(name="napper"), up.call(name="napper")
    assert values(first) == values(second) == (pid, 1, 1)
    assert first.headers["x-puna-tier"] == "asleep" and waits(first)["wake"] >= 500
    assert second.headers["x-puna-tier"] == "awake" and waits(second)["wake"] == 0

    # Twenty at once wake it once, and nobody is lost: eight on the replica, twelve in the waiting room.
    falls_asleep(up)
    replies = at_once(up, 20)
    assert {values(reply) for reply in replies} == {(pid, 2, 2)}
    found = [reply.headers["x-puna-tier"] for reply in replies]
    assert "asleep" in found and set(found) <= {"asleep", "awake"}
    assert max(waits(reply)["wake"] for reply in replies) >= 500
    counts = up.http.get("/metrics", headers={"authorization": f"Bearer {up.key}"}).text
    assert 'puna_wake_seconds_count{endpoint="napper",tier="asleep"}' in counts

    # Killed while asleep: the next request gets another one.
    falls_asleep(up)
    os.kill(pid, signal.SIGKILL)
    third = up.call(name="napper")
    assert values(third)[0] != pid and values(third)[1:] == (0, 0)
    died = [event["message"] for event in up.client.events("napper") if event["kind"] == "died"]
    assert len(died) == 1 and "while it slept" in died[0]

    # evict_after ends it.
    falls_asleep(up)
    up.client.patch("napper", evict_after_s=1)
    up.until(lambda: not replicas(up), 60, "evict_after")
    assert up.client.endpoint("napper")["state"] == "idle"
    told = [event["message"] for event in up.client.events("napper")]
    assert any("ready -> asleep: 0 wanted: no request for 0.3 s" in message for message in told)
    assert any("asleep -> draining: slept for 1 s" in message for message in told)


def test_deactivate_a_new_revision_and_no_evict_after_end_what_sleeps(napper: Up, tmp_path: Path) -> None:
    up = napper
    pid, _, _ = values(up.call(name="napper"))
    falls_asleep(up)
    up.deploy(tmp_path / "napper", "napper", env={"NEW": "1"}, container_concurrency=8, **AWAKE)
    up.until(lambda: pid not in [r["pid"] for r in replicas(up)], what="the old revision's end")
    assert values(up.call(name="napper"))[0] != pid

    falls_asleep(up)
    up.client.deactivate("napper")
    up.until(lambda: not replicas(up), 60, "deactivation")
    up.client.activate("napper")

    up.client.patch("napper", evict_after_s=0, **DROWSY)
    values(up.call(name="napper"))
    up.until(lambda: not replicas(up), 60, "scaling to zero")
    told = [event["message"] for event in up.client.events("napper")]
    assert any("ready -> draining: 0 wanted: no request" in message for message in told)
