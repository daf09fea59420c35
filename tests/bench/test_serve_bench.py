"""The serving benchmark, a second of it: what it measures of Puna, writes down and says, and what it needs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
SCRIPT = [sys.executable, str(ROOT / "bench" / "serve.py")]


def bench(out: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """One call."""
    whole = os.environ | {"PYTHONPATH": str(ROOT / "src")} | env
    command = [*SCRIPT, "--only", "puna", "--rounds", "1", "--seconds", "1", "--out", str(out), *words]
    return subprocess.run(command, env=whole, capture_output=True, text=True, timeout=120, check=False)


def test_without_the_load_generator_it_says_how_to_get_it(tmp_path: Path) -> None:
    done = bench(tmp_path / "out.json", PATH=str(tmp_path))
    assert done.returncode == 2 and "apt-get install wrk" in done.stderr
    assert not (tmp_path / "out.json").exists()


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is missing: apt-get install wrk")
def test_puna_is_measured_beside_its_bare_worker_and_all_of_it_is_written_down(tmp_path: Path) -> None:
    done = bench(tmp_path / "out.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RESULT puna: " in done.stdout and "the gateway added" in done.stdout
    found = json.loads((tmp_path / "out.json").read_text())
    server = found["servers"]["puna"]
    assert server["state"] == "measured" and server["requests_per_s"] > 0 and server["p50_ms"] <= server["p99_ms"]
    assert server["added_p50_ms"] == server["one_p50_ms"] - server["bare_p50_ms"]
    run = server["runs"][0]
    assert run["many"]["errors"] == run["many"]["wrong"] == 0 and run["bare"]["requests"] > 0
    assert found["machine"]["name"] and found["versions"]["uvloop"] and found["settings"]["connections"] == 64
