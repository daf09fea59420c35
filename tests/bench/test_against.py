"""The comparison with another commit: how sure a ratio is, and one short one of this tree with its own commit."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def load_pairs() -> ModuleType:
    """The benchmark's module, by its place: on the path, bench/serve.py would hide the tests of serve."""
    where = importlib.util.spec_from_file_location("pairs", ROOT / "bench" / "pairs.py")
    assert where is not None and where.loader is not None
    sys.modules["pairs"] = module = importlib.util.module_from_spec(where)
    where.loader.exec_module(module)
    return module


pairs = load_pairs()
interval, tree_of = pairs.interval, pairs.tree_of


def test_the_interval_is_the_sign_tests() -> None:
    six = interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert (six.low, six.median, six.high) == (1.0, 3.5, 6.0)  # chance of missing: 2/64
    twelve = interval([float(n) for n in range(1, 13)])
    assert (twelve.low, twelve.high) == (3.0, 10.0)  # as tables of the binomial have it
    with pytest.raises(ValueError, match="six at least"):
        interval([1.0] * 5)


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [([0.9, 1.1] * 6, "no measurable difference"), ([1.1] * 12, "more"), ([0.9] * 11 + [1.2], "less")],
)
def test_a_difference_is_one_when_the_interval_leaves_1_out(ratios: list[float], verdict: str) -> None:
    assert interval(ratios).verdict == verdict


def test_the_source_of_a_commit_is_that_commits() -> None:
    with tree_of("HEAD", ROOT) as tree:
        assert (tree / "src" / "puna" / "server.py").exists() and (tree / "bench" / "train.py").exists()
    with pytest.raises(RuntimeError, match="nope is no commit here"), tree_of("nope", ROOT):
        pass


@pytest.mark.process
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is missing: apt-get install wrk")
def test_this_tree_and_its_commit_are_measured_in_pairs(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, str(ROOT / "bench" / "serve.py"), "--against", "HEAD", "--pairs", "6", "--seconds", "1"]
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [*command, "--out", str(out)], env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("RESULT ") == 3 and "(" in done.stdout
    found = json.loads(out.read_text())["against"]
    assert len(found["pairs"]) == 6 and found["revision"] == "HEAD"
    ratio = found["ratios"]["requests_per_s"]
    assert ratio["low"] <= ratio["median"] <= ratio["high"]
