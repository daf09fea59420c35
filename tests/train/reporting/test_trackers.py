"""Trackers, each against its real package where that is installed: figures, how a run ends, and how it goes on."""

import importlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from puna.errors import RecipeError
from puna.train.reporting import trackers
from puna.train.reporting.record import Run
from puna.train.reporting.trackers import check_trackers, flat, tracking
from puna.train.stopping import StoppedError
from train.tiny import make_recipe


def needs(package: str) -> Any:
    """The package, which is no part of the development set: trackers are the user's to install."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed: uv pip install {package} runs this test too")
    return importlib.import_module(package)


def run_in(folder: Path) -> Run:
    run = Run(folder / "tiny-1")
    run.path.mkdir()
    run.write_recipe(make_recipe())
    return run


def two_processes(name: str, run: Run) -> None:
    """Steps 1 to 5, stopped with a checkpoint at 3; then 4 to 6."""
    with pytest.raises(StoppedError), tracking([name], run.path, run.recipe) as (first,):
        for step in range(1, 6):
            first.log(step, {"loss": 10.0 - step})
        (run.path / "checkpoints" / "step-000003").mkdir(parents=True)
        raise StoppedError("stopped")
    with tracking([name], run.path, run.recipe) as (second,):
        for step in range(4, 7):
            second.log(step, {"loss": 10.0 - step})


LOSSES = [(step, 10.0 - step) for step in range(1, 7)]


@pytest.mark.filterwarnings("ignore")  # the package's own
def test_tensorboard_shows_each_step_of_a_resumed_run_once(tmp_path: Path) -> None:
    needs("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = run_in(tmp_path)
    two_processes("tensorboard", run)
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == LOSSES
    assert "recipe/text_summary" in events.Tags()["tensors"]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_keeps_one_run_with_its_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = needs("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = run_in(tmp_path)
    two_processes("mlflow", run)
    client = mlflow.MlflowClient()
    (made,) = client.search_runs([client.get_experiment_by_name("puna").experiment_id])
    assert (made.info.run_name, made.info.status) == ("tiny-1", "FINISHED")
    assert made.data.params["lora.lora_r"] == "4"
    history = {m.step: m.value for m in client.get_metric_history(made.info.run_id, "loss")}
    assert sorted(history.items()) == LOSSES
    with pytest.raises(ValueError), tracking(["mlflow"], run.path, run.recipe):
        raise ValueError
    assert client.get_run(made.info.run_id).info.status == "FAILED"


@pytest.mark.filterwarnings("ignore")
def test_wandb_goes_on_under_the_same_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = run_in(tmp_path)
    two_processes("wandb", run)
    run_id = json.loads((run.path / "trackers.json").read_text())["wandb"]
    folders = sorted((run.path / "wandb").glob(f"offline-run-*-{run_id}"))
    assert folders and all(list(f.glob("*.wandb")) for f in folders)
    assert len({f.name.rsplit("-", 1)[1] for f in (run.path / "wandb").glob("offline-run-*")}) == 1


class Noted:
    """A tracker that notes what it is told, and fails from a step on."""

    def __init__(self, fails_at: int = 1_000) -> None:
        self.steps: list[int] = []
        self.closed: list[str] = []
        self.fails_at = fails_at

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self.fails_at:
            raise ConnectionError("no route")
        self.steps.append(step)

    def close(self, state: str = "finished") -> None:
        self.closed.append(state)


def noted(monkeypatch: pytest.MonkeyPatch, fails_at: int = 1_000) -> Noted:
    tracker = Noted(fails_at)
    monkeypatch.setitem(trackers.TRACKERS, "noted", lambda run_dir, recipe: tracker)
    return tracker


@pytest.mark.parametrize(
    ("error", "state"),
    [(None, "finished"), (StoppedError("stop"), "interrupted"), (KeyboardInterrupt(), "interrupted"),
     (OSError("disk"), "failed"), (SystemExit(1), "failed")],
)  # fmt: skip
def test_a_tracker_is_closed_however_the_run_ends(
    error: BaseException | None, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = noted(monkeypatch)
    try:
        with tracking(["noted"], tmp_path, {}):
            if error:
                raise error
    except BaseException as raised:  # noqa: BLE001 - asserted to be the one that was raised
        assert raised is error
    assert tracker.closed == [state]


def test_a_tracker_that_fails_costs_its_figures_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = noted(monkeypatch, fails_at=3)
    with tracking(["noted"], tmp_path, {}) as (opened,):
        opened.log(1, {})
        opened.log(2, {})
        with pytest.warns(UserWarning, match="noted takes no figures from step 3 on: no route; metrics.jsonl"):
            opened.log(3, {})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            opened.log(4, {})
    assert tracker.steps == [1, 2]


def test_a_tracker_that_does_not_open_is_said_and_the_others_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(run_dir: Path, recipe: Mapping[str, Any]) -> Any:
        raise PermissionError("no API key")

    tracker = noted(monkeypatch)
    monkeypatch.setitem(trackers.TRACKERS, "refusing", refuse)
    with (
        pytest.raises(RecipeError, match="refusing, which does not open: no API key") as caught,
        tracking(["noted", "refusing"], tmp_path, {}),
    ):
        pytest.fail("it opened")
    assert "login" in caught.value.hint and tracker.closed == ["failed"]


def test_a_missing_package_is_named_even_where_a_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "absent_tracker").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RecipeError, match="absent_tracker, which is not installed") as caught:
        check_trackers(["absent_tracker"])
    assert "uv pip install absent_tracker" in caught.value.hint


def test_a_recipe_is_flat_for_trackers_that_know_no_sections() -> None:
    assert flat({"a": {"b": 1, "c": {"d": [2]}}, "e": "x" * 900}) == {"a.b": "1", "a.c.d": "[2]", "e": "x" * 500}
