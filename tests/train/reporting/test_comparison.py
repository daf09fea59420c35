"""The plan against reality: means over steps, what a GPU's allocator does not count, nothing where nothing is known."""

import json
from pathlib import Path
from typing import Any

import pytest

from puna.train.reporting.comparison import compare, mean_speed, planned_memory
from puna.train.reporting.record import Run

PLAN: dict[str, Any] = {
    "device": "cpu", "tokens_per_s": 1000.0, "tokens_train": 9_000, "rows_train": 90, "rows_per_step": 10,
    "memory": {"weights": 2**30, "overhead": 2**29, "total": 2**30 + 2**29},
}  # fmt: skip


def test_each_planned_figure_is_held_against_what_was_measured(tmp_path: Path) -> None:
    lines = [{"step": 0, "eval_loss": 4.0}, {"step": 5, "tokens_per_s": 800.0, "memory_bytes": 3 * 2**29},
             {"step": 10, "tokens_per_s": 800.0, "memory_bytes": 2**30}]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
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
