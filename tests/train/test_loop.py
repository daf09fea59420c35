"""The loop reads figures when they are needed, and nothing but their delay depends on when that is."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from puna.artifacts import Dataset, file_digest
from puna.config.recipe import Recipe
from puna.errors import TrainError
from puna.tokens import TokenRows
from puna.train import loop
from puna.train.checkpoint import Position
from puna.train.loop import Meter, Stepped, TrainingJob, one_step, train_steps
from puna.train.optimiser import make_optimiser
from puna.train.planning.plan import plan
from puna.train.reporting.record import Run
from puna.train.run import build_model, train
from puna.train.stopping import StoppedError, StopSignal
from train.tiny import make_recipe


class Watch:
    """A progress that remembers the losses that it was shown, and may be slow."""

    def __init__(self, delay_s: float = 0.0, seen: Callable[[int], None] = lambda done: None) -> None:
        self.losses: list[float] = []
        self.delay_s, self.seen = delay_s, seen

    def stage(self, name: str) -> None: ...

    def note(self, text: str) -> None: ...

    def advance(self, done: int, total: int, **figures: float) -> None:
        if figures:
            self.losses.append(figures["loss"])
        self.seen(done)
        time.sleep(self.delay_s)


def make_job(
    recipe: Recipe, base_dir: Path, dataset: Dataset, folder: Path, watch: Watch, device: str = "cpu"
) -> TrainingJob:
    made = plan(recipe, base_dir, dataset, device)
    model = build_model(made, recipe, base_dir, dataset, watch)
    masters = model.named_masters()
    optimiser = make_optimiser(masters.values(), recipe.training, made.device)
    folder.mkdir()
    rows = {split: TokenRows.load(dataset, split) for split in ("train", "test")}
    return TrainingJob(recipe, made, Run(folder), model, masters, optimiser, rows["train"], rows["test"], watch)


def stepped(step: int, loss: float, norm: float = 1.0) -> Stepped:
    return Stepped(step, 100, 10, 1e-3, torch.tensor([loss * 10, norm]))


def test_figures_read_late_are_those_read_at_once(
    base_dir: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"num_train_epochs": 4, "logging_steps": 4, "eval_steps": 6, "save_steps": 5}
    recipe, early, late = make_recipe(training=training), Watch(), Watch()
    train(recipe, base_dir, dataset, tmp_path / "early", early, device="cpu")
    monkeypatch.setattr(loop, "reading_is_free", lambda device: False)
    train(recipe, base_dir, dataset, tmp_path / "late", late, device="cpu")
    same = ("step", "loss", "eval_loss", "lr", "grad_norm")
    metrics = [[[m.get(k) for k in same] for m in Run(tmp_path / n).metrics()] for n in ("early", "late")]
    assert metrics[0] == metrics[1]
    name = "adapter/adapter_model.safetensors"
    assert file_digest(tmp_path / "early" / name) == file_digest(tmp_path / "late" / name)
    # Read at 4 (a log line), 5 (a checkpoint), 6 (held-out loss), 8, 10, 12, 15 and 16; in between, the last known.
    known = [4, 5, 6, 6, 8, 8, 10, 10, 12, 12, 12, 15, 16]
    assert late.losses == [early.losses[step - 1] for step in known]


def test_a_meter_sums_what_it_reads_and_forgets_it_with_the_log_line() -> None:
    meter, at = Meter(unread=[stepped(1, 2.0), stepped(2, 4.0, norm=3.0)]), Position()
    meter.started -= 2.0
    meter.read(at)
    assert (at.loss_sum, at.loss_count, meter.unread) == (6.0, 2, [])
    assert meter.known["loss"] == 4.0 and meter.known["grad_norm"] == 3.0
    assert meter.known["tokens_per_s"] == pytest.approx(100, rel=0.01) and at.seconds == pytest.approx(2, rel=0.01)
    line = meter.line(at)
    assert line["loss"] == 3.0 == at.train_loss and line["tokens_per_s"] == pytest.approx(100, rel=0.01)
    meter.unread.append(stepped(3, 1.0))
    meter.start()
    meter.started -= 0.5
    meter.read(at)
    assert meter.known["tokens_per_s"] == pytest.approx(200, rel=0.02) and at.loss_count == 1


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (1.0, math.inf)])
def test_the_first_step_that_diverged_is_named_however_late_it_is_read(loss: float, norm: float) -> None:
    meter = Meter(unread=[stepped(7, 1.0), stepped(8, loss, norm), stepped(9, math.nan)])
    with pytest.raises(TrainError, match=r"step 8: loss .*diverged"):
        meter.read(Position())


def test_a_diverged_run_leaves_no_checkpoint_of_it(
    base_dir: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "reading_is_free", lambda device: False)
    training = {"learning_rate": 1e30, "max_grad_norm": 0, "warmup_steps": 0, "save_steps": 4, "logging_steps": 50}
    with pytest.raises(TrainError, match="diverged"):
        train(make_recipe(training=training), base_dir, dataset, tmp_path / "run", device="cpu")
    assert Run(tmp_path / "run").checkpoints == []


def test_speed_counts_steps_and_not_what_is_done_between_them(base_dir: Path, dataset: Dataset, tmp_path: Path) -> None:
    recipe = make_recipe(training={"num_train_epochs": 1})
    started = time.perf_counter()
    job = make_job(recipe, base_dir, dataset, tmp_path / "run", Watch(delay_s=0.2))
    at = train_steps(job, Position(), StopSignal())
    assert at.step == 4 and 0 < at.seconds < time.perf_counter() - started - 4 * 0.2
    lines = [m for m in job.run.metrics() if "loss" in m]
    spent = sum(tokens / m["tokens_per_s"] for m, tokens in zip(lines, tokens_of_steps(job), strict=True))
    assert spent == pytest.approx(at.seconds, rel=0.01)


def tokens_of_steps(job: TrainingJob) -> list[int]:
    order = [loop.step_rows(len(job.train), 6, step, job.recipe.training.seed) for step in range(4)]
    return [int(job.train.lengths[rows].sum()) for rows in order]


def test_a_signal_between_two_readings_is_heard_at_the_next_step(
    base_dir: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "reading_is_free", lambda device: False)
    stop = StopSignal()
    recipe = make_recipe(training={"num_train_epochs": 4, "logging_steps": 50, "eval_steps": 50, "save_steps": 50})

    def ask(done: int) -> None:
        stop.signal = 15 if done == 3 else 0

    job = make_job(recipe, base_dir, dataset, tmp_path / "run", Watch(seen=ask))
    with pytest.raises(StoppedError, match="SIGTERM after step 3 of 16"):
        train_steps(job, Position(), stop)
    saved = json.loads((job.run.checkpoints[-1] / "state.json").read_text())["position"]
    assert (saved["step"], saved["loss_count"]) == (3, 3) and saved["loss_sum"] > 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("optim", ["adamw", "adamw_8bit", "paged_adamw_8bit"])
def test_a_step_waits_for_no_gpu(optim: str, base_dir: Path, dataset: Dataset, tmp_path: Path) -> None:
    recipe = make_recipe(training={"optim": optim, "tokens_per_batch": 64}, lora={"lora_dropout": 0.1},
                         quantization={"bnb_4bit_compute_dtype": "bfloat16"})  # fmt: skip
    job, at = make_job(recipe, base_dir, dataset, tmp_path / "run", Watch(), "cuda"), Position()
    one_step(job, at)  # kernels are compiled and states made
    torch.cuda.set_sync_debug_mode("error")
    try:
        done = [one_step(job, at) for _ in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(math.isfinite(value) for step in done for value in step.loss_and_norm.tolist())


def test_gradients_of_float16_are_those_of_float32_whatever_the_loss_was_scaled_by(
    base_dir: Path, dataset: Dataset, tmp_path: Path
) -> None:
    found = []
    for name in ("float32", "float16"):
        job = make_job(make_recipe(), base_dir, dataset, tmp_path / name, Watch())
        job = replace(job, plan=replace(job.plan, compute_dtype=name))
        rows = [job.train[n] for n in range(6)]
        total = loop.accumulate(job, rows, 0)
        found.append((float(total), {n: m.grad for n, m in job.masters.items() if m.grad is not None}))
    (loss, gradients), (scaled_loss, scaled) = found
    assert scaled_loss == pytest.approx(loss) and scaled.keys() == gradients.keys() and gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(scaled[name], gradient)
