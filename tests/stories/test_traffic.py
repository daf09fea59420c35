"""Two revisions share an endpoint under load: exact shares, a worker killed, a promotion, and no call lost."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from puna.client import Client
from stories.conftest import Callers, Up, write_app

pytestmark = pytest.mark.process


def canary(up: Up, folder: Path, percent: int) -> int:
    """A second revision, once it has its share."""
    made = up.client.deploy(folder, "app", settings={"gpu_type": "cpu", "min_replica": 1}, traffic=percent)
    up.client.wait_for_build(made["build_id"], 120)
    up.client.wait_for_endpoint("app", made["revision"], 60)
    return int(made["revision"])


def pids_of(client: Client, revision: int) -> list[int]:
    replicas = client.endpoint("app")["replicas"]
    return [r["pid"] for r in replicas if r["revision"] == revision and r["state"] == "ready"]


def test_two_revisions_under_load_lose_no_call_by_shares_deaths_and_a_promotion(own_up: Up, tmp_path: Path) -> None:
    up = own_up
    first = up.deploy(write_app(tmp_path / "one", "v1", infer_s=0.005), min_replica=1)
    second = canary(up, write_app(tmp_path / "two", "v2", infer_s=0.005), 25)

    http = httpx.Client(base_url=up.url, headers={"authorization": f"Bearer {up.key}"}, timeout=60)

    def call(number: int) -> tuple[int, str, str]:
        body = {"inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": [str(number)]}]}
        reply = http.post("/v2/models/app/infer", json=body)
        text = next(o["data"][0] for o in reply.json()["outputs"] if o["name"] == "out")
        return reply.status_code, text.split(":")[0], reply.headers["x-puna-revision"]

    up.until(lambda: up.call().headers["x-puna-revision"] == str(second), what="the gateway's hearing of the split")
    while up.call().headers["x-puna-revision"] != str(second):
        pass  # the next turn is the first of four
    with ThreadPoolExecutor(8) as callers:
        answers = Counter(callers.map(call, range(400)))
    http.close()
    assert answers == {(200, "v1", str(first)): 300, (200, "v2", str(second)): 100}

    with Callers(up) as load:
        load.more(40)
        (victim,) = pids_of(up.client, second)
        os.kill(victim, signal.SIGKILL)
        load.more(60)
        up.until(lambda: pids_of(up.client, second) not in ([], [victim]), what="another worker")
        load.more(40)
        assert {one["revision"]: one["percent"] for one in up.client.endpoint("app")["traffic"]} == {1: 75, 2: 25}
        promoted = up.puna("promote", "app", "--json")
        assert promoted.returncode == 0, promoted.stderr + promoted.stdout
        assert [one["percent"] for one in json.loads(promoted.stdout)["traffic"]] == [100]
        load.more(60)
    assert load.failed() == [] and load.broken == 0
    assert all(text.count("v2:") for _, text in load.answers[-50:])
    up.until(lambda: not pids_of(up.client, first), what="the old one's end")


def test_the_command_line_divides_shows_compares_and_takes_back(own_up: Up, tmp_path: Path) -> None:
    up = own_up
    up.deploy(write_app(tmp_path / "app", "v1"), min_replica=1)
    folder = write_app(tmp_path / "app", "v2")
    done = up.puna("deploy", str(folder), "--name", "app", "--gpu", "cpu", "--traffic", "50", "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)["traffic"]
    assert [(one["revision"], one["percent"]) for one in shown] == [(1, 50), (2, 50)]
    for _ in range(6):
        up.call()
    table = up.puna("traffic", "app", "2=10")
    assert table.returncode == 0 and "90 %" in table.stdout and "10 %" in table.stdout, table.stderr
    up.until(lambda: sum(o["requests"] for o in up.client.endpoint("app")["traffic"]) == 6, what="the figures")
    assert "puna_revision_requests_total" in metrics(up)
    diff = up.puna("diff", "app", "1", "2")
    assert '+        return {"out": "v2:"' in diff.stdout and "the packages are the same" in diff.stdout, diff.stderr
    assert json.loads(up.puna("diff", "app", "1", "2", "--json").stdout)["files"][0]["path"] == "app.py"
    refused = up.puna("traffic", "app", "1=x")
    assert refused.returncode != 0 and "puna traffic app 3=90 4=10" in refused.stderr
    back = up.puna("rollback", "app")
    assert back.returncode == 0, back.stderr
    up.until(lambda: not pids_of(up.client, 2), what="the second one's end")
    assert "v1:" in up.call().text
    assert all(word in up.puna("completion", "bash").stdout for word in ("traffic", "promote", "diff"))


def metrics(up: Up) -> str:
    key = up.client.create_key(["infer"])["key"]
    return up.http.get("/metrics", headers={"authorization": f"Bearer {key}"}).text
