"""Whoever of worker, guard and owner is killed, nothing of the tree is left two seconds later."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backends.replicas import FAMILY, Owner, is_alive, processes_with, wait_for, wait_until
from puna.backends.base import Launch, Phase
from puna.backends.local import LocalBackend
from puna.home import Home
from puna.process import guard
from puna.worker import protocol

pytestmark = pytest.mark.process
Make = Callable[..., Launch]
LIMIT_S = 2.0


def family(mark: str) -> str:
    return f"MARK = {mark!r}\n" + textwrap.dedent(FAMILY)


@pytest.fixture
def mark() -> str:
    """A number of seconds that no other `sleep` sleeps."""
    return f"{os.getpid()}{time.monotonic_ns() % 10**6}"


def ask(local: LocalBackend, **command: Any) -> dict[str, Any]:
    told = local._ask("r1", command)
    assert told is not None
    return told


def test_the_death_of_the_worker_takes_its_descendants_along(local: LocalBackend, launch: Make, mark: str) -> None:
    local.start(launch(source=family(mark)))
    seen = wait_for(local, Phase.READY)
    assert len(processes_with(mark)) == 3
    os.kill(seen.pid, signal.SIGKILL)
    wait_until(lambda: not processes_with(mark), LIMIT_S, "descendants live on")
    seen = wait_for(local, Phase.EXITED)
    assert seen.exit_code == -9 and "SIGKILL" in seen.reason


def test_the_death_of_the_guard_takes_everything_along(local: LocalBackend, launch: Make, mark: str) -> None:
    local.start(launch(source=family(mark)))
    seen = wait_for(local, Phase.READY)
    os.kill(ask(local, command="status")["pid"], signal.SIGKILL)
    wait_until(lambda: not processes_with(mark) and not is_alive(seen.pid), LIMIT_S, "something lives on")
    gone = wait_for(local, Phase.EXITED)
    assert gone.reason == "its guard was killed"
    local.forget("r1")
    assert local.list() == []


def test_a_worker_stuck_in_c_does_not_outlive_its_guard(local: LocalBackend, launch: Make, mark: str) -> None:
    # ctypes.PyDLL keeps the interpreter's lock while C sleeps: no thread of the worker can notice the guard's end.
    source = family(mark) + textwrap.dedent("""
        import ctypes, threading
        class InferlessPythonModel(InferlessPythonModel):
            def infer(self, inputs): ctypes.PyDLL(None).sleep(60)
            def initialize(self):
                super().initialize()
                threading.Timer(0.3, self.infer, [None]).start()
    """)
    local.start(launch(source=source))
    seen = wait_for(local, Phase.READY)
    guard_pid = ask(local, command="status")["pid"]
    time.sleep(0.5)
    os.kill(guard_pid, signal.SIGKILL)
    wait_for(local, Phase.EXITED, limit_s=LIMIT_S)
    assert not processes_with(mark) and not is_alive(seen.pid)


def test_the_death_of_the_owner_takes_everything_along(
    local: LocalBackend, launch: Make, owner: Owner, mark: str, home: Home
) -> None:
    local.start(launch(source=family(mark)))
    seen = wait_for(local, Phase.READY)
    guard = ask(local, command="status")["pid"]
    owner.die()
    wait_until(lambda: not processes_with(mark) and not is_alive(seen.pid), LIMIT_S, "something lives on")
    wait_until(lambda: not is_alive(guard), LIMIT_S, "the guard lives on")
    assert list(home.sockets.iterdir()) == []


def test_a_control_plane_killed_leaves_replicas_and_its_successor_finds_them(
    local: LocalBackend, launch: Make, owner: Owner, home: Home
) -> None:
    made = launch()
    code = f"""
        import os, signal
        from pathlib import Path
        from puna.backends.base import Launch
        from puna.backends.local import LocalBackend
        from puna.home import Home
        launch = Launch("r1", Path({sys.executable!r}), Path({str(made.app)!r}), Path({str(made.socket)!r}),
                        Path({str(made.log)!r}), {{}})
        LocalBackend(Home(Path({str(home.root)!r})), {owner.read}).start(launch)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    path = os.pathsep.join(p for p in sys.path if p)
    argv = [sys.executable, "-c", textwrap.dedent(code)]
    run = subprocess.run(argv, pass_fds=(owner.read,), env={**os.environ, "PYTHONPATH": path}, timeout=20)
    assert run.returncode == -signal.SIGKILL
    assert wait_for(local, Phase.READY).pid > 0


def test_an_owner_that_is_killed_is_noticed(launch: Make, home: Home, mark: str) -> None:
    made = launch(source=family(mark))
    code = f"""
        import time
        from pathlib import Path
        from puna.backends.base import Launch
        from puna.backends.local import LocalBackend
        from puna.home import Home
        launch = Launch("r1", Path({sys.executable!r}), Path({str(made.app)!r}), Path({str(made.socket)!r}),
                        Path({str(made.log)!r}), {{"PATH": {os.environ["PATH"]!r}}})
        LocalBackend(Home(Path({str(home.root)!r}))).start(launch)
        time.sleep(60)
    """
    path = os.pathsep.join(p for p in sys.path if p)
    argv = [sys.executable, "-c", textwrap.dedent(code)]
    process = subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": path})
    wait_until(lambda: len(processes_with(mark)) == 3, 10, "the replica never came up")
    process.kill()
    process.wait()
    wait_until(lambda: not processes_with(mark), LIMIT_S, "descendants live on")


def test_a_lease_that_is_not_renewed_ends_the_replica(local: LocalBackend, launch: Make, mark: str) -> None:
    local.start(launch(source=family(mark)))
    wait_for(local, Phase.READY)
    for _ in range(3):
        local.lease("r1", 0.5)
        time.sleep(0.3)
    assert wait_for(local, Phase.READY)
    seen = wait_for(local, Phase.EXITED, limit_s=LIMIT_S)
    assert "lease lapsed" in seen.reason and not processes_with(mark)


def test_a_stop_is_graceful_then_forced(local: LocalBackend, launch: Make) -> None:
    local.start(launch())
    wait_for(local, Phase.READY)
    local.stop("r1", 5)
    assert wait_for(local, Phase.EXITED).last_lines == ("up", "down")
    source = """
        import signal, time
        class InferlessPythonModel:
            def infer(self, inputs): return {}
            def finalize(self): time.sleep(60)
    """
    local.start(launch("r2", source))
    wait_for(local, Phase.READY, "r2")
    local.stop("r2", 0.3)
    seen = wait_for(local, Phase.EXITED, "r2", LIMIT_S)
    assert seen.exit_code == -9 and "had not ended within its grace" in seen.reason


def test_a_replica_that_starts_can_be_stopped(local: LocalBackend, launch: Make) -> None:
    local.start(launch(source="import time; time.sleep(60)"))
    time.sleep(0.2)
    local.stop("r1", 5)
    assert wait_for(local, Phase.EXITED, limit_s=LIMIT_S).reason == "stopped"


@pytest.mark.parametrize(
    ("source", "code", "reason", "line"),
    [
        ("x = undefined", 1, "import failed: NameError: name 'undefined' is not defined (app.py:1: x = undefined)", ""),
        ("import os; os.abort()", -6, "killed by SIGABRT", ""),
        ("import os; print('bye now', flush=True); os._exit(7)", 7, "ended with exit code 7", "bye now"),
        ("raise MemoryError('CUDA out of memory')", 1, "CUDA out of memory", "MemoryError: CUDA out of memory"),
    ],
)
def test_the_reason_of_a_death_is_told(
    local: LocalBackend, launch: Make, source: str, code: int, reason: str, line: str
) -> None:
    local.start(launch(source=source))
    seen = wait_for(local, Phase.EXITED)
    assert seen.exit_code == code and reason in seen.reason and line in "\n".join(seen.last_lines)


def test_a_python_that_is_not_there_is_told(local: LocalBackend, launch: Make) -> None:
    local.start(launch(python=Path("/nowhere/python")))
    seen = wait_for(local, Phase.EXITED)
    assert seen.exit_code == 127 and "No such file or directory: '/nowhere/python'" in seen.reason


def test_the_app_sees_the_environment_it_was_given_and_nothing_else(local: LocalBackend, launch: Make) -> None:
    source = """
        import json, os
        class InferlessPythonModel:
            def initialize(self):
                paths = ["/proc/self/fd/" + fd for fd in os.listdir("/proc/self/fd") if int(fd) > 2]
                fds = [os.readlink(path) for path in paths if os.path.exists(path)]
                print(json.dumps([dict(os.environ), os.getcwd(), fds]))
            def infer(self, inputs): return {}
    """
    made = launch(source=source, env={"TOKEN": "secret"}, gpu="1")
    local.start(made)
    wait_for(local, Phase.READY)
    env, cwd, fds = json.loads(made.log.read_text().partition(" F ")[2])
    assert {k: v for k, v in env.items() if k != "LC_CTYPE"} == {
        "TOKEN": "secret", "CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"
    }  # fmt: skip
    assert cwd == str(made.app) and len([fd for fd in fds if fd.startswith("pipe:")]) == 1
    status = Path(f"/proc/{ask(local, command='status')['pid']}/cmdline").read_bytes()
    assert b"secret" not in status


def test_a_second_stop_may_shorten_the_grace_and_never_prolongs_it(local: LocalBackend, launch: Make) -> None:
    source = """
        import time
        class InferlessPythonModel:
            def infer(self, inputs): return {}
            def finalize(self): time.sleep(60)
    """
    for name, graces in (("r1", (0.5, 30.0)), ("r2", (30.0, 0.5))):
        local.start(launch(name, source))
        wait_for(local, Phase.READY, name)
        for grace_s in graces:
            local.stop(name, grace_s)
        assert "had not ended within its grace" in wait_for(local, Phase.EXITED, name, LIMIT_S).reason


def test_frames_are_heard_as_soon_as_they_are_whole_also_those_without_a_payload() -> None:
    heard: list[tuple[int, bytes]] = []
    mine, workers = socket.socketpair()
    with mine, workers:
        mine.setblocking(False)
        listening = object.__new__(guard.Guard)
        listening.connection, listening.received, listening.liveness = mine, bytearray(), None
        listening._handle = lambda kind, payload: heard.append((kind, payload))  # type: ignore[method-assign]
        pong, ready = protocol.encode(protocol.PONG, 0, b""), protocol.encode(protocol.READY, 0, b"{}")
        for piece in (pong, ready[:5], ready[5:13], ready[13:] + pong):
            workers.sendall(piece)
            listening._read_connection()
        assert heard == [(protocol.PONG, b""), (protocol.READY, b"{}"), (protocol.PONG, b"")]


def test_the_last_lines_of_a_log_come_without_stamps_and_from_where_they_are_asked(tmp_path: Path) -> None:
    log, stamp = tmp_path / "log", "2026-11-25T12:00:00.000000Z stdout F "
    log.write_text(f"one\n{stamp}two\nthree\n")
    assert guard.tail(str(log)) == ["one", "two", "three"] and guard.tail(str(log), 4) == ["two", "three"]
    log.write_text("".join(f"{number}\n" for number in range(100)))
    assert guard.tail(str(log)) == [str(number) for number in range(80, 100)]
    assert guard.tail(str(tmp_path / "none")) == []
