"""Which process is this home's `puna up`, never one that only has its number; and what it says of itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from puna.home import Home
from puna.instance import owner_of, pid_of, read_state, sole, write_state
from puna.process.tree import Process, start_ticks

ME = Process(os.getpid(), start_ticks(os.getpid()))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_the_state_says_where_we_are(home: Home) -> None:
    assert read_state(home) == {}
    write_state(home, "http://127.0.0.1:1")
    assert read_state(home) == {
        "url": "http://127.0.0.1:1",
        "pid": os.getpid(),
        "control_socket": str(home.control_socket),
    }


def test_the_holder_of_the_lock_is_found(home: Home) -> None:
    with sole(home):
        write_state(home, "http://127.0.0.1:1")
        assert pid_of(home) == os.getpid() and owner_of(home) == ME
        home.state.unlink()
        assert pid_of(home) is None and owner_of(home) == ME
    assert owner_of(home) is None


def test_a_stranger_that_has_the_number_is_never_it(home: Home) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        home.state.write_text(json.dumps({"url": "http://127.0.0.1:1", "pid": stranger.pid}))
        home.lock.write_text(str(stranger.pid))
        assert pid_of(home) is None and owner_of(home) is None
        with sole(home):
            assert pid_of(home) is None and owner_of(home) == ME
        stranger.kill()


@pytest.mark.process
def test_puna_down_does_not_touch_a_stranger(home: Home) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        home.state.write_text(json.dumps({"url": "http://127.0.0.1:1", "pid": stranger.pid}))
        env = {**os.environ, "PUNA_HOME": str(home.root)}
        done = subprocess.run(
            [sys.executable, "-m", "puna", "down"], env=env, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout.strip()) == (0, "puna is not up: nothing to stop")
        assert stranger.poll() is None
        stranger.kill()
