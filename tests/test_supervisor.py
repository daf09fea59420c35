"""The supervisor with children of a few lines: addresses, locks, restarts, ends."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.replicas import is_alive
from load import load_factor
from puna.errors import ConflictError, MachineError, UsageError
from puna.home import Home
from puna.instance import sole
from puna.supervisor import listen

SUPERVISE = """
import os, sys, time
from pathlib import Path
from puna.supervisor import Spec, Supervisor
from puna.errors import PunaError

class Progress:
    def stage(self, name): pass
    def advance(self, done, total, **figures): pass
    def note(self, text): print(text, flush=True)

folder = Path(sys.argv[1])
reader, writer = os.pipe()
code = (folder / "child.py").read_text()
names = sys.argv[2:]
specs = [
    Spec(
        n, (sys.executable, "-c", code, n, str(reader), str(folder)), folder / "log", dict(os.environ), (reader,), 5,
        beats="BEATS" in os.environ,
    )
    for n in names
]
try:
    supervisor = Supervisor(specs, Progress())
    supervisor.is_up = "BEATS" in os.environ
    supervisor.run(lambda: None, lambda: print("no more callers", time.process_time(), flush=True))
    print("ended", time.process_time(), flush=True)
except PunaError as error:
    print("ERROR", error.message, "|", error.detail, flush=True)
"""

# Says that it lives; ends when its owner does, or on SIGTERM.
CHILD = """
import os, signal, sys
from pathlib import Path
name, reader, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
def end(*_):
    with open(folder / "ended", "a") as file: file.write(name + "\\n")
    os._exit(0)
signal.signal(signal.SIGTERM, end)
with open(folder / "pids", "a") as file: file.write(f"{name} {os.getpid()}\\n")
os.read(reader, 1)
"""


# The same with a heart that beats.
BEATING = (
    """
import os, sys, threading, time
from puna.process.liveness import HeartbeatSender
heart = HeartbeatSender(int(sys.argv[5]))
def beat_on():
    while True:
        ill, path = "", sys.argv[3] + "/ill " + sys.argv[1]
        if os.path.exists(path):
            ill = open(path).read()
            os.unlink(path)
        heart.beat(ill)
        time.sleep(0.3)
threading.Thread(target=beat_on, daemon=True).start()
"""
    + CHILD
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def supervise(folder: Path, child: str, *names: str) -> subprocess.Popen[str]:
    (folder / "child.py").write_text(textwrap.dedent(child))
    command = [sys.executable, "-c", SUPERVISE, str(folder), *names]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def family(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    process = supervise(tmp_path, CHILD, "control plane", "gateway 0", "gateway 1")
    yield process, tmp_path
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def pids(folder: Path, count: int) -> dict[str, int]:
    """The latest process of each child, once `count` have begun in all."""
    deadline = time.monotonic() + 10
    while True:
        path = folder / "pids"
        lines = path.read_text().splitlines() if path.exists() else []
        if len(lines) >= count:
            return {name: int(pid) for name, _, pid in (line.rpartition(" ") for line in lines)}
        assert time.monotonic() < deadline, lines
        time.sleep(0.01)


def test_a_port_in_use_is_named_with_the_way_out() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(MachineError, match=f"port {port} on 127.0.0.1 is in use") as caught:
            listen("127.0.0.1", port, tls=False, insecure=False)
        assert "puna up --port" in caught.value.hint


def test_an_address_that_others_can_reach_needs_tls_or_an_explicit_word() -> None:
    with pytest.raises(UsageError, match="unencrypted") as caught:
        listen("0.0.0.0", 0, tls=False, insecure=False)
    assert "--insecure" in caught.value.hint
    listen("0.0.0.0", 0, tls=False, insecure=True).close()
    listen("0.0.0.0", 0, tls=True, insecure=False).close()
    listen("localhost", 0, tls=False, insecure=False).close()


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(UsageError, match="no address of this machine"):
        listen("192.0.2.1", 0, tls=False, insecure=True)


def test_one_home_has_one_puna_up_and_the_second_learns_the_first_ones_pid(home: Home) -> None:
    with sole(home), pytest.raises(ConflictError, match=f"process {os.getpid()}"), sole(home):
        pass
    with sole(home):
        pass


@pytest.mark.process
def test_a_killed_child_is_back_within_300_ms_and_the_others_never_notice(
    family: tuple[subprocess.Popen[str], Path],
) -> None:
    _, folder = family
    before = pids(folder, 3)
    os.kill(before["gateway 0"], signal.SIGKILL)
    killed = time.monotonic()
    after = pids(folder, 4)
    # Starting Python is part of it; 0.3 s are the supervisor's share on an idle machine.
    assert time.monotonic() - killed < 1.5 * load_factor()
    assert after["gateway 0"] != before["gateway 0"]
    assert {n: p for n, p in after.items() if n != "gateway 0"} == {n: p for n, p in before.items() if n != "gateway 0"}


@pytest.mark.process
def test_sigterm_ends_gateways_before_the_control_plane(family: tuple[subprocess.Popen[str], Path]) -> None:
    process, folder = family
    children = pids(folder, 3)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=10)
    assert "no more callers" in output
    ended = (folder / "ended").read_text().splitlines()
    assert sorted(ended[:2]) == ["gateway 0", "gateway 1"] and ended[2:] == ["control plane"]
    assert not any(is_alive(pid) for pid in children.values())


@pytest.mark.process
def test_while_children_take_their_time_to_end_the_supervisor_sleeps(tmp_path: Path) -> None:
    slow = CHILD.replace("def end(*_):", "def end(*_):\n    __import__('time').sleep(1)")
    process = supervise(tmp_path, slow, "control plane", "gateway 0")
    pids(tmp_path, 2)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    took_s = time.monotonic() - began
    before, after = (float(line.split()[-1]) for line in output.splitlines() if line.startswith(("no more", "ended")))
    assert took_s > 2 and after - before < 0.1 * took_s, output


@pytest.mark.process
def test_the_supervisors_death_by_sigkill_takes_every_child_along(family: tuple[subprocess.Popen[str], Path]) -> None:
    process, folder = family
    children = pids(folder, 3)
    process.kill()
    deadline = time.monotonic() + 2
    while any(is_alive(pid) for pid in children.values()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.process
def test_a_child_that_never_starts_ends_puna_up_with_the_last_lines_of_its_log(tmp_path: Path) -> None:
    process = supervise(tmp_path, "raise SystemExit('no such module: foo')", "control plane")
    output, _ = process.communicate(timeout=20)
    assert "ERROR the control plane does not start: it ended (status 1)" in output
    assert "no such module: foo" in output


@pytest.fixture
def beating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A supervisor whose two children have heartbeats; everything is up."""
    monkeypatch.setenv("BEATS", "1")
    process = supervise(tmp_path, BEATING, "control plane", "gateway 0")
    yield process, tmp_path
    process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def renewed(folder: Path, name: str, before: int, limit_s: float = 30) -> int:
    """The process of that name that is not `before`, once it is there."""
    end = time.monotonic() + limit_s
    while (now := pids(folder, 2)[name]) == before:
        assert time.monotonic() < end, f"the {name} was not started again"
        time.sleep(0.05)
    return now


@pytest.mark.process
def test_a_stopped_child_is_replaced_and_the_other_one_goes_on(beating: tuple[subprocess.Popen[str], Path]) -> None:
    _, folder = beating
    before = pids(folder, 2)
    time.sleep(1)
    os.kill(before["gateway 0"], signal.SIGSTOP)
    renewed(folder, "gateway 0", before["gateway 0"])
    assert pids(folder, 3)["control plane"] == before["control plane"]


@pytest.mark.process
def test_a_child_that_says_it_is_ill_is_replaced_at_once(beating: tuple[subprocess.Popen[str], Path]) -> None:
    process, folder = beating
    before = pids(folder, 2)
    (folder / "new").write_text("its reconciler has stood still")
    (folder / "new").rename(folder / "ill control plane")
    renewed(folder, "control plane", before["control plane"], 10)
    assert process.stdout is not None
    assert "its reconciler has stood still" in process.stdout.readline()


@pytest.mark.process
def test_a_supervisor_that_was_stopped_ends_nobody_for_it(beating: tuple[subprocess.Popen[str], Path]) -> None:
    process, folder = beating
    before = pids(folder, 2)
    time.sleep(1)
    process.send_signal(signal.SIGSTOP)
    time.sleep(9)
    process.send_signal(signal.SIGCONT)
    time.sleep(2)
    assert pids(folder, 2) == before and all(is_alive(pid) for pid in before.values())


@pytest.mark.process
def test_a_child_whose_log_cannot_be_written_starts_all_the_same(beating: tuple[subprocess.Popen[str], Path]) -> None:
    _, folder = beating
    before = pids(folder, 2)
    (folder / "log").unlink()
    (folder / "log").mkdir()
    os.kill(before["gateway 0"], signal.SIGKILL)
    renewed(folder, "gateway 0", before["gateway 0"], 10)


@pytest.mark.process
def test_without_descriptors_a_start_is_tried_again_until_there_are_some(
    beating: tuple[subprocess.Popen[str], Path],
) -> None:
    process, folder = beating
    before = pids(folder, 2)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (4, 4096))
    os.kill(before["gateway 0"], signal.SIGKILL)
    time.sleep(3)
    assert process.poll() is None and pids(folder, 2)["gateway 0"] == before["gateway 0"]
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (1024, 4096))
    renewed(folder, "gateway 0", before["gateway 0"], 15)
    assert process.stdout is not None
    told = [process.stdout.readline() for _ in range(2)]
    assert "ended (signal SIGKILL)" in told[0] and "could not be started: Too many open files" in told[1]


@pytest.mark.process
def test_what_nobody_owns_any_more_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEATS", "1")
    mark = f"{os.getpid()}{time.monotonic_ns() % 10**6}"
    source = f"import subprocess\nsubprocess.Popen(['setsid', 'sleep', '{mark}'])\n" + BEATING
    process = supervise(tmp_path, source, "control plane")
    try:
        child = pids(tmp_path, 1)["control plane"]
        os.kill(child, signal.SIGKILL)  # its daemon has nobody now but the supervisor
        pids(tmp_path, 2)
        end = time.monotonic() + 10
        while len(running(mark)) > 1:  # the successor's own
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        process.kill()
        process.communicate()
        for pid in running(mark):
            os.kill(pid, signal.SIGKILL)


def running(mark: str) -> list[int]:
    """Processes that have `mark` as an argument."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


STRAYS = """
import os, subprocess, sys, time
from puna.process import guard, tree
from puna.supervisor import sweep
tree.become_subreaper()
known = subprocess.Popen(["sleep", "60"])
subprocess.run(["sh", "-c", "sleep 61 & setsid sh -c 'sleep 62; true' &"])
subprocess.run(["sh", "-c", '"$0" -c "import time; time.sleep(63)" "$1" &', sys.executable, guard.__file__])
words = lambda: sorted(" ".join(tree.command_line(one.pid)) for one in tree.descendants())
while len(words()) < 5 or not any(guard.__file__ in line for line in words()):
    time.sleep(0.02)
while len(words()) > 2:
    sweep({known.pid})
    time.sleep(0.02)
time.sleep(0.2)
sweep({known.pid})
left = words()
tree.kill_tree()
print(len(left), known.pid in [one.pid for one in tree.descendants()], *left)
"""


@pytest.mark.process
def test_strays_are_ended_with_all_below_them_and_guards_and_what_is_known_stay() -> None:
    done = subprocess.run([sys.executable, "-c", STRAYS], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("2 False ") and "sleep 60" in done.stdout and "guard.py" in done.stdout, done
