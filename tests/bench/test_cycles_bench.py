"""The long-life benchmark, short: 40 cycles and 10 deploys leave no process, socket, environment or bundle behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
GROWN = 0.12  # of so short a life: pools are still filling


def test_what_comes_goes_again(tmp_path: Path) -> None:
    out = tmp_path / "cycles.json"
    words = ["--cycles", "40", "--deploys", "10", "--every", "4", "--quiet", "10", "--out", str(out)]
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(ROOT / "bench" / "cycles.py"), *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    found = json.loads(out.read_text())
    assert [trouble for trouble in found["troubles"] if " grew by " not in trouble] == [], done.stderr[-3000:]
    assert (found["cycles"], found["deploys"], found["failed_builds"], found["deleted"]) == (40, 10, 1, 1)
    assert all(figures["rss_kib"]["share"] < GROWN for figures in found["growth"].values()), found["growth"]
    assert found["orphans"] == [] and found["after"]["zombies"] == 0
    folders = found["after"]["folders"]
    assert (folders["environments"], folders["bundles"]) == (1, 1)
    serving = [sample for sample in found["samples"] if sample["folders"]["workspaces"]]
    assert len(serving) > 5, "nothing was counted while endpoints were awake"
    assert "RESULT 40 cycles and 10 deploys" in done.stdout
