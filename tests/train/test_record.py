"""Runs are found, listed and read without torch, and a dead process is not taken for a live one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from puna.errors import NotFoundError
from puna.home import Home
from puna.spec import recipe as recipes
from puna.train.record import Run, find_run, list_runs, new_run_dir
from train.tiny import make_recipe


def test_new_runs_are_numbered_from_one_and_keep_their_recipe(tmp_path: Path) -> None:
    home, recipe = Home(tmp_path), make_recipe()
    first, second = new_run_dir(home, recipe), new_run_dir(home, recipe)
    assert (first.name, second.name) == ("tiny-1", "tiny-2")
    assert recipes.parse(Run(second).recipe) == recipe == recipes.load(second / "recipe.yaml")
    assert [run.name for run in list_runs(home)] == ["tiny-1", "tiny-2"]
    assert find_run(home, "tiny-1").path == first and find_run(home, "tiny").path == second


def test_a_missing_run_is_named_with_its_nearest(tmp_path: Path) -> None:
    home = Home(tmp_path)
    new_run_dir(home, make_recipe())
    with pytest.raises(NotFoundError) as caught:
        find_run(home, "tyny-1")
    assert "tiny-1" in caught.value.hint


def test_a_run_whose_process_is_gone_reads_as_interrupted(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.begin(10)
    assert run.state == "running" and run.status.pid == os.getpid()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    run.write_status(pid=gone.pid)
    assert run.state == "interrupted"
    run.write_status(pid=os.getpid(), process_started="1")  # a recycled process id
    assert run.state == "interrupted"
    run.end("failed", "no")
    assert (run.state, run.status.error) == ("failed", "no")


def test_a_line_that_a_crash_cut_short_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps({"step": 1, "loss": 2.0, "time": 1}) + "\n" + json.dumps({"step": 2, "eval_loss": 1.5}) + '\n{"ste'
    )
    assert [line["step"] for line in Run(tmp_path).metrics()] == [1, 2]
    assert Run(tmp_path).last == {"loss": 2.0, "eval_loss": 1.5}


def test_an_empty_folder_is_an_interrupted_run_that_says_so(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert (run.state, run.step, run.metrics(), run.plan, run.adapter) == ("interrupted", 0, [], {}, None)
    with pytest.raises(NotFoundError, match="recipe.json"):
        _ = run.recipe


def test_reading_runs_loads_no_torch() -> None:
    code = "import sys, puna.train.record; print([m for m in ('torch', 'numpy', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
