"""Runs are found, listed and read without torch, and a dead process is not taken for a live one."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from puna.config import recipe as recipes
from puna.errors import NotFoundError
from puna.home import Home
from puna.train.reporting.record import (
    Run,
    compare,
    duration,
    find_run,
    list_runs,
    mean_speed,
    new_run_dir,
    planned_memory,
)
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
    assert (run.state, run.status.step, run.metrics(), run.plan, run.adapter) == ("interrupted", 0, [], {}, None)
    with pytest.raises(NotFoundError, match="recipe.json"):
        _ = run.recipe


def write_metrics(run: Run, lines: list[tuple[int, float]]) -> None:
    text = "".join(json.dumps({"step": step, "loss": 1.0, "time": at}) + "\n" for step, at in lines)
    (run.path / "metrics.jsonl").write_text(text)


def test_time_left_is_as_planned_until_two_lines_tell_the_pace(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.begin(100)
    assert run.seconds_left() is None
    (tmp_path / "plan.json").write_text(json.dumps({"seconds": 50.0}))
    run.write_status(step=20)
    assert run.seconds_left() == pytest.approx(40.0)
    now = time.time() + 1
    write_metrics(run, [(10, now), (20, now + 30)])
    assert run.seconds_left() == pytest.approx(80 * 3.0)


def test_the_pace_of_a_resumed_run_is_its_own_and_not_the_pause(tmp_path: Path) -> None:
    run, now = Run(tmp_path), time.time()
    run.begin(100)
    write_metrics(run, [(0, now - 9000), (10, now - 8000), (20, now + 1), (30, now + 11)])
    run.write_status(step=30)
    assert run.seconds_left() == pytest.approx(70.0)
    run.end("finished")
    assert run.seconds_left() is None and run.seconds() == pytest.approx(0, abs=5)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.42, "0.4 s"), (9.97, "10 s"), (42, "42 s"), (99, "99 s"), (100, "2 min"), (3_570, "1 h 00 min"),
     (7_500, "2 h 05 min"), (360_000, "100 h 00 min")],
)  # fmt: skip
def test_seconds_are_told_as_a_person_says_them(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_reading_runs_loads_no_torch() -> None:
    code = (
        "import sys, puna.train.reporting.record as _; print({'torch', 'numpy', 'matplotlib'} & set(sys.modules) or [])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


PLAN: dict[str, Any] = {
    "device": "cpu", "tokens_per_s": 1000.0, "tokens_train": 9_000, "rows_train": 90, "rows_per_step": 10,
    "memory": {"weights": 2**30, "overhead": 2**29, "total": 2**30 + 2**29},
}  # fmt: skip


def test_each_planned_figure_is_held_against_what_was_measured(tmp_path: Path) -> None:
    lines = [{"step": 0, "eval_loss": 4.0}, {"step": 5, "tokens_per_s": 800.0, "memory_bytes": 3 * 2**29},
             {"step": 10, "tokens_per_s": 800.0, "memory_bytes": 2**30}]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    (tmp_path / "metrics.jsonl").rename(tmp_path / "later")
    assert compare(Run(tmp_path)) == [], "nothing is measured yet"
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 0, "eval_loss": 4.0}) + "\n")
    assert compare(Run(tmp_path)) == [], "a loss has no plan"
    (tmp_path / "later").rename(tmp_path / "metrics.jsonl")
    speed, step, memory = compare(Run(tmp_path))
    assert (speed.planned, speed.measured) == (1000.0, pytest.approx(800.0))
    assert (step.planned, step.measured, step.error) == (1.0, pytest.approx(1.25), pytest.approx(0.25))
    assert (memory.planned, memory.measured, memory.error) == (1.5, 1.5, 0.0)


def test_a_mean_speed_counts_lines_by_their_steps() -> None:
    lines = [{"step": 10, "tokens_per_s": 100.0}, {"step": 10, "eval_loss": 1.0}, {"step": 40, "tokens_per_s": 300.0}]
    assert mean_speed(lines) == pytest.approx(40 / (10 / 100 + 30 / 300))
    assert mean_speed([]) is None


def test_on_a_gpu_the_context_is_planned_but_not_measured() -> None:
    assert planned_memory(PLAN | {"device": "cuda"}) == 2**30 and planned_memory({}) == 0


def test_an_unplanned_run_is_compared_with_nothing(tmp_path: Path) -> None:
    assert compare(Run(tmp_path)) == []
