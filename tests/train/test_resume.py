"""A run that is killed or stopped goes on as if it had never stopped: the same bits in the adapter."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from puna.artifacts import Dataset, file_digest
from puna.config.recipe import Recipe
from puna.train.reporting.record import Run
from puna.train.run import train
from train.forks import Forks
from train.tiny import make_recipe

pytestmark = pytest.mark.process


@pytest.fixture(scope="module", params=["adamw", "adamw_8bit"])
def recipe(request: pytest.FixtureRequest) -> Recipe:
    """Sixteen steps with dropout and noise, a checkpoint every third."""
    training = {"num_train_epochs": 4, "save_steps": 3, "logging_steps": 2, "eval_steps": 5, "optim": request.param}
    return make_recipe(training=training | {"neftune_noise_alpha": 5}, lora={"lora_dropout": 0.1})


@pytest.fixture
def child(recipe: Recipe, base_dir: Path, dataset: Dataset, tmp_path: Path) -> Iterator[Forks]:
    """The run in a process of its own, slowed down, somewhere after its seventh step."""
    given = [recipe.as_dict(), str(base_dir), str(dataset.path), str(tmp_path / "cut"), False, 0.15]
    child = Forks(tmp_path / "child.log", given)
    deadline = time.monotonic() + 120
    while not any(line["step"] >= 8 for line in Run(tmp_path / "cut").metrics()):
        assert child.running(), child.said
        assert time.monotonic() < deadline, "the run does not get to its eighth step"
        time.sleep(0.02)
    yield child
    child.kill()


@pytest.fixture(scope="module")
def whole(recipe: Recipe, base_dir: Path, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that nobody stops."""
    run = Run(tmp_path_factory.mktemp("whole") / "run")
    train(recipe, base_dir, dataset, run.path, device="cpu")
    return run


def assert_same(cut: Run, whole: Run) -> None:
    for name in ("adapter_model.safetensors", "chat_rows.safetensors"):
        assert file_digest(cut.path / "adapter" / name) == file_digest(whole.path / "adapter" / name)
    keys = ("step", "loss", "eval_loss", "lr", "grad_norm")
    assert [[m.get(k) for k in keys] for m in cut.metrics()] == [[m.get(k) for k in keys] for m in whole.metrics()]
    assert cut.state == "finished"


def test_after_sigkill_the_resumed_run_ends_with_the_same_bits(
    child: Forks, whole: Run, recipe: Recipe, base_dir: Path, dataset: Dataset, tmp_path: Path
) -> None:
    child.kill()
    cut = Run(tmp_path / "cut")
    assert cut.state == "interrupted" and 6 <= int(cut.checkpoints[-1].name[5:]) < 16
    train(recipe, base_dir, dataset, cut.path, resume=True)
    assert_same(cut, whole)


def test_sigterm_saves_a_checkpoint_and_exits_with_the_way_to_resume(
    child: Forks, whole: Run, recipe: Recipe, base_dir: Path, dataset: Dataset, tmp_path: Path
) -> None:
    child.processes[0].terminate()
    codes, said = child.wait(60), child.said
    cut = Run(tmp_path / "cut")
    assert codes == [1] and "stopped by SIGTERM" in said and "--resume cut" in said
    assert cut.state == "interrupted" and int(cut.checkpoints[-1].name[5:]) == cut.status.step < 16
    train(recipe, base_dir, dataset, cut.path, resume=True)
    assert_same(cut, whole)
