"""Trackers that get a run's figures when the recipe's `report_to` asks: one small class each, one table.

A resumed run goes on in the tracker's own run: what names it there is kept in the run folder's trackers.json.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

from puna.artifacts import write_json
from puna.errors import RecipeError
from puna.train.reporting.record import Run
from puna.train.stopping import StoppedError

PROJECT = "puna"
"""The project or experiment of runs, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME says another."""
Values = Mapping[str, Any]


class Tracker(Protocol):
    """Takes figures, a step at a time."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Some figures of one step."""

    def close(self, state: str, /) -> None:
        """Nothing more will come; `state` is the run's: finished, failed or interrupted."""


class _TensorBoard:
    def __init__(self, run_dir: Path, recipe: Values) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder, run = run_dir / "tensorboard", Run(run_dir)
        resumed = folder.exists()
        # Steps after the checkpoint are done again: TensorBoard drops what an earlier process wrote of them.
        redone = int(run.checkpoints[-1].name.removeprefix("step-")) + 1 if run.checkpoints else 0
        self._writer: Any = SummaryWriter(str(folder), purge_step=redone if resumed else None)
        if not resumed:
            self._writer.add_text("recipe", f"```yaml\n{yaml.safe_dump(dict(recipe), sort_keys=False)}```", 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a run that is killed has all its lines here too

    def close(self, state: str) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, run_dir: Path, recipe: Values) -> None:
        wandb = importlib.import_module("wandb")
        # Names like recipe-1 are taken twice by two machines; the id is not.
        run_id = _kept(run_dir, "wandb", lambda: uuid.uuid4().hex[:12])
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self._run = wandb.init(project=project, name=run_dir.name, id=run_id, dir=str(run_dir), config=dict(recipe),
                               resume="allow")  # fmt: skip
        # wandb's own step may only grow, so it would refuse the steps that a resumed run does again.
        self._run.define_metric("*", step_metric="optimiser_step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"optimiser_step": step, **values})

    def close(self, state: str) -> None:
        self._run.finish(exit_code=0 if state == "finished" else 1)


class _MLflow:
    STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}

    def __init__(self, run_dir: Path, recipe: Values) -> None:
        self._client = importlib.import_module("mlflow").MlflowClient()
        # The client's calls name their run: mlflow's global active run may be somebody else's in this process.
        self._id = _kept(run_dir, "mlflow", lambda: self._create(run_dir.name, recipe))
        self._client.update_run(self._id, status="RUNNING")

    def _create(self, name: str, recipe: Values) -> str:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(experiment)
        where = found.experiment_id if found else self._client.create_experiment(experiment)
        run_id = str(self._client.create_run(where, run_name=name).info.run_id)
        for key, value in flat(recipe).items():
            self._client.log_param(run_id, key, value)
        return run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self, state: str) -> None:
        self._client.set_terminated(self._id, self.STATUS[state])


class _Lenient:
    """A tracker whose failure costs its figures and not the run: they are all in metrics.jsonl."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker, self._works = name, tracker, True

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._works:
            self._try(f"{self._name} takes no figures from step {step} on", lambda: self._tracker.log(step, values))

    def close(self, state: str) -> None:
        self._try(f"{self._name} could not be closed", lambda: self._tracker.close(state))

    def _try(self, problem: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - the user sees it as a warning, once
            self._works = False
            warnings.warn(f"{problem}: {error}; metrics.jsonl has them all", stacklevel=3)


TRACKERS: dict[str, Callable[[Path, Values], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _MLflow,
}
"""The recipe's name, which is the package's that must be installed -> what to make."""


def check_trackers(names: Sequence[str]) -> None:
    """Say at once what is not installed.

    Raises:
        RecipeError: a tracker's package is missing.
    """
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name, which trackers themselves make, has no origin
            hint = f"uv pip install {name}, or remove it from training.report_to"
            raise RecipeError(f"training.report_to asks for {name}, which is not installed", hint)


def _open(name: str, run_dir: Path, recipe: Values) -> Tracker:
    try:
        return _Lenient(name, TRACKERS[name](run_dir, recipe))
    except Exception as error:  # the user sees it: training has not begun yet
        hint = f"see {name}'s own login and settings, or remove it from training.report_to"
        raise RecipeError(f"training.report_to asks for {name}, which does not open: {error}", hint) from error


@contextlib.contextmanager
def tracking(names: Sequence[str], run_dir: Path, recipe: Values) -> Iterator[list[Tracker]]:
    """The trackers that the recipe asks for, closed with the state that the run ends in.

    Raises:
        RecipeError: one does not open: no login, no such server.
    """
    trackers: list[Tracker] = []
    state = "failed"
    try:
        for name in names:
            trackers.append(_open(name, run_dir, recipe))
        yield trackers
        state = "finished"
    except (StoppedError, KeyboardInterrupt):
        state = "interrupted"
        raise
    finally:
        for tracker in trackers:
            tracker.close(state)


def flat(values: Values, before: str = "") -> dict[str, str]:
    """Nested values as `section.key`: text, in the length that MLflow takes."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{before}{key}.")
        else:
            found[before + key] = str(value)[:500]
    return found


def _kept(run_dir: Path, name: str, make: Callable[[], str]) -> str:
    path = run_dir / "trackers.json"
    ids: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    if name not in ids:
        write_json(path, ids := ids | {name: make()})
    return ids[name]
