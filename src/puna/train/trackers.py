"""Where else figures go when the recipe's `report_to` asks: one small class a tracker, one table."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from puna.errors import RecipeError


class Tracker(Protocol):
    """Takes figures, a step at a time."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Some figures of one step."""

    def close(self) -> None:
        """Nothing more will come."""


class _TensorBoard:
    def __init__(self, run_dir: Path, recipe: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run_dir / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, run_dir: Path, recipe: Mapping[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(project="puna", name=run_dir.name, id=run_dir.name, dir=str(run_dir),
                               config=dict(recipe), resume="allow")  # fmt: skip

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, run_dir: Path, recipe: Mapping[str, Any]) -> None:
        self._mlflow = importlib.import_module("mlflow")
        self._mlflow.set_experiment("puna")
        self._mlflow.start_run(run_name=run_dir.name)
        self._mlflow.log_dict(dict(recipe), "recipe.json")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


TRACKERS: dict[str, tuple[str, Callable[[Path, Mapping[str, Any]], Tracker]]] = {
    "tensorboard": ("tensorboard", _TensorBoard),
    "wandb": ("wandb", _Wandb),
    "mlflow": ("mlflow", _MLflow),
}
"""Recipe name -> (package that must be installed, what to make)."""


def check_trackers(names: Sequence[str]) -> None:
    """Say at once what is not installed.

    Raises:
        RecipeError: a tracker's package is missing.
    """
    for name in names:
        package = TRACKERS[name][0]
        if importlib.util.find_spec(package) is None:
            hint = f"uv pip install {package}, or remove it from training.report_to"
            raise RecipeError(f"training.report_to asks for {name}, which is not installed", hint)


def open_trackers(names: Sequence[str], run_dir: Path, recipe: Mapping[str, Any]) -> list[Tracker]:
    """The trackers that the recipe asks for."""
    check_trackers(names)
    return [TRACKERS[name][1](run_dir, recipe) for name in names]
