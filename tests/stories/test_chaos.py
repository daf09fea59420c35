"""SIGKILL again and again, for each kind of process, under twenty callers; PUNA_CHAOS_KILLS says how often (2).

No request may be lost but replies that had begun. A client whose own connection went down with its gateway asks
again, once. By hand: PUNA_CHAOS_KILLS=20 python -m pytest -s tests/stories/test_chaos.py
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from backends.replicas import is_alive
from load import load_factor
from puna.errors import PunaError
from stories.conftest import Up, family, write_app

pytestmark = pytest.mark.process

KILLS = int(os.environ.get("PUNA_CHAOS_KILLS", "2"))
CALLERS = 20
BREATH_S = 0.5
"""Between a recovery and the next kill: callers are at work again, nothing else is assumed."""
PATIENCE_S = 90.0
"""For a recovery: a replica that dies again and again starts after up to 30 s of back-off. The real time is printed."""


class Crowd:
    """Threads that call all the time, each over a connection that it keeps, as clients do."""

    def __init__(self, up: Up) -> None:
        self.up, self.url = up, urlsplit(up.url)
        self.answered, self.wrong, self.repeats = 0, list[str](), list[int]()
        self.longest_s = 0.0
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(CALLERS)]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        self.more(CALLERS)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int) -> None:
        """Wait for so many more answers."""
        target = self.answered + count
        self.up.until(lambda: self.answered >= target, 60, f"{count} more answers")

    def _call(self, number: int) -> None:
        headers = {"authorization": f"Bearer {self.up.key}", "content-type": "application/json"}
        connection = self._connect()
        asked = 0
        while not self._stop.is_set():
            asked += 1
            text, began, repeats = f"{number}.{asked}", time.monotonic(), 0
            tensor = {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": [text]}
            body = json.dumps({"inputs": [tensor]})
            while True:
                try:
                    connection.request("POST", "/v2/models/app/infer", body, headers)
                    reply = connection.getresponse()
                    status, answer = reply.status, reply.read().decode()
                    break
                except (OSError, http.client.HTTPException):
                    connection.close()
                    connection, repeats = self._connect(), repeats + 1
            with self._lock:
                self.answered += 1
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                if repeats:
                    self.repeats.append(repeats)
                if status != 200 or f":{text}" not in answer:
                    self.wrong.append(f"{status} {answer[:300]}")
        connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(str(self.url.hostname), self.url.port, timeout=60)


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    """Two gateways and an app on two replicas; the last story kills it."""
    with tempfile.TemporaryDirectory(prefix="puna-") as root:
        running = Up(Path(root), gateways=2)
        running.deploy(write_app(Path(root) / "an-app", infer_s=0.01), min_replica=2, max_replica=2)
        running.until(lambda: len(running.worker_pids()) == 2, 30, "two replicas")
        yield running
        running.client.close()
        running.process.kill()
        running.process.wait()


def chaos(up: Up, victims: Callable[[], list[int]], whole: Callable[[], bool]) -> Crowd:
    """Kill the first victim, wait until everything is whole again, and so on, under load; nothing may be lost."""
    up.until(whole, 30, "a whole start")
    recoveries = []
    with Crowd(up) as crowd:
        for _ in range(KILLS):
            crowd.more(CALLERS)
            up.until(victims, PATIENCE_S, "a victim")
            victim = victims()[0]
            os.kill(victim, signal.SIGKILL)
            began = time.monotonic()
            up.until(lambda victim=victim: not is_alive(victim) and whole(), PATIENCE_S, "the recovery")
            recoveries.append(time.monotonic() - began)
            time.sleep(BREATH_S)
        crowd.more(CALLERS)
    print(
        f"\n{KILLS} kills, {crowd.answered} answers, {len(crowd.wrong)} wrong, {len(crowd.repeats)} asked again; "
        f"recovery {min(recoveries):.2f} to {max(recoveries):.2f} s, longest answer {crowd.longest_s:.2f} s"
    )
    assert crowd.wrong == []
    return crowd


def test_killed_workers(up: Up) -> None:
    assert chaos(up, up.worker_pids, lambda: _both(up)).repeats == []


def test_killed_guards(up: Up) -> None:
    def guards() -> list[int]:
        return [_parent(pid) for pid in up.worker_pids()]

    assert chaos(up, guards, lambda: _both(up)).repeats == []


def test_killed_gateways_break_their_own_connections_only(up: Up) -> None:
    crowd = chaos(up, lambda: up.pids("puna.server gateway"), lambda: len(_answering(up)) == 2)
    assert len(crowd.repeats) <= KILLS * CALLERS and set(crowd.repeats) <= {1}, "once is enough: the other one lives"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # httpx, when refused, leaves a socket
def test_killed_control_planes_go_unnoticed(up: Up) -> None:
    up.until(lambda: _both(up), PATIENCE_S, "two replicas")
    before = sorted(up.worker_pids())

    def whole() -> bool:
        return _control_answers(up) and sorted(up.worker_pids()) == before

    assert chaos(up, lambda: up.pids("puna.server control"), whole).repeats == []


def test_killed_zygotes_go_unnoticed(up: Up) -> None:
    up.until(lambda: up.pids(" zygote "), 30, "the zygote")
    assert chaos(up, lambda: up.pids(" zygote "), lambda: _both(up)).repeats == []


def test_after_the_supervisors_death_nothing_is_left(up: Up) -> None:
    with Crowd(up) as crowd:
        crowd.more(CALLERS)
    assert len(family(up.home.root)) >= 7
    up.process.kill()
    began = time.monotonic()
    up.process.wait()
    while left := family(up.home.root):
        assert time.monotonic() - began < 2 * load_factor(), [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]
        time.sleep(0.02)


def _both(up: Up) -> bool:
    """Two replicas are ready, guard and worker, and not only as the control plane remembers them."""
    pids = up.worker_pids()
    return len(pids) == 2 and all(is_alive(pid) and _is_guarded(pid) for pid in pids)


def _is_guarded(pid: int) -> bool:
    """Its guard lives: a worker outlives it by some milliseconds, as a child of somebody else's."""
    try:
        return b"guard" in Path(f"/proc/{_parent(pid)}/cmdline").read_bytes()
    except OSError:
        return False


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _answering(up: Up) -> list[int]:
    """Gateways that let clients in, which they do once they know the replicas."""
    url = urlsplit(up.url)
    knocks = [socket.create_connection((str(url.hostname), url.port), 5) for _ in range(4)]
    time.sleep(0.01)
    try:
        return [pid for pid in up.pids("puna.server gateway") if _connections(pid)]
    finally:
        for knock in knocks:
            knock.close()


def _connections(pid: int) -> int:
    """Established TCP connections that this process holds."""
    held = set()
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                held.add(os.readlink(link))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(f"socket:[{row[9]}]" in held for row in rows if row[3] == "01")


def _control_answers(up: Up) -> bool:
    try:
        return bool(up.client.health()["status"] == "ok")
    except PunaError:
        return False
