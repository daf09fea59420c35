"""The batch benchmark runs, and unequal callers on transformers share their steps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.process
@pytest.mark.alone  # it holds two speeds against each other
def test_unequal_callers_share_their_steps_and_a_short_call_overtakes_a_long_one() -> None:
    # One after the other they reach a fifth; the figure itself is `make bench-batch`'s, on a quiet machine.
    argv = [sys.executable, str(ROOT / "bench" / "batch.py"), "--rounds", "2", "--least", "0.5"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
