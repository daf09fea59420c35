"""Whole runs on a tiny base: they learn, whatever the split; what they leave behind; how they fail."""

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest
import torch

from puna.artifacts import Dataset
from puna.errors import ConflictError, MachineError, RecipeError, TrainError
from puna.tokens import TokenRows
from puna.train import loop
from puna.train.planning.plan import plan
from puna.train.reporting import trackers
from puna.train.reporting.record import Run
from puna.train.run import build_model, train
from puna.train.trained import load_base, load_trained
from train.tiny import make_recipe, write_base


class Watch:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []
        self.steps: list[tuple[int, int, dict]] = []

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def advance(self, done: int, total: int, **figures: float) -> None:
        if figures:
            self.steps.append((done, total, figures))

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_run_learns_and_leaves_what_the_contract_names(base_dir: Path, dataset: Dataset, tmp_path: Path) -> None:
    recipe, watch = make_recipe(training={"num_train_epochs": 6, "logging_steps": 2, "eval_steps": 5}), Watch()
    adapter = train(recipe, base_dir, dataset, tmp_path / "run", watch, device="cpu")
    run, rows = Run(tmp_path / "run"), TokenRows.load(dataset, "test")
    assert run.state == "finished" and (run.status.step, run.status.steps) == (24, 24)
    assert watch.stages == ["plan", "load base", "train", "write adapter", "report"]
    assert [done for done, _, _ in watch.steps] == list(range(1, 25)) and "loss" in watch.steps[0][2]
    assert any("their rows start at the mean" in note for note in watch.notes)
    assert set(json.loads((run.path / "plan.json").read_text())["reasons"]) <= set(watch.notes)
    metrics = run.metrics()
    assert [m["step"] for m in metrics if "eval_loss" in m] == [0, 5, 10, 15, 20, 24]
    assert [m["step"] for m in metrics if "loss" in m] == list(range(2, 25, 2))
    assert metrics[-1]["eval_loss"] < metrics[0]["eval_loss"] - 0.1
    for name in ("recipe.yaml", "recipe.json", "plan.json", "status.json", "loss.png", "report.html", "samples.json"):
        assert (run.path / name).stat().st_size > 10
    assert (run.dataset, run.base) == (dataset.digest, str(base_dir))
    figures = adapter.manifest.metrics
    assert figures["eval_loss"] == metrics[-1]["eval_loss"] and figures["eval_loss_before"] == metrics[0]["eval_loss"]
    assert adapter.manifest.made_from == {"base": "tiny", "dataset": dataset.digest, "recipe": recipe.digest}
    held_out = [rows[i] for i in range(len(rows))]
    assert load_trained(adapter, base_dir, recipe, "cpu").loss(held_out) == pytest.approx(
        figures["eval_loss"], rel=1e-5
    )
    assert load_base(base_dir, recipe, dataset, "cpu").loss(held_out) == pytest.approx(
        figures["eval_loss_before"], rel=1e-5
    )
    sample = run.samples[0]
    assert sample["prompt"] == "count on" and sample["reference"] == "w23" and sample["before"] != sample["after"]


def test_noise_on_embeddings_is_in_no_evaluation(base_dir: Path, dataset: Dataset, tmp_path: Path) -> None:
    metrics, rows = {}, TokenRows.load(dataset, "test")
    for alpha in (None, 5):
        recipe = make_recipe(training={"neftune_noise_alpha": alpha, "max_steps": 3})
        adapter = train(recipe, base_dir, dataset, tmp_path / f"run-{alpha}", device="cpu")
        metrics[alpha] = Run(tmp_path / f"run-{alpha}").metrics()
    plain, noisy = metrics.values()
    assert noisy[0]["eval_loss"] == plain[0]["eval_loss"]
    assert all(a["loss"] != b["loss"] for a, b in zip(noisy, plain, strict=True) if "loss" in a)
    held_out = load_trained(adapter, base_dir, recipe, "cpu").loss([rows[i] for i in range(len(rows))])
    assert held_out == pytest.approx(noisy[-1]["eval_loss"], rel=1e-5)


@pytest.mark.parametrize("compute", ["float32", "bfloat16", "float16"])
def test_gradients_do_not_depend_on_how_a_step_is_split(compute: str, base_dir: Path, dataset: Dataset) -> None:
    recipe, gradients = make_recipe(), []
    made = dataclasses.replace(plan(recipe, base_dir, dataset, "cpu"), compute_dtype=compute)
    rows = TokenRows.load(dataset, "train")
    for budget in (40, 100, 4096):
        split = dataclasses.replace(made, tokens_per_batch=budget)
        model = build_model(split, recipe, base_dir, dataset, Watch())
        masters = model.named_masters()
        optimiser = torch.optim.SGD(masters.values())
        job = loop.TrainingJob(recipe, split, Run(Path("unused")), model, masters, optimiser, rows, rows, Watch())
        loss = float(loop.accumulate(job, [rows[i] for i in range(6)], 0))
        gradients.append((loss, [p.grad for p in masters.values()]))
    tolerance = 1e-6 if compute == "float32" else 2e-2
    for loss, grads in gradients[1:]:
        assert loss == pytest.approx(gradients[0][0], rel=tolerance)
        for a, b in zip(grads, gradients[0][1], strict=True):
            assert (a - b).norm() <= tolerance * 10 * b.norm() + 1e-8


def test_chat_rows_are_trained_and_the_others_are_not(base_dir: Path, dataset: Dataset, tmp_path: Path) -> None:
    recipe = make_recipe(training={"max_steps": 4})
    adapter = train(recipe, base_dir, dataset, tmp_path / "run", device="cpu")
    before, after = (
        load_base(base_dir, recipe, dataset, "cpu").model,
        load_trained(adapter, base_dir, recipe, "cpu").model,
    )
    assert before.chat is not None and after.chat is not None
    assert after.chat.ids == [290, 291]
    assert (after.chat.embed - before.chat.embed).abs().min(1).values.max() > 0
    assert (after.chat.head - before.chat.head).abs().max() > 1e-3
    plain = make_recipe(training={"max_steps": 1}, lora={"train_chat_tokens": False})
    without = train(plain, base_dir, dataset, tmp_path / "plain", device="cpu")
    assert not (without.path / "chat_rows.safetensors").exists()


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit"])
def test_eight_bit_optimisers_and_tied_bases_train(optim: str, dataset: Dataset, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tie_word_embeddings=True)
    recipe = make_recipe(training={"optim": optim, "max_steps": 8}, lora={"lora_dropout": 0.1})
    figures = train(recipe, base, dataset, tmp_path / "run", device="cpu").manifest.metrics
    assert figures["eval_loss"] < figures["eval_loss_before"]


def test_a_diverging_run_stops_and_says_where(base_dir: Path, dataset: Dataset, tmp_path: Path) -> None:
    recipe = make_recipe(training={"learning_rate": 1e30, "max_grad_norm": 0, "warmup_steps": 0})
    with pytest.raises(TrainError, match="diverged") as caught:
        train(recipe, base_dir, dataset, tmp_path / "run", device="cpu")
    assert "learning_rate" in caught.value.hint
    run = Run(tmp_path / "run")
    assert run.state == "failed" and "diverged" in run.status.error and run.adapter is None


def test_a_run_that_has_begun_is_not_begun_again(base_dir: Path, dataset: Dataset, tmp_path: Path) -> None:
    recipe = make_recipe(training={"max_steps": 1})
    adapter = train(recipe, base_dir, dataset, tmp_path / "run", device="cpu")
    with pytest.raises(ConflictError, match="begun already"):
        train(recipe, base_dir, dataset, tmp_path / "run", device="cpu")
    assert train(recipe, base_dir, dataset, tmp_path / "run", resume=True).digest == adapter.digest
    (tmp_path / "run" / "adapter").rename(tmp_path / "gone")
    with pytest.raises(ConflictError, match="another recipe"):
        train(make_recipe(training={"max_steps": 2}), base_dir, dataset, tmp_path / "run", resume=True)


def test_a_run_that_ended_before_its_first_checkpoint_is_resumed_from_its_beginning(
    base_dir: Path, dataset: Dataset, tmp_path: Path
) -> None:
    run, recipe, watch = Run(tmp_path / "run"), make_recipe(training={"max_steps": 1}), Watch()
    run.path.mkdir()
    run.write_recipe(recipe)
    run.begin(1)
    run.end("failed", "the machine went down")
    train(recipe, base_dir, dataset, run.path, watch, resume=True, device="cpu")
    assert run.state == "finished" and [done for done, _, _ in watch.steps] == [1]


def test_a_tracker_that_is_not_installed_is_named_before_anything_runs(
    base_dir: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="wandb, which is not installed"):
        train(make_recipe(training={"report_to": ["wandb"]}), base_dir, dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_metrics_reach_the_trackers(base_dir: Path, dataset: Dataset, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    seen: list[tuple[int, dict]] = []

    class Tracker:
        def __init__(self, run_dir: Path, recipe: dict) -> None:
            self.recipe = recipe

        def log(self, step: int, values: dict) -> None:
            seen.append((step, dict(values)))

        def close(self, state: str = "finished") -> None:
            seen.append((-1, {}))

    (tmp_path / "wandb.py").touch()  # a package of that name must be there, and is not asked
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(trackers.TRACKERS, "wandb", Tracker)
    train(
        make_recipe(training={"report_to": ["wandb"], "max_steps": 2}),
        base_dir,
        dataset,
        tmp_path / "run",
        device="cpu",
    )
    assert [step for step, _ in seen] == [0, 1, 2, -1] and {"loss", "lr", "eval_loss"} <= set(seen[2][1])
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["steps"] == 2


def test_a_run_that_another_process_trains_is_left_alone(base_dir: Path, dataset: Dataset, tmp_path: Path) -> None:
    Run(tmp_path).begin(3)
    Run(tmp_path).write_status(pid=os.getppid(), process_started="")
    with pytest.raises(ConflictError, match=f"process {os.getppid()}"):
        train(make_recipe(), base_dir, dataset, tmp_path, resume=True, device="cpu")


def test_a_disk_that_fills_up_is_named(
    base_dir: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(loop, "log", full)
    with pytest.raises(MachineError, match="no space left") as caught:
        train(make_recipe(), base_dir, dataset, tmp_path / "run", device="cpu")
    assert "--resume run" in caught.value.hint and Run(tmp_path / "run").state == "failed"
