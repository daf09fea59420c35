"""Checkpoints: whole or absent, limited in number, exact, and honest about a full disk."""

import errno
from pathlib import Path

import pytest
import torch
from torch import nn

from puna.config.recipe import TrainingRecipe
from puna.errors import MachineError, TrainError
from puna.train import checkpoint
from puna.train.checkpoint import Position
from puna.train.optimiser import make_optimiser


def stepped(optim: str, steps: int = 3) -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
    """Masters after some steps; one is large enough for 8-bit states, one too small."""
    generator = torch.Generator().manual_seed(1)
    masters = {name: nn.Parameter(torch.randn(size, generator=generator)) for name, size in (("a", 5000), ("b", 10))}
    optimiser = make_optimiser(masters.values(), TrainingRecipe(optim=optim, learning_rate=1e-2), "cpu")
    advance(masters, optimiser, steps)
    return masters, optimiser


def advance(masters: dict[str, nn.Parameter], optimiser: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        for master in masters.values():
            master.grad = torch.sin(master.detach())
        optimiser.step()


@pytest.mark.parametrize("optim", ["adamw", "adamw_8bit", "paged_adamw_8bit"])
def test_going_on_from_a_checkpoint_gives_the_same_bits(optim: str, tmp_path: Path) -> None:
    masters, optimiser = stepped(optim)
    path = checkpoint.save(tmp_path / "c", masters, optimiser, Position(step=3, loss_sum=0.1 + 0.2), 2)
    advance(masters, optimiser, 4)
    again, fresh = stepped(optim, steps=0)
    at = checkpoint.load(path, again, fresh)
    assert (at.step, at.loss_sum) == (3, 0.1 + 0.2)
    advance(again, fresh, 4)
    assert all(torch.equal(again[name], masters[name]) for name in masters)


def test_the_oldest_ones_go_and_nothing_is_pickled(tmp_path: Path) -> None:
    masters, optimiser = stepped("adamw")
    for step in (1, 2, 3):
        checkpoint.save(tmp_path / "c", masters, optimiser, Position(step=step), 2)
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["step-000002", "step-000003"]
    names = {p.name for p in (tmp_path / "c" / "step-000003").iterdir()}
    assert names == {"masters.safetensors", "optimiser.safetensors", "state.json"}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), "safetensors"])
def test_a_full_disk_leaves_the_last_whole_checkpoint(
    error: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masters, optimiser = stepped("adamw")
    checkpoint.save(tmp_path / "c", masters, optimiser, Position(step=1), 2)

    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        if isinstance(error, OSError):
            raise error
        raise checkpoint.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(MachineError, match="no space left") as caught:
        checkpoint.save(tmp_path / "c", masters, optimiser, Position(step=2), 2)
    assert "resume" in caught.value.hint
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["step-000001"]


def test_a_checkpoint_of_another_model_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    masters, optimiser = stepped("adamw")
    path = checkpoint.save(tmp_path / "c", masters, optimiser, Position(step=1), 2)
    with pytest.raises(TrainError, match="another model"):
        checkpoint.load(path, {"a": masters["a"]}, optimiser)
    (path / "masters.safetensors").write_bytes(b"\x05")
    with pytest.raises(TrainError, match="cannot be read"):
        checkpoint.load(path, masters, optimiser)


def test_every_file_of_a_checkpoint_reaches_the_disk_before_its_name_does(tmp_path: Path, synced: list[Path]) -> None:
    masters, optimiser = stepped("adamw")
    final = checkpoint.save(tmp_path / "c", masters, optimiser, Position(step=1), 2)
    named = [path for path in synced if not path.name.startswith(".state.json.")]
    drafts = {path.parent for path in named[:-2]}
    assert {path.name for path in named[:-2]} == {path.name for path in final.iterdir()}
    assert len(drafts) == 1 and named[-2:] == [drafts.pop(), tmp_path / "c"] and final not in named
