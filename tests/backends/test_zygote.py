"""Replicas forked from a zygote: like fresh ones in all but their birth, and none the worse when it dies."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backends.replicas import FAMILY, Owner, is_alive, processes_with, wait_for, wait_until
from puna.backends import guards, zygotes
from puna.backends.base import Launch, Phase, Zygote
from puna.backends.local import LocalBackend
from puna.home import Home
from puna.worker import protocol
from worker.conftest import MINORS, Client, find_python

pytestmark = pytest.mark.process
Make = Callable[..., Launch]
LIMIT_S = 2.0
NAME = "zygote-1"
# It tells what differs between a fork and a fresh start, and what must not.
APP = """
    import os, random
    os.environ["SET_BEFORE"] = "by the app"
    import imported_once
    class InferlessPythonModel:
        def initialize(self):
            print("up in", os.getpid())
        def infer(self, inputs):
            return {
                "said": inputs["prompt"], "imported_in": str(imported_once.PID), "saw": imported_once.SAW,
                "pid": str(os.getpid()), "gpu": os.environ["CUDA_VISIBLE_DEVICES"], "cwd": os.getcwd(),
                "random": str(random.random()), "mine": os.environ["MINE"], "parent": str(os.getppid()),
            }
"""


@pytest.fixture
def warm(local: LocalBackend, launch: Make, tmp_path: Path) -> Callable[..., Make]:
    """`warm(source, python=...)` begins a zygote and gives a `launch` whose replicas may be forked from it."""
    library = tmp_path / "library"
    library.mkdir()
    (library / "imported_once.py").write_text("import os\nPID, SAW = os.getpid(), os.environ.get('SET_BEFORE', '')\n")
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(library), "MINE": "secret"}

    def begin(source: str = APP, python: str = sys.executable) -> Make:
        def make(replica_id: str, **fields: Any) -> Launch:
            return launch(replica_id, source, **{"env": env, "python": Path(python), "warm": NAME, **fields})

        local.warm(make(NAME))
        return make

    return begin


def seen(local: LocalBackend) -> Zygote:
    (one,) = local.zygotes()
    return one


def ready(local: LocalBackend) -> Zygote:
    wait_until(lambda: seen(local).phase is not Phase.STARTING, 20, "the zygote neither ready nor refused")
    assert seen(local).phase is Phase.READY, seen(local)
    return seen(local)


def test_a_zygote_that_is_stopped_is_ended_and_its_forks_go_on(local: LocalBackend, warm: Callable[..., Make]) -> None:
    make = warm()
    zygote = ready(local)
    local.start(make("r1", inference_time_s=1))
    worker = wait_for(local, Phase.READY).pid
    os.kill(zygote.pid, signal.SIGSTOP)
    wait_until(lambda: seen(local).phase is Phase.EXITED, 20, "the zygote was not ended")
    assert "did not answer" in seen(local).reason
    assert wait_for(local, Phase.READY).pid == worker and wait_for(local, Phase.READY).born == "zygote"


def test_a_fork_that_is_stopped_is_ended(local: LocalBackend, warm: Callable[..., Make]) -> None:
    make = warm()
    ready(local)
    local.start(make("r1", inference_time_s=1))
    os.kill(wait_for(local, Phase.READY).pid, signal.SIGSTOP)
    assert "did not answer" in wait_for(local, Phase.EXITED, limit_s=20).reason


def test_a_fork_whose_owner_was_killed_while_it_asked_is_there_for_the_next_one(
    local: LocalBackend, warm: Callable[..., Make], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: socket.socket) -> str:
        raise ConnectionResetError

    make = warm()
    ready(local)
    monkeypatch.setattr(zygotes, "_answer", killed)
    monkeypatch.setattr(guards, "start", lambda _: None)  # it lives no more
    local.start(make("r1"))
    assert wait_for(local, Phase.READY).born == "zygote"


def guard_pid(path: Path) -> int:
    told = guards.ask(path, {"command": "status"})
    assert told is not None
    return int(told["pid"])


def ask(home: Home, replica_id: str, text: str = "hi") -> dict[str, Any]:
    client = Client(str(home.replica_socket(replica_id)))
    if client.until(protocol.HELLO)["state"] != "ready":
        client.until(protocol.READY)
    status, body = client.call({"prompt": text})
    client.socket.close()
    assert status == 200, body
    return {output["name"]: output["data"][0] for output in body["outputs"]}


@pytest.mark.parametrize("minor", ["running", *MINORS])
def test_a_fork_is_a_replica_whose_imports_were_done_before(
    local: LocalBackend, warm: Callable[..., Make], home: Home, minor: str
) -> None:
    python = sys.executable if minor == "running" else find_python(minor)
    if not python:
        pytest.skip(f"no CPython {minor} here; PUNA_TEST_PYTHONS may name one")
    make = warm(python=python)
    zygote = ready(local)
    assert zygote.name == NAME and zygote.memory_bytes > 0
    told = {}
    for replica_id, gpu in (("r1", ""), ("r2", "3")):
        local.start(make(replica_id, gpu=gpu))
        replica = wait_for(local, Phase.READY, replica_id)
        told[replica_id] = ask(home, replica_id, replica_id)
        assert replica.born == "zygote" and told[replica_id]["pid"] == str(replica.pid)
        assert told[replica_id]["said"] == replica_id and told[replica_id]["gpu"] == gpu
        assert told[replica_id]["cwd"] == str(home.workspaces / replica_id)
        assert told[replica_id]["imported_in"] == str(zygote.pid)
        assert told[replica_id]["saw"] == "by the app" and told[replica_id]["mine"] == "secret"
        assert f"up in {replica.pid}" in (home.logs / f"{replica_id}.log").read_text()
        assert told[replica_id]["parent"] == str(guard_pid(home.guard_socket(replica_id)))
    assert told["r1"]["random"] != told["r2"]["random"]


def test_without_a_zygote_of_that_name_a_start_is_a_fresh_one(
    local: LocalBackend, warm: Callable[..., Make], home: Home
) -> None:
    make = warm()
    ready(local)
    local.start(make("r1", warm="zygote-2"))
    assert wait_for(local, Phase.READY).born == "spawn"
    assert ask(home, "r1")["imported_in"] == ask(home, "r1")["pid"]


def test_a_fork_stops_gracefully_and_is_forgotten_like_any_other(
    local: LocalBackend, warm: Callable[..., Make], home: Home
) -> None:
    make = warm()
    zygote = ready(local)
    for _ in range(2):
        local.start(make("r1"))
        wait_for(local, Phase.READY)
        local.stop("r1", 5)
        gone = wait_for(local, Phase.EXITED)
        assert gone.reason == "stopped" and gone.exit_code == 0
        local.forget("r1")
        assert local.list() == []
    assert seen(local).pid == zygote.pid


def test_the_same_id_twice_starts_one_fork(local: LocalBackend, warm: Callable[..., Make]) -> None:
    make = warm()
    ready(local)
    local.start(make("r1"))
    before = wait_for(local, Phase.READY)
    local.start(make("r1"))
    assert wait_for(local, Phase.READY).pid == before.pid
    assert len(local.list()) == 1


# ---- deaths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["zygote", "its guard"])
def test_a_zygotes_death_touches_no_replica_and_the_next_start_is_fresh(
    local: LocalBackend, warm: Callable[..., Make], home: Home, who: str
) -> None:
    make = warm()
    zygote = ready(local)
    local.start(make("r1"))
    replica = wait_for(local, Phase.READY)
    os.kill(zygote.pid if who == "zygote" else guard_pid(home.zygote_guard_socket(NAME)), signal.SIGKILL)
    wait_until(lambda: not is_alive(zygote.pid), LIMIT_S, "the zygote lives on")
    for _ in range(5):
        assert ask(home, "r1")["pid"] == str(replica.pid)
    wait_until(lambda: seen(local).phase is Phase.EXITED, LIMIT_S, "nobody noticed")
    assert ("SIGKILL" in seen(local).reason) == (who == "zygote") and not seen(local).refused
    local.start(make("r2"))
    assert wait_for(local, Phase.READY, "r2").born == "spawn"
    local.cool(NAME)
    assert local.zygotes() == () and ask(home, "r1")["pid"] == str(replica.pid)
    local.stop("r1", 5)
    assert wait_for(local, Phase.EXITED).exit_code == 0


def test_a_cooled_zygote_leaves_its_replicas_and_may_be_begun_again(
    local: LocalBackend, warm: Callable[..., Make], home: Home
) -> None:
    make = warm()
    first = ready(local)
    local.start(make("r1"))
    replica = wait_for(local, Phase.READY)
    local.cool(NAME)
    assert not is_alive(first.pid) and local.zygotes() == ()
    assert ask(home, "r1")["pid"] == str(replica.pid)
    assert not (home.workspaces / NAME).exists()

    def is_back() -> bool:
        local.warm(make(NAME))
        return bool(local.zygotes())

    wait_until(is_back, LIMIT_S, "its name is not free")
    assert ready(local).pid != first.pid


@pytest.mark.parametrize("who", ["worker", "guard"])
def test_a_forks_death_takes_its_descendants_along_and_leaves_the_zygote(
    local: LocalBackend, warm: Callable[..., Make], home: Home, who: str
) -> None:
    mark = f"{os.getpid()}{time.monotonic_ns() % 10**6}"
    make = warm(f"\n    MARK = {mark!r}\n" + FAMILY.lstrip("\n"))
    zygote = ready(local)
    local.start(make("r1"))
    replica = wait_for(local, Phase.READY)
    assert len(processes_with(mark)) == 3
    os.kill(replica.pid if who == "worker" else guard_pid(home.guard_socket("r1")), signal.SIGKILL)
    wait_until(lambda: not processes_with(mark) and not is_alive(replica.pid), LIMIT_S, "something lives on")
    gone = wait_for(local, Phase.EXITED)
    assert gone.exit_code == -9 if who == "worker" else gone.reason == "its guard was killed"
    local.forget("r1")
    local.start(make("r2"))
    assert wait_for(local, Phase.READY, "r2").born == "zygote" and seen(local).pid == zygote.pid


def test_a_fork_stuck_in_c_does_not_outlive_its_guard(
    local: LocalBackend, warm: Callable[..., Make], home: Home
) -> None:
    # ctypes.PyDLL keeps the interpreter's lock while C sleeps: no thread of the worker can notice the guard's end.
    make = warm("""
        import ctypes, threading
        class InferlessPythonModel:
            def stick(self): ctypes.PyDLL(None).sleep(60)
            def initialize(self): threading.Timer(0.3, self.stick).start()
            def infer(self, inputs): return {}
    """)
    ready(local)
    local.start(make("r1"))
    replica = wait_for(local, Phase.READY)
    time.sleep(0.5)
    os.kill(guard_pid(home.guard_socket("r1")), signal.SIGKILL)
    # The zygote does it, of which the dead guard was a child: nobody has asked the backend yet.
    wait_until(lambda: not is_alive(replica.pid), LIMIT_S, "the worker lives on")


def test_the_death_of_the_owner_takes_everything_along(
    local: LocalBackend, warm: Callable[..., Make], owner: Owner, home: Home
) -> None:
    make = warm()
    zygote = ready(local)
    pids = [zygote.pid, guard_pid(home.zygote_guard_socket(NAME))]
    for replica_id in ("r1", "r2"):
        local.start(make(replica_id))
        pids += [wait_for(local, Phase.READY, replica_id).pid, guard_pid(home.guard_socket(replica_id))]
    owner.die()
    wait_until(lambda: not any(map(is_alive, pids)), LIMIT_S, "something lives on")
    assert list(home.sockets.iterdir()) == []


# ---- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_refusal_is_told_with_its_reason(local: LocalBackend, warm: Callable[..., Make], tmp_path: Path) -> None:
    (tmp_path / "library" / "busy.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True, name='busy').start()\n"
    )
    make = warm("import busy\n" + "class InferlessPythonModel:\n    def infer(self, inputs): return {'x': 'y'}\n")
    wait_until(lambda: seen(local).phase is Phase.EXITED, 10, "no refusal")
    assert seen(local).refused and "an import started a thread (busy)" in seen(local).reason
    local.start(make("r1"))
    assert wait_for(local, Phase.READY).born == "spawn"


def test_a_zygote_that_hangs_holds_no_start_up_and_its_late_fork_finds_the_place_taken(
    local: LocalBackend, warm: Callable[..., Make], home: Home
) -> None:
    make = warm()
    zygote = ready(local)
    os.kill(zygote.pid, signal.SIGSTOP)
    try:
        local.start(make("r1"))
        replica = wait_for(local, Phase.READY)
        assert replica.born == "spawn"
    finally:
        os.kill(zygote.pid, signal.SIGCONT)
    local.start(make("r2"))  # served after the late fork of r1
    assert wait_for(local, Phase.READY, "r2").born == "zygote"
    assert ask(home, "r1")["pid"] == str(replica.pid)
    assert wait_for(local, Phase.READY, "r1").pid == replica.pid


def test_working_copies_of_zygotes_that_ended_with_their_owner_are_cleared_away(
    local: LocalBackend, warm: Callable[..., Make], home: Home
) -> None:
    left = home.workspaces / "zygote-of-yesterday"
    left.mkdir()
    warm()
    ready(local)
    assert not left.exists() and (home.workspaces / NAME / "app.py").exists()


def test_imports_that_take_too_long_are_ended(local: LocalBackend, launch: Make, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\n")
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}
    local.warm(launch(NAME, "import slow", env=env, warm=NAME, startup_timeout_s=0.5))
    wait_until(lambda: seen(local).phase is Phase.EXITED, 10, "it goes on")
    assert seen(local).reason == "its imports did not end within 0.5 s" and not seen(local).refused
