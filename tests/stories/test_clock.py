"""A clock that is set by hours while everything runs: a stand-in for `date -s` in each of Puna's own processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stories.conftest import Up, standing, write_app

pytestmark = pytest.mark.process

SHIFT = """
import os, time
_real, _file = time.time, os.environ["CLOCK_SHIFT"]
def shifted():
    try:
        with open(_file) as file:
            return _real() + float(file.read() or 0)
    except OSError:
        return _real()
time.time = shifted
"""


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SHIFT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("CLOCK_SHIFT", str(tmp_path / "shift"))
    return tmp_path / "shift"


@pytest.fixture
def up(clock: Path) -> Iterator[Up]:
    with standing() as up:
        yield up


def set_clock(clock: Path, seconds: float) -> None:
    clock.with_suffix(".new").write_text(str(seconds))
    clock.with_suffix(".new").rename(clock)


def test_a_clock_that_is_set_by_hours_neither_delays_a_replica_nor_ends_one(
    up: Up, clock: Path, tmp_path: Path
) -> None:
    up.deploy(write_app(tmp_path / "app"), min_replica=1)
    up.deploy(write_app(tmp_path / "idle"), "idle", min_replica=0, scale_down_delay_s=600)
    assert up.call(name="idle").status_code == 200
    (idle,) = up.worker_pids("idle")
    for shift_s in (-7200.0, 7200.0, -86400.0):
        (before,) = up.worker_pids()
        os.kill(before, signal.SIGKILL)
        up.until(lambda dead=before: dead not in up.worker_pids(), 10, "the death in the books")
        set_clock(clock, shift_s)
        up.until(lambda dead=before: set(up.worker_pids()) - {dead}, 20, "a replica in the dead one's place")
        assert up.call().status_code == 200
    assert "the clock was set back" in (up.home.logs / "control.log").read_text()
    time.sleep(1.5)  # three looks of the autoscaler
    assert up.worker_pids("idle") == [idle], "it was called moments ago, whatever the clock says"
    assert up.client.endpoint("idle")["replicas"][0]["state"] == "ready"
