"""Folders of a running `puna up` are deleted under it, as a sweep of /tmp or a person in a hurry does: it goes on."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stories.conftest import Callers, Up, family, standing, write_app

pytestmark = pytest.mark.process

WITHIN_S = 15.0


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with standing() as up:
        up.deploy(write_app(tmp_path_factory.mktemp("deleted") / "app"), min_replica=1)
        yield up


def answers(up: Up) -> bool:
    try:
        return up.client.health()["status"] == "ok" and up.call().status_code == 200
    except Exception:  # noqa: BLE001 - not yet
        return False


def guards(up: Up) -> list[int]:
    return up.pids("process/guard.py")


def test_without_the_folder_of_sockets_calls_go_on_and_replicas_can_be_reached_and_ended_again(up: Up) -> None:
    workers, guarded = up.worker_pids(), guards(up)
    with Callers(up) as callers:
        callers.more(20)
        shutil.rmtree(up.home.root / "sockets")
        callers.more(40)
        up.until(lambda: answers(up), WITHIN_S, "the control plane by its socket")
        up.until(lambda: len(list(up.home.sockets.glob("*.guard"))) >= 1, WITHIN_S, "the guard by its socket")
        up.until(lambda: len(list(up.home.sockets.glob("app-*.sock"))) >= 1, WITHIN_S, "the worker by its socket")
        os.kill(up.pids("puna.server gateway")[0], signal.SIGKILL)  # its successor has to find the worker by name
        callers.more(40)
    assert callers.failed() == [] and callers.longest_s < WITHIN_S
    assert up.worker_pids() == workers, "the replica was never lost"
    assert [pid for pid in guarded if pid in guards(up)], "nor was its guard"
    os.kill(workers[0], signal.SIGKILL)
    up.until(lambda: up.worker_pids() and up.worker_pids() != workers, WITHIN_S, "another replica")
    assert up.call().status_code == 200
    assert "was deleted; the control plane listens there again" in (up.home.logs / "control.log").read_text()


@pytest.mark.parametrize("kind", ["control.sock", "app-*.guard", "app-*.sock"])
def test_one_socket_that_is_deleted_or_replaced_is_there_again(up: Up, kind: str) -> None:
    workers = up.worker_pids()
    for is_replaced in (False, True):
        (path,) = up.home.sockets.glob(kind)
        path.unlink()
        if is_replaced:
            path.write_text("not a socket")
        up.until(lambda p=path: _listens(p), WITHIN_S, f"{kind} again")  # type: ignore[misc]
        up.until(lambda: answers(up), WITHIN_S, "an answer")
        assert is_replaced or up.worker_pids() == workers  # a guard that cannot be asked is taken for dead


def test_without_logs_everything_goes_on_and_new_lines_are_to_be_read(up: Up, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", "v2")
    said = (
        (app / "app.py")
        .read_text()
        .replace("        return", "        print('line of', inputs['prompt'])\n        return")
    )
    (app / "app.py").write_text(said)
    up.deploy(app, min_replica=1)
    for _ in range(2):
        shutil.rmtree(up.home.root / "logs")
        assert up.call("first").status_code == 200
        up.until(lambda: _said(up, "later"), WITHIN_S, "a line in the log")
        up.until(lambda: (up.home.logs / "control.log").exists(), WITHIN_S, "the control plane's log")
        (worker,) = up.worker_pids()
        os.kill(worker, signal.SIGKILL)
        up.until(lambda w=worker: up.worker_pids() not in ([], [w]), WITHIN_S, "another replica")  # type: ignore[misc]
    for role in ("puna.server gateway", "puna.server control"):
        shutil.rmtree(up.home.root / "logs")
        (pid,) = up.pids(role)
        os.kill(pid, signal.SIGKILL)
        up.until(lambda r=role, p=pid: up.pids(r) not in ([], [p]), WITHIN_S, f"another {role}")  # type: ignore[misc]
        up.until(lambda: answers(up), WITHIN_S, "an answer")
    assert up.puna("logs", "app").returncode == 0
    up.deploy(write_app(tmp_path / "again", "v3"), min_replica=1)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        return client.connect_ex(str(path)) == 0


def _said(up: Up, text: str) -> bool:
    assert up.call(text).status_code == 200
    return f"line of {text}" in up.puna("logs", "app").stdout


def test_nothing_is_left_when_sockets_go_and_everything_ends_at_once() -> None:
    with standing() as up:
        folder = up.home.sockets
        up.deploy(write_app(up.home.root / "app"), min_replica=2, max_replica=2)
        shutil.rmtree(folder)
        up.client.close()
        up.process.send_signal(signal.SIGTERM)
        up.process.wait(60)
        deadline = time.monotonic() + 5
        while family(up.home.root) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert family(up.home.root) == []
