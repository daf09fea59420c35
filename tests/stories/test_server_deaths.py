"""SIGKILL for every process of a `puna up` under load: nothing is lost but replies that had begun, nothing is left."""

import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from backends.replicas import is_alive, processes_with
from load import load_factor
from puna.errors import PunaError
from stories.conftest import Callers, Up, family, write_app

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One `puna up` with two gateways and an app on two replicas; the last story kills it."""
    with tempfile.TemporaryDirectory(prefix="puna-") as root:
        running = Up(Path(root), gateways=2)
        app = write_app(tmp_path_factory.mktemp("app"), infer_s=0.02)
        running.deploy(app, min_replica=2, max_replica=2)
        running.until(lambda: len(running.worker_pids()) == 2, 30, "two replicas")
        yield running
        running.client.close()
        running.process.kill()
        running.process.wait()


def kill(pid: int) -> float:
    os.kill(pid, signal.SIGKILL)
    return time.monotonic()


def test_a_killed_replica_loses_no_request_and_is_replaced(up: Up) -> None:
    before = up.worker_pids()
    with Callers(up) as callers:
        callers.more(20)
        kill(before[0])
        callers.more(60)
        up.until(lambda: len(up.worker_pids()) == 2 and up.worker_pids() != before, 30, "the replacement")
        callers.more(20)
    assert callers.failed() == [] and callers.broken == 0


def test_a_killed_guard_takes_its_worker_along_and_loses_no_request(up: Up) -> None:
    up.until(lambda: len(up.worker_pids()) == 2, 30, "two replicas")
    before = up.worker_pids()
    guard = int(Path(f"/proc/{before[0]}/stat").read_text().rpartition(")")[2].split()[1])
    with Callers(up) as callers:
        callers.more(20)
        killed = kill(guard)
        up.until(lambda: not is_alive(before[0]), 2 - (time.monotonic() - killed), "the worker's end")
        callers.more(60)
    assert callers.failed() == [] and callers.broken == 0


def test_guard_and_worker_killed_at_once_leave_nothing_of_the_app(up: Up, tmp_path: Path) -> None:
    mark = f"{os.getpid()}{time.monotonic_ns() % 10**6}"
    app = write_app(tmp_path / "app")
    daemons = (
        f"import subprocess\nsubprocess.Popen(['setsid', 'sleep', '{mark}'])\nsubprocess.Popen(['sleep', '{mark}'])\n"
    )
    (app / "app.py").write_text(daemons + (app / "app.py").read_text())
    up.deploy(app, "daemons", min_replica=1, max_replica=1)
    (worker,) = up.worker_pids("daemons")
    guard = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    before = processes_with(mark)
    assert len(before) >= 2
    os.kill(guard, signal.SIGSTOP)  # neither may see the other's end
    kill(worker)
    kill(guard)
    up.until(lambda: not any(is_alive(pid) for pid in before), 10, "the end of what the app had started")
    up.client.delete("daemons")
    up.until(lambda: not processes_with(mark), 30, "the end of its successor's")


def test_a_killed_gateway_breaks_its_own_connections_only(up: Up) -> None:
    gateways = up.pids("puna.server gateway")
    assert len(gateways) == 2
    before = _counted(up)
    with Callers(up) as callers:
        callers.more(20)
    # A gateway that is killed takes along what it counted in its last half second: these are older.
    up.until(lambda: _counted(up) - before >= len(callers.answers), 5, "what both gateways counted")
    known = _counted(up)
    with Callers(up) as callers:
        callers.more(20)
        kill(gateways[0])
        callers.more(60)
        up.until(lambda: len(up.pids("puna.server gateway")) == 2, 5, "the new gateway")
        callers.more(20)
    assert callers.failed() == []
    assert callers.broken <= 8, "more than the connections of one moment"
    assert _counted(up) >= known + 60, "the dead gateway's answers count too"
    up.until(lambda: _in_flight(up) == 0, 5, "nothing in flight, not even on the dead gateway")


def _counted(up: Up) -> int:
    """Successful calls of the app, as /metrics has them."""
    text = up.http.get("/metrics", headers={"authorization": f"Bearer {up.key}"}).text
    found = re.search(r'puna_requests_total\{endpoint="app",status="200"\} (\d+)', text)
    return int(found[1]) if found else 0


def test_without_a_control_plane_requests_never_notice(up: Up) -> None:
    control = up.pids("puna.server control")
    before = up.worker_pids()
    with Callers(up) as callers:
        callers.more(20)
        kill(control[0])
        callers.more(60)
        up.until(lambda: up.pids("puna.server control") not in ([], control), 5, "the new control plane")
        up.until(lambda: _answers(up), 30, "the control plane's first answer")
        callers.more(20)
    assert callers.failed() == [] and callers.broken == 0
    assert sorted(up.worker_pids()) == sorted(before), "the replicas went on and were found again"


def test_who_asks_the_api_while_the_control_plane_is_replaced_waits_at_the_front_and_is_answered(up: Up) -> None:
    """Without a client that knows what to do: as curl and the console ask, once."""
    up.until(lambda: _answers(up), 30, "the control plane")
    key = {"authorization": f"Bearer {up.client.create_key(['admin'])['key']}"}

    def ask(number: int) -> httpx.Response:
        if number % 2:
            body = {"name": f"of-{number}", "scope": ["infer"]}
            return up.http.post("/api/v1/keys", json=body, headers=key, timeout=60)
        return up.http.get("/api/v1/endpoints", headers=key, timeout=60)

    up.until(lambda: ask(0).status_code == 200, 10, "the key at both gateways")
    control = up.pids("puna.server control")
    kill(control[0])
    up.until(lambda: not is_alive(control[0]), 10, "its end")
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(ask, range(16)))
    assert {r.status_code for r in replies} <= {200, 201}, [r.text for r in replies]
    names = [item["name"] for item in up.client.keys()]
    assert sorted(n for n in names if n.startswith("of-")) == sorted(f"of-{n}" for n in range(1, 16, 2)), "once each"


def test_the_supervisors_death_leaves_no_process_two_seconds_later(up: Up) -> None:
    assert len(family(up.home.root)) >= 7
    killed = kill(up.process.pid)
    up.process.wait()
    while left := family(up.home.root):
        assert time.monotonic() - killed < 2 * load_factor(), [
            Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left
        ]
        time.sleep(0.02)


def _in_flight(up: Up) -> float:
    metrics = up.http.get("/metrics", headers={"authorization": f"Bearer {up.key}"}).text
    found = re.search(r'puna_in_flight\{endpoint="app"\} ([0-9.]+)', metrics)
    return float(found[1]) if found else -1


def _answers(up: Up) -> bool:
    try:
        return up.client.health()["status"] == "ok"
    except PunaError:
        return False
