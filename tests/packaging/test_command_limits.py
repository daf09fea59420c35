"""Builds that hang, hide, fill the disk or take for ever: ended in time, with the reason, and nothing left of them."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from environments import leftovers
from load import load_factor
from puna.config.runtime import RuntimeSpec
from puna.errors import BuildError, MachineError, UsageError
from puna.home import Home
from puna.packaging import command
from puna.packaging.command import DISK, TIMEOUT, BuildCancelledError, BuildLimits
from puna.packaging.environment import build

pytestmark = pytest.mark.process

# A package whose own build says that it has begun, hides a child in a session of its own, and hangs.
BACKEND = """
import os, signal, subprocess, sys, time
def build_wheel(folder, settings=None, metadata=None):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen(["sleep", "3600.{mark}"], start_new_session=True)
    open({begun!r}, "w").close()
    time.sleep(3600)
build_sdist = build_wheel
"""
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
PROJECT += '[project]\nname = "hang"\nversion = "1"\n'


def quiet(_line: str) -> None:
    """Nobody listens."""


def alive(word: str) -> list[str]:
    """Command lines of living processes that hold a word."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            text = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if folder.name.isdigit() and int(folder.name) != os.getpid() and word in text:
            found.append(text)
    return found


def cancel_when(begun: Path, spec: RuntimeSpec, home: Home) -> float:
    """Build until `begun` is there, then cancel; the seconds that the cancelling took."""
    cancel, took = threading.Event(), 0.0

    def run() -> None:
        with pytest.raises(BuildCancelledError):
            build(spec, home, quiet, cancelled=cancel.is_set)

    thread = threading.Thread(target=run)
    thread.start()
    end = time.monotonic() + 60
    while not begun.exists():
        assert thread.is_alive() and time.monotonic() < end
        time.sleep(0.02)
    started = time.monotonic()
    cancel.set()
    thread.join(30)
    took = time.monotonic() - started
    assert not thread.is_alive()
    assert leftovers(home) == []
    return took


def test_a_package_whose_build_hangs_is_cancelled_with_all_that_it_started(home: Home, tmp_path: Path) -> None:
    mark, begun, folder = f"{os.getpid()}1", tmp_path / "begun", tmp_path / "hang"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "backend.py").write_text(BACKEND.format(mark=mark, begun=str(begun)))
    took = cancel_when(begun, RuntimeSpec(python_packages=(f"hang @ {folder.as_uri()}",)), home)
    print(f"cancelled in {took:.2f} s")
    assert took < 5 * load_factor() and alive(f"3600.{mark}") == []


def test_a_run_line_that_will_not_end_is_cancelled_with_all_that_it_started(home: Home, tmp_path: Path) -> None:
    mark, begun = f"{os.getpid()}2", tmp_path / "begun"
    line = f"trap '' TERM INT HUP; setsid sh -c \"trap '' TERM; sleep 3600.{mark}\" & touch {begun}; sleep 3600.{mark}"
    took = cancel_when(begun, RuntimeSpec(run=(line,)), home)
    print(f"cancelled in {took:.2f} s")
    assert took < 5 * load_factor() and alive(f"3600.{mark}") == []


def test_what_a_run_line_leaves_in_another_session_ends_with_it(home: Home) -> None:
    mark, began = f"{os.getpid()}3", time.monotonic()
    build(RuntimeSpec(run=(f"setsid sleep 3600.{mark} & true",)), home, quiet)
    assert alive(f"3600.{mark}") == [] and time.monotonic() - began < 30 * load_factor()


def test_a_build_that_takes_too_long_is_ended_and_says_how_to_give_it_longer(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TIMEOUT, "2")
    began = time.monotonic()
    with pytest.raises(BuildError, match="did not end within 2 s") as caught:
        build(RuntimeSpec(run=("sleep 60",)), home, quiet)
    assert time.monotonic() - began < 10 * load_factor() and TIMEOUT in caught.value.hint
    assert not isinstance(caught.value, BuildCancelledError)


def test_a_build_that_fills_the_disk_is_ended(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DISK, "0.05")
    monkeypatch.setattr(command, "LOOK_S", 0.2)
    many = "for i in 1 2 3 4 5; do head -c 20000000 /dev/zero > f$i; done; sleep 60"
    with pytest.raises(BuildError, match=r"takes 0\.1 GiB of the disk, over its 0\.05") as caught:
        build(RuntimeSpec(run=(many,)), home, quiet)
    assert DISK in caught.value.hint
    monkeypatch.setattr(command, "LOOK_S", 60.0)
    with pytest.raises(BuildError, match="run line 1 of 1"):  # one file alone is not even written
        build(RuntimeSpec(run=("head -c 80000000 /dev/zero > big",)), home, quiet)
    monkeypatch.setattr(command, "LOOK_S", 0.2)
    monkeypatch.setattr(command, "RESERVE_BYTES", 1 << 62)
    with pytest.raises(MachineError, match="are left on the disk"):
        build(RuntimeSpec(run=("sleep 60",)), home, quiet)
    assert leftovers(home) == []


def test_commands_give_way_dump_no_core_and_die_first_when_memory_ends(home: Home) -> None:
    lines: list[str] = []
    run = ("echo core $(ulimit -c) files $(ulimit -n) nice $(nice) oom $(cat /proc/self/oom_score_adj)",)
    build(RuntimeSpec(run=run), home, lines.append)
    (said,) = [line.split() for line in lines if line.startswith("core ")]
    assert said[1] == "0" and int(said[3]) <= command.MOST_FILES
    assert int(said[5]) >= command.NICE and int(said[7]) >= 500


@pytest.mark.parametrize("value", ["0", "-1", "soon", "inf", "nan"])
def test_a_limit_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(TIMEOUT, value)
    with pytest.raises(UsageError, match=TIMEOUT):
        BuildLimits.of_environment()
