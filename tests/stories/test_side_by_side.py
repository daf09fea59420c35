"""Hosts that never answer, apps that never start, a control plane that is killed: others' calls and deploys go on."""

from __future__ import annotations

import gc
import os
import random
import signal
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from puna.errors import PunaError
from stories.conftest import Up, write_app

pytestmark = pytest.mark.process
CPU = {"gpu_type": "cpu"}
UNENDED = ("queued", "building", "built", "starting")


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a host that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        held: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    held.append(listener.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    for connection in held:
        connection.close()


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    with tempfile.TemporaryDirectory(prefix="puna-") as root:
        running = Up(Path(root), env={"PUNA_GIT_HOSTS": "127.0.0.1", "PUNA_BUILD_SLOTS": "2"})
        yield running
        running.down()


def took(call: Callable[[], object], times: int) -> list[float]:
    found = []
    for _ in range(times):
        began = time.monotonic()
        call()
        found.append((time.monotonic() - began) * 1000)
    return sorted(found)


def test_hosts_and_apps_that_hang_hold_up_nobody_else(up: Up, silent: int, tmp_path: Path) -> None:
    hanging = write_app(tmp_path / "hanging", initialize_s=3600)
    builds = [up.client.deploy(hanging, f"hanging-{n}", settings=CPU)["build_id"] for n in range(4)]

    def trying() -> list[str]:
        steps = [step for build_id in builds for step in up.client.build(build_id)["steps"]]
        return [step["state"] for step in steps if step["name"] == "validate"]

    up.until(lambda: trying() == ["running"] * 4, 120, "four apps that hang")
    limited = str(up.client.create_key(["deploy"], endpoints=["hanging-0"])["key"])
    headers, body = {"authorization": f"Bearer {limited}"}, {"url": f"http://127.0.0.1:{silent}/a.git"}
    stop = threading.Event()

    def ask(_: int) -> None:
        while not stop.is_set():
            up.http.post("/api/v1/sources/from-git", json=body, headers=headers, timeout=90)

    control = httpx.Client(
        transport=httpx.HTTPTransport(uds=str(up.home.control_socket), verify=False), base_url="http://x", timeout=60
    )
    report = {"gateway": "g0", "at": 0.0, "endpoints": {}}

    def revoke() -> None:
        up.client.delete_key(made.pop())

    with ThreadPoolExecutor(60) as pool:
        asking = [pool.submit(ask, number) for number in range(60)]
        try:
            up.until(lambda: len(_children(up)) >= 3, 60, "fetches that hang")
            made = [str(up.client.create_key(["infer"])["id"]) for _ in range(30)]
            calls: dict[str, Callable[[], Any]] = {
                "GET /endpoints": lambda: up.client.endpoints(),
                "DELETE /keys/ID": revoke,
                "POST /internal/load": lambda: control.post("/internal/load", json=report).raise_for_status(),
            }
            figures = {name: took(call, 30) for name, call in calls.items()}
            for name, times in figures.items():
                print(f"{name}: median {statistics.median(times):.1f} ms, longest of {len(times)} {times[-1]:.1f} ms")
            # 100 ms on a machine that has nothing else to do; it was 20 s and more.
            assert all(statistics.median(times) < 1000 and times[-1] < 5000 for times in figures.values()), figures
            began = time.monotonic()
            up.deploy(write_app(tmp_path / "app"), min_replica=1)
            print(f"another endpoint deployed in {time.monotonic() - began:.1f} s meanwhile")
            assert up.call().status_code == 200 and trying() == ["running"] * 4
            again = up.client.deploy(write_app(tmp_path / "next", "v2"), "hanging-0", settings=CPU)
            assert up.client.build(again["build_id"])["status"] == "queued", "its own turn comes when it is cancelled"
            up.client.cancel_build(builds[0])
            up.client.wait_for_build(again["build_id"], 120)
        finally:
            stop.set()
            for build_id in builds[1:]:
                up.client.cancel_build(build_id)
            for one in asking:
                one.cancel()
            os.kill(up.pids("puna.server control")[0], signal.SIGKILL)  # which ends what still hangs in it
    control.close()


def _children(up: Up) -> list[int]:
    return up.pids("ls-remote") + up.pids("fetch")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # httpcore leaves a refused socket open
def test_a_control_plane_that_is_killed_at_random_moments_leaves_nothing_half_done(up: Up, tmp_path: Path) -> None:
    rng, kept = random.Random(11), {}
    for number in range(6):
        name = f"app-{number % 2}"
        folder = write_app(tmp_path / f"v{number}", f"v{number}")
        try:
            kept[name] = up.client.deploy(folder, name, settings={**CPU, "min_replica": 1}), folder
        except (PunaError, httpx.TransportError):
            pass  # it was killed while it was asked: whoever asked knows nothing
        time.sleep(rng.random() * 1.5)
        _kill_control_plane(up)

    def states() -> list[tuple[str, int, str]]:
        found = [(e["name"], r) for e in up.client.endpoints() for r in up.client.endpoint(e["name"])["revisions"]]
        return [(name, r["number"], r["state"]) for name, r in found]

    up.until(lambda: not any(state in UNENDED for _, _, state in states()), 180, "the end of each")
    assert all(build["status"] not in ("queued", "running") for build in up.client.builds())
    for name, (_, folder) in kept.items():
        again = up.client.deploy(folder, name, settings={**CPU, "min_replica": 1})
        up.client.wait_for_endpoint(name, again["revision"], 120)
        assert up.call(name=name).status_code == 200
    gc.collect()  # the refused sockets, in this test and no later one


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # httpcore leaves a refused socket open
def test_whoever_asks_while_the_control_plane_starts_again_waits_for_it(up: Up, tmp_path: Path) -> None:
    up.deploy(write_app(tmp_path / "app"), min_replica=1)
    for _ in range(3):
        os.kill(up.pids("puna.server control")[0], signal.SIGKILL)
        assert [endpoint["name"] for endpoint in up.client.endpoints()] == ["app"]
        shown = up.puna("ps", "--json")
        assert shown.returncode == 0 and '"app"' in shown.stdout, shown.stdout + shown.stderr
    gc.collect()  # the refused sockets, in this test and no later one


def _kill_control_plane(up: Up) -> None:
    """SIGKILL; the supervisor's next one answers when this returns."""
    up.replace("puna.server control")
    up.until(lambda: _answers(up), 60, "an answer of the next control plane")


def _answers(up: Up) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(up.home.control_socket))
        except OSError:
            return False
        return True
