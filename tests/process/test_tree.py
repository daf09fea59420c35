"""Processes are found, counted and ended by who they are; one that has another's id is never touched."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from backends.replicas import wait_until
from puna.process import tree
from puna.process.tree import MemoryLimit, Process, descendants, end, is_alive, kill, own_bytes, start_ticks, stat

pytestmark = pytest.mark.process
FAMILY = "import subprocess, sys; subprocess.Popen(['sleep', '60'], start_new_session=True).wait()"
LEADERLESS = (
    "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); print(flush=True); "
    "ctypes.CDLL(None).pthread_exit(None)"
)


@pytest.fixture
def child() -> Iterator[Process]:
    """A process with one below it, in a session of its own."""
    with subprocess.Popen([sys.executable, "-c", FAMILY]) as process:
        wait_until(lambda: descendants(process.pid), 20, "it started nothing")
        begun = Process(process.pid, start_ticks(process.pid))
        below = descendants(process.pid)
        yield begun
        for one in (begun, *below):
            kill(one)


def test_what_is_below_a_process_is_found_both_ways(child: Process) -> None:
    assert child in descendants() and child in descendants(quick=True)
    assert descendants(child.pid) == descendants(child.pid, quick=True) and len(descendants(child.pid)) == 1


def test_a_process_and_all_below_it_are_ended(child: Process) -> None:
    below = descendants(child.pid)
    assert end(child)
    wait_until(lambda: not any(map(is_alive, (child, *below))), 10, "they live")
    os.waitpid(child.pid, 0)
    assert not end(child) and not kill(child)


@pytest.mark.parametrize("has_pidfds", [True, False])
def test_who_has_the_id_of_one_that_ended_is_not_touched(
    child: Process, has_pidfds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_pid: int) -> int:
        raise OSError(errno.ENOSYS, "no such call")

    if not has_pidfds:
        monkeypatch.setattr(os, "pidfd_open", refused)
    earlier, below = Process(child.pid, child.start_ticks - 1), descendants(child.pid)
    assert not is_alive(earlier) and not kill(earlier) and not end(earlier)
    assert is_alive(child) and all(map(is_alive, below))
    assert kill(child, signal.SIGCONT) and is_alive(child)
    assert kill(below[0])
    wait_until(lambda: not is_alive(below[0]), 10, "it lives")


def test_an_id_that_changes_hands_between_the_look_and_the_signal_is_spared(
    child: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies after its descendants were listed, and its id is another's by then: nobody is ended."""
    below = descendants(child.pid)

    def listed(root: int) -> list[Process]:
        monkeypatch.setattr(tree, "stat", lambda pid: stat(pid) and stat(pid)._replace(start_ticks=1))  # type: ignore[union-attr]
        return below

    monkeypatch.setattr(tree, "descendants", listed)
    assert not end(child)
    monkeypatch.undo()
    assert is_alive(child) and all(map(is_alive, below))


def test_a_process_whose_main_thread_has_ended_still_runs() -> None:
    with subprocess.Popen([sys.executable, "-c", LEADERLESS], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"\n"
        one = Process(process.pid, start_ticks(process.pid))
        wait_until(lambda: (seen := stat(one.pid)) is not None and seen.state == "Z", 10, "its main thread goes on")
        assert is_alive(one) and one in descendants()
        assert end(one) and process.wait(10) == -signal.SIGKILL


def test_one_that_only_waits_to_be_reaped_has_ended() -> None:
    process = subprocess.Popen(["true"])
    one = Process(process.pid, start_ticks(process.pid))
    wait_until(lambda: not is_alive(one), 10, "it lives")
    assert (seen := stat(one.pid)) is not None and seen.has_ended and one not in descendants()
    assert tree.is_ending(one.pid) and one.pid in tree.children(os.getpid())
    process.wait()
    assert stat(one.pid) is None and start_ticks(one.pid) == 0


TREE = """
import os, subprocess, sys, time
from puna.process import tree
tree.become_subreaper()
child = subprocess.Popen([sys.executable, "-c", {family!r}])
while len(tree.descendants()) < 2:
    time.sleep(0.02)
{before}
began = time.monotonic()
tree.kill_tree({bound})
print(len(tree.descendants()), time.monotonic() - began)
"""


def test_a_tree_is_killed_whatever_sessions_are_in_it() -> None:
    code = TREE.format(family=FAMILY, before="", bound="")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split()[0] == "0", done


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has processes that others may not end")
def test_what_may_not_be_killed_is_not_waited_for_without_end() -> None:
    before = "os.setresuid(65534, 65534, 0)"
    # Of its own accord, and where the caller has less time.
    for more, bound, least_s in (("", "", tree.REFUSED_S), ("; tree.REFUSED_S = 40", "timeout_s=0.3", 0.3)):
        code = TREE.format(family=FAMILY, before=before + more, bound=bound)
        code += "os.setresuid(0, 0, 0); tree.kill_tree()"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        left, took_s = done.stdout.split()
        assert left == "2" and least_s <= float(took_s) < 30, done


def test_memory_that_a_kernel_does_not_divide_is_counted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = tree._sum
    monkeypatch.setattr(tree, "_sum", lambda path, names: 0 if path.endswith("smaps_rollup") else counted(path, names))
    assert tree.exact_bytes(os.getpid()) == pytest.approx(own_bytes(os.getpid()), rel=0.1) and own_bytes(1 << 30) == 0


def test_memory_is_counted_over_the_tree_and_looked_at_in_time(child: Process) -> None:
    used = own_bytes(os.getpid())
    assert used > 1 << 20 and 0 < tree.exact_bytes(os.getpid()) < 2 * used
    assert MemoryLimit(0).excess(time.monotonic()) == ""
    limit = MemoryLimit(1)
    assert "GiB of memory, its share is" in limit.excess(5.0) and limit.next_look == 5.0 + tree.SOONEST_S
    assert limit.excess(5.0) == "", "no look is due"
    roomy = MemoryLimit(1 << 50)
    assert roomy.excess(5.0) == "" and roomy.next_look == 5.0 + tree.LATEST_S


def test_words_and_files_of_a_process_are_read(child: Process, tmp_path: os.PathLike[str]) -> None:
    assert tree.command_line(child.pid)[:3] == [sys.executable, "-c", FAMILY]
    with open(os.path.join(tmp_path, "file"), "w") as file:
        assert tree.has_open(os.getpid(), file.name) and not tree.has_open(child.pid, file.name)
    assert not tree.has_open(os.getpid(), file.name) and not tree.has_open(os.getpid(), "/nonexistent")
    assert tree.command_line(0) == [] and not tree.has_open(0, "/")
