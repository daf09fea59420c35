"""A run that is killed or stopped goes on as if it had never stopped: the same bits in the adapter."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from puna.artifacts import Dataset, file_digest
from puna.config.recipe import Recipe
from puna.train.reporting.record import Run
from puna.train.run import train
from train.tiny import make_recipe

pytestmark = pytest.mark.process

CHILD = """
import json, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from puna.artifacts import Dataset
from puna.errors import PunaError
from puna.spec import recipe as recipes
from puna.train.run import train

class Slow:
    def stage(self, name): pass
    def note(self, text): pass
    def advance(self, done, total, **figures): time.sleep(0.15 if figures else 0)

recipe, base, dataset, run = json.loads(sys.argv[1])
try:
    train(recipes.parse(recipe), Path(base), Dataset.open(Path(dataset)), Path(run), Slow(), device="cpu")
except PunaError as error:
    sys.exit(f"{error.message} | {error.hint}")
"""


@pytest.fixture(params=["adamw", "adamw_8bit"])
def recipe(request: pytest.FixtureRequest) -> Recipe:
    """Sixteen steps with dropout and noise, a checkpoint every third."""
    training = {"num_train_epochs": 4, "save_steps": 3, "logging_steps": 2, "eval_steps": 5, "optim": request.param}
    return make_recipe(training=training | {"neftune_noise_alpha": 5}, lora={"lora_dropout": 0.1})


@pytest.fixture
def child(recipe: Recipe, base_dir: Path, dataset: Dataset, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The run in a process of its own, slowed down, somewhere after its seventh step."""
    given = json.dumps([recipe.as_dict(), str(base_dir), str(dataset.path), str(tmp_path / "cut")])
    process = subprocess.Popen([sys.executable, "-c", CHILD, given], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any(line["step"] >= 8 for line in Run(tmp_path / "cut").metrics()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the run does not get to its eighth step"
        time.sleep(0.02)
    yield process
    process.kill()
    process.communicate()


def uncut(recipe: Recipe, base_dir: Path, dataset: Dataset, folder: Path) -> Run:
    train(recipe, base_dir, dataset, folder, device="cpu")
    return Run(folder)


def assert_same(cut: Run, whole: Run) -> None:
    for name in ("adapter_model.safetensors", "chat_rows.safetensors"):
        assert file_digest(cut.path / "adapter" / name) == file_digest(whole.path / "adapter" / name)
    keys = ("step", "loss", "eval_loss", "lr", "grad_norm")
    assert [[m.get(k) for k in keys] for m in cut.metrics()] == [[m.get(k) for k in keys] for m in whole.metrics()]
    assert cut.state == "finished"


def test_after_sigkill_the_resumed_run_ends_with_the_same_bits(
    child: subprocess.Popen[str], recipe: Recipe, base_dir: Path, dataset: Dataset, tmp_path: Path
) -> None:
    child.kill()
    child.wait()
    cut = Run(tmp_path / "cut")
    assert cut.state == "interrupted" and 6 <= int(cut.checkpoints[-1].name[5:]) < 16
    train(recipe, base_dir, dataset, cut.path, resume=True)
    assert_same(cut, uncut(recipe, base_dir, dataset, tmp_path / "whole"))


def test_sigterm_saves_a_checkpoint_and_exits_with_the_way_to_resume(
    child: subprocess.Popen[str], recipe: Recipe, base_dir: Path, dataset: Dataset, tmp_path: Path
) -> None:
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=60)
    cut = Run(tmp_path / "cut")
    assert child.returncode == 1 and "stopped by SIGTERM" in said and "--resume cut" in said
    assert cut.state == "interrupted" and int(cut.checkpoints[-1].name[5:]) == cut.step < 16
    train(recipe, base_dir, dataset, cut.path, resume=True)
    assert_same(cut, uncut(recipe, base_dir, dataset, tmp_path / "whole"))
