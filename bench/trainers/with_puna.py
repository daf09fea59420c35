"""Puna as a user runs it: a dataset folder, the tutorial's recipe, `puna.train.run.train`; read from its run folder."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from puna.artifacts import Dataset, drafting
from puna.config import recipe as recipes
from puna.config.recipe import Recipe
from puna.tokens import TokenRows, Tokens
from puna.train.reporting.record import Run
from puna.train.rows import step_rows
from puna.train.run import train
from puna.train.stopping import StoppedError
from trainers import gauge
from trainers.job import Job
from trainers.variants import merged
from trainers.whole_run import whole_run
from trainers.workload import ROWS_PER_STEP

TUTORIAL = Path(__file__).parents[2] / "examples" / "llama3" / "recipe-tutorial.yaml"
TUTORIAL_ROWS, HELD_OUT_ROWS = 9900, 100
WINDOW = 5
"""Steps between two lines of metrics.jsonl."""
NEVER = 1_000_000
LOSSES_TRAINING = {"learning_rate": 2e-4, "warmup_steps": 5, "logging_steps": 1}
"""The tutorial's rate moves a loss too little in fifty steps to show a difference."""


class Watcher:
    """Marks the steps of a run; after `last` of them it sends the SIGTERM that a user would send."""

    def __init__(self, last: int | None = None) -> None:
        self.clock, self.part, self.last = gauge.Clock(), "", last

    def stage(self, name: str) -> None:
        """Only the steps of `train` are marked."""
        self.part = name
        print(f"stage: {name}", flush=True)

    def advance(self, done: int, total: int, **figures: float) -> None:
        """A step has been handed to the device."""
        if self.part == "train":
            self.clock.tick()
            if done == self.last:
                signal.raise_signal(signal.SIGTERM)

    def note(self, text: str) -> None:
        """Into the log."""
        print(text, flush=True)


def speed(job: Job) -> dict[str, Any]:
    """Tokens a second without evaluation and checkpoints, beside what the plan foresaw."""
    steps = job.workload.all_steps
    training = {"max_steps": steps, "logging_steps": WINDOW, "eval_steps": NEVER, "save_steps": NEVER}
    rows = job.workload.rows()
    recipe = make_recipe(job, training)
    run, watcher = _train(job, recipe, rows, [])
    tokens = gauge.tokens_of_steps(rows, ROWS_PER_STEP)
    found = gauge.speed(watcher.clock, tokens, job.workload.warm)
    metrics = run.metrics()
    windows = [m for m in metrics if "tokens_per_s" in m and m["step"] - WINDOW >= job.workload.warm]
    plan, peak = run.plan, metrics[-1]["memory_bytes"]
    # On a GPU the run counts what torch allocates; on a CPU all that the process has.
    counted = "total" if plan["device"] == "cpu" else "allocated"
    return found | {
        "recipe": _told(recipe),
        "losses": [m["loss"] for m in metrics if "loss" in m],
        "windows": [{"step": m["step"], "tokens_per_s": m["tokens_per_s"]} for m in windows],
        "plan": plan,
        "foreseen": {
            "memory_bytes": _beside(plan["memory"][counted], peak),
            "seconds_per_step": _beside(plan["step_s"], found["seconds_per_step"]),
        },
    }


def extrapolate(job: Job) -> dict[str, Any]:
    """The tutorial's whole job, from some of its steps with their evaluations and checkpoints."""
    rows, held_out = job.workload.rows(TUTORIAL_ROWS), job.workload.rows(HELD_OUT_ROWS, part=1)
    recipe = make_recipe(job, {})
    run, watcher = _train(job, recipe, rows, held_out, last=job.workload.all_steps)
    tokens = gauge.tokens_of_steps(rows, ROWS_PER_STEP)
    training = recipe.training
    found = whole_run(watcher.clock, tokens, job.workload.warm, (training.eval_steps, training.save_steps))
    found["foreseen"] = {"seconds": _beside(run.plan["seconds"], found["whole_s"])}
    return found | gauge.peaks() | {"recipe": _told(recipe), "plan": run.plan}


def losses(job: Job) -> dict[str, Any]:
    """The loss of every step on rows with something to learn."""
    steps = job.workload.all_steps
    training = LOSSES_TRAINING | {"max_steps": steps, "eval_steps": NEVER, "save_steps": NEVER}
    recipe = make_recipe(job, training)
    run, _ = _train(job, recipe, job.workload.rows(), [])
    return {"losses": [m["loss"] for m in run.metrics() if "loss" in m], "recipe": _told(recipe), "plan": run.plan}


TASKS: dict[str, Callable[[Job], dict[str, Any]]] = {"speed": speed, "extrapolate": extrapolate, "losses": losses}


def _told(recipe: Recipe) -> dict[str, Any]:
    """The recipe for the results: where its base lay is that machine's affair."""
    return recipe.as_dict() | {"base": Path(recipe.base).name}


def make_recipe(job: Job, training: dict[str, Any]) -> Recipe:
    """The tutorial's recipe with what the benchmark sets, and over it what the variant sets."""
    assert job.variant is not None
    values = yaml.safe_load(TUTORIAL.read_text())
    values = merged(values, {"name": "bench", "base": str(job.base_dir), "training": training})
    values = merged(values, {"data": {"loss_on": job.workload.loss_on, "max_length": job.workload.longest}})
    values = merged(values, {"lora": {"lora_dropout": job.variant.dropout}})
    return recipes.parse(merged(values, job.variant.recipe))


def _train(
    job: Job, recipe: Recipe, rows: list[Tokens], held_out: list[Tokens], last: int | None = None
) -> tuple[Run, Watcher]:
    assert job.base_dir is not None
    dataset = write_dataset(job, in_order_of_use(rows, recipe), held_out)
    run, watcher = Run(job.folder / "run"), Watcher(last)
    with _without_picture(run), contextlib.suppress(StoppedError):
        train(recipe, job.base_dir, dataset, run.path, watcher)
    return run, watcher


def in_order_of_use(rows: list[Tokens], recipe: Recipe) -> list[Tokens]:
    """Rows laid out so that the run's own shuffling gives them back in the order in which they came."""
    steps = -(-len(rows) // recipe.rows_per_step)
    used = [step_rows(len(rows), recipe.rows_per_step, step, recipe.training.seed) for step in range(steps)]
    placed: list[Tokens] = list(rows)
    for row, place in zip(rows, np.concatenate(used).tolist(), strict=True):
        placed[place] = row
    return placed


def write_dataset(job: Job, rows: list[Tokens], held_out: list[Tokens]) -> Dataset:
    """A dataset folder as the data stage leaves it; no samples, so no replies are asked for."""
    assert job.base_dir is not None
    token = job.workload.token_id
    start, end = token("<|im_start|>"), token("<|im_end|>")
    with drafting("dataset", job.folder) as draft:
        for name, split in (("train", rows), ("test", held_out)):
            TokenRows.pack(split).save(draft.path / f"{name}.safetensors")
        (draft.path / "tokenizer").mkdir()
        for file in (*job.base_dir.glob("token*"), *job.base_dir.glob("special*")):
            shutil.copy(file, draft.path / "tokenizer")
        (draft.path / "samples.json").write_text(json.dumps([]))
        draft.config = {"base": str(job.base_dir)}
        draft.metrics = {
            "chat_token_ids": {"<|im_start|>": start, "<|im_end|>": end},
            "eos_token_id": end, "stop_token_ids": [end],
            "bos_token_id": token("<|begin_of_text|>"), "pad_token_id": token("<|pad|>"),
        }  # fmt: skip
    return Dataset.open(draft.final)


@contextlib.contextmanager
def _without_picture(run: Run) -> Iterator[None]:
    # A machine that only measures need not have matplotlib; the curve is drawn last, when the adapter is written.
    try:
        yield
    except ModuleNotFoundError as absent:
        if absent.name != "matplotlib" or run.adapter is None:
            raise
        print("no loss.png: matplotlib is not installed", flush=True)


def _beside(foreseen: float, measured: float) -> dict[str, float]:
    return {"foreseen": foreseen, "measured": measured, "error": foreseen / measured - 1}
