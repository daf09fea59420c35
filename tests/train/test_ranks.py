"""Several processes train one run, as one process would: the same losses and masters, one run folder, one end."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from puna.artifacts import Dataset, file_digest
from puna.config.recipe import Recipe
from puna.train.ranks import Ranks
from puna.train.reporting.record import Run
from puna.train.run import train
from train import rank
from train.forks import Forks
from train.tiny import make_recipe


class Together:
    """A run trained by several processes."""

    def __init__(self, folder: Path, base_dir: Path, dataset: Dataset) -> None:
        self.folder, self.base_dir, self.dataset = folder, base_dir, dataset
        self.started: list[Forks] = []

    def torchrun(self, recipe: Recipe, run: Path, world: int = 2) -> Run:
        """Under torchrun, to its end."""
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        argv = [*command, rank.__file__, json.dumps(self._given(recipe, run))]
        done = subprocess.run(argv, env=env, text=True, capture_output=True, check=False, timeout=180)
        assert done.returncode == 0, done.stdout + done.stderr
        return Run(run)

    def start(self, recipe: Recipe, run: Path, *, resume: bool = False, slow_s: float = 0, breaks: str = "") -> Forks:
        """Two ranks without the wait for torchrun's imports and theirs."""
        log = self.folder / f"ranks-{len(self.started)}.log"
        self.started.append(Forks(log, [*self._given(recipe, run), resume, slow_s, breaks], world=2))
        return self.started[-1]

    def finish(self, recipe: Recipe, run: Path, resume: bool = False) -> Run:
        """The same, to its end."""
        forks = self.start(recipe, run, resume=resume)
        assert forks.wait(180) == [0, 0], forks.said
        return Run(run)

    def _given(self, recipe: Recipe, run: Path) -> list[Any]:
        return [recipe.as_dict(), str(self.base_dir), str(self.dataset.path), str(run)]


@pytest.fixture
def together(tmp_path: Path, base_dir: Path, dataset: Dataset) -> Iterator[Together]:
    """Ranks on the tiny base; whatever is still running is stopped."""
    made = Together(tmp_path, base_dir, dataset)
    yield made
    for forks in made.started:
        forks.kill()


def masters(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoints[-1] / "masters.safetensors")


def losses(run: Run) -> list[float]:
    return [line[key] for line in run.metrics() for key in ("loss", "eval_loss", "grad_norm") if key in line]


def wait_for_step(run: Run, step: int, forks: Forks) -> None:
    deadline = time.monotonic() + 120
    while not any(line["step"] >= step for line in run.metrics()):
        assert forks.running(), forks.said
        assert time.monotonic() < deadline, f"the run does not get to step {step}"
        time.sleep(0.02)


def test_a_process_that_torchrun_did_not_start_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    alone, tensor = Ranks.here(), torch.ones(3)
    alone.sum([tensor])
    alone.barrier()
    alone.leave()
    assert alone == Ranks() and alone.leads and tensor.tolist() == [1, 1, 1]
    assert alone.lead(lambda: 7) == alone.largest(7) == alone.broadcast(7) == 7
    assert (alone.device("cuda"), Ranks(3, 4, 1).device("cuda"), Ranks(3, 4, 1).device("cpu")) == (
        "cuda", "cuda:1", "cpu",
    )  # fmt: skip
    monkeypatch.setenv("WORLD_SIZE", "8")  # some clusters set it for every job
    assert Ranks.here() == Ranks()


@pytest.mark.process
def test_two_ranks_learn_what_one_process_learns(
    together: Together, base_dir: Path, dataset: Dataset, tmp_path: Path
) -> None:
    # Twenty-four rows, 23 a step: an epoch's second step has one row for two ranks. The budget makes several passes.
    training: dict[str, Any] = {"per_device_train_batch_size": 23, "gradient_accumulation_steps": 1, "max_steps": 9}
    recipe = make_recipe(training=training | {"tokens_per_batch": 64})
    train(recipe, base_dir, dataset, tmp_path / "one", device="cpu")
    one, two = Run(tmp_path / "one"), together.torchrun(recipe, tmp_path / "two")
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    theirs = masters(two)
    for name, master in masters(one).items():
        assert (theirs[name] - master).norm() <= 1e-5 * master.norm(), name
    assert two.state == "finished" and two.adapter is not None and two.samples[0]["after"]
    assert [line["step"] for line in two.metrics()] == [line["step"] for line in one.metrics()]
    figures = [run.adapter.manifest.metrics for run in (one, two) if run.adapter is not None]
    assert figures[0]["tokens"] == figures[1]["tokens"] and figures[0]["steps"] == figures[1]["steps"]


@pytest.mark.process
def test_a_signal_to_one_rank_stops_all_at_one_step_and_resuming_gives_the_same_bits(
    together: Together, tmp_path: Path
) -> None:
    training = {"num_train_epochs": 4, "save_steps": 5, "optim": "adamw_8bit"}
    recipe = make_recipe(training=training, lora={"lora_dropout": 0.1})
    whole, cut = together.finish(recipe, tmp_path / "whole"), Run(tmp_path / "cut")
    forks = together.start(recipe, cut.path, slow_s=0.2)
    wait_for_step(cut, 3, forks)
    forks.processes[1].terminate()
    codes, said, step = forks.wait(60), forks.said, cut.status.step
    for number in (0, 1):
        assert f"said {number} stopped by SIGTERM after step {step} of 16" in said
    assert codes == [1, 1] and cut.state == "interrupted" and "SIGTERM" in cut.status.error
    assert 3 <= step < 16 and cut.checkpoints[-1].name == f"step-{step:06d}"
    together.finish(recipe, cut.path, resume=True)
    for name in ("adapter_model.safetensors", "chat_rows.safetensors"):
        assert file_digest(cut.path / "adapter" / name) == file_digest(whole.path / "adapter" / name)
    assert losses(cut) == losses(whole)


@pytest.mark.process
@pytest.mark.parametrize(
    ("breaks", "sentence", "codes"),
    [
        ("rank 1 dies", "said 0 rank 0: another process of this run has ended", [1, 9]),
        ("rank 0's disk is full", "said 1 no space left", [1, 1]),
    ],
)
def test_when_one_rank_fails_all_end(
    breaks: str, sentence: str, codes: list[int], together: Together, tmp_path: Path
) -> None:
    forks = together.start(make_recipe(), tmp_path / "run", breaks=breaks)
    assert forks.wait(90) == codes and sentence in forks.said
    assert Run(tmp_path / "run").state in ("failed", "interrupted") and Run(tmp_path / "run").adapter is None
