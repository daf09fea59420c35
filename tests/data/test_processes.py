"""Several processes that tokenise: stopped, killed or unable to start, they leave no file and no process behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.made import chat, write_jsonl

pytestmark = pytest.mark.process

SCRIPT = """
import sys
from pathlib import Path
from puna.data.prepare import prepare
from puna.errors import DataError
from puna.home import Home
from puna.config.recipe import parse

class Watcher:
    def stage(self, name): pass
    def note(self, text): pass
    def advance(self, done, total, **figures): print("tokenising", flush=True)

def main():
    data = {"dataset": sys.argv[1], "processes": 2, "take": None}
    recipe = parse({"name": "r", "base": "b", "data": data})
    try:
        prepare(recipe, Path(sys.argv[2]), Home(Path(sys.argv[3])), Watcher())
    except DataError as error:
        print("ERROR", error.message, error.hint, flush=True)
"""
GUARDED = SCRIPT + 'if __name__ == "__main__": main()\n'


def start(script: str, tmp_path: Path, base: Path) -> "subprocess.Popen[str]":
    # A hundred times more rows than are encoded before the first word of progress comes.
    dataset = write_jsonl(tmp_path / "a.jsonl", [{"messages": chat("hi", "a long reply " * 200)}] * 20_000)
    (tmp_path / "script.py").write_text(script)
    # Whoever runs the tests in the background of a shell passes on that Ctrl-C is ignored.
    command = [
        "env",
        "--default-signal=INT",
        sys.executable,
        str(tmp_path / "script.py"),
        str(dataset),
        str(base),
        str(tmp_path / "home"),
    ]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def members(group: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue  # it ended while we looked
        if int(pgrp) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_for_progress(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None and process.stdout.readline() == "tokenising\n"
    assert len(members(process.pid)) >= 3


def left_after(group: int, within_s: float) -> list[int]:
    deadline = time.monotonic() + within_s
    while (left := members(group)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def test_ctrl_c_ends_every_process_and_leaves_no_file(base: Path, tmp_path: Path) -> None:
    process = start(GUARDED, tmp_path, base)
    wait_for_progress(process)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    _, errors = process.communicate(timeout=30)
    assert errors.count("KeyboardInterrupt") == 1  # the parent's, not one from each process
    assert left_after(process.pid, within_s=2) == []  # multiprocessing's own tracker ends just behind its parent
    assert list((tmp_path / "home" / "datasets").iterdir()) == []


def test_processes_do_not_outlive_a_parent_that_is_killed(base: Path, tmp_path: Path) -> None:
    process = start(GUARDED, tmp_path, base)
    wait_for_progress(process)
    process.kill()
    process.communicate(timeout=30)
    assert left_after(process.pid, within_s=10) == []


def test_a_script_without_a_main_guard_is_told_what_to_do(base: Path, tmp_path: Path) -> None:
    process = start(SCRIPT + "main()\n", tmp_path, base)
    output, _ = process.communicate(timeout=60)
    assert "ERROR a process that tokenises died, or could not start set `data.processes: 1`" in output.splitlines()[-1]
    assert left_after(process.pid, within_s=2) == []
