"""Checkpoints that resume bit-exactly: masters and optimiser state in safetensors, the rest in JSON, never a pickle."""

from __future__ import annotations

import errno
import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from puna.artifacts import sync, write_json
from puna.errors import MachineError, TrainError


@dataclass
class Position:
    """A run's position, and its sums so far.

    The data order and the dropout masks are drawn from (seed, step), so `step` is also the state of every
    random number generator that training uses.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    """Losses of the steps since the last log line."""
    loss_count: int = 0
    eval_loss_before: float | None = None
    eval_loss: float | None = None
    train_loss: float | None = None


def save(
    folder: Path, masters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer, at: Position, limit: int
) -> Path:
    """Write `folder`/step-NNNNNN whole or not at all, then remove the oldest ones over `limit`.

    Raises:
        MachineError: the disk is full; nothing half-written is kept.
    """
    folder.mkdir(exist_ok=True)
    draft, final = folder / f".draft-{uuid.uuid4().hex[:8]}", folder / f"step-{at.step:06d}"
    try:
        draft.mkdir()
        # The masters first: copying them waits for the queued steps, and bitsandbytes' paged states wait for nobody.
        save_file({name: p.detach().cpu().contiguous() for name, p in masters.items()}, draft / "masters.safetensors")
        tensors, numbers = _flatten(optimiser)
        save_file(tensors, draft / "optimiser.safetensors")
        write_json(draft / "state.json", {"position": asdict(at), "optimiser": numbers})
        for path in (*draft.iterdir(), draft):
            sync(path)
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
        sync(folder)
    except (OSError, SafetensorError) as error:
        # safetensors wraps the system's error: its text is all there is to tell a full disk by.
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            hint = "free some space and resume; the last whole checkpoint is kept"
            raise MachineError(f"no space left on the disk of {folder} for checkpoint {final.name}", hint) from error
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    for old in sorted(folder.glob("step-*"))[:-limit]:
        shutil.rmtree(old)
    return final


def load(path: Path, masters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> Position:
    """Put a checkpoint's masters and optimiser state back; returns where it was.

    Raises:
        TrainError: it does not belong to this model or optimiser, or is damaged.
    """
    try:
        saved = load_file(path / "masters.safetensors")
        tensors = load_file(path / "optimiser.safetensors")
        state: dict[str, Any] = json.loads((path / "state.json").read_text())
    except (OSError, SafetensorError, ValueError) as error:
        raise TrainError(f"checkpoint {path} cannot be read: {error}", f"remove {path} and resume again") from error
    if {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in masters.items()}:
        raise TrainError(f"checkpoint {path} is of another model or LoRA", "resume with the run's own recipe")
    with torch.no_grad():
        for name, parameter in masters.items():
            parameter.copy_(saved[name])
    _restore(optimiser, tensors, state["optimiser"])
    return Position(**state["position"])


def _flatten(optimiser: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Every value of the state under its path, e.g. `0/exp_avg`; bitsandbytes nests its own a level deeper."""
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, float] = {}

    def walk(path: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(f"{path}/{key}" if path else str(key), inner)
        elif isinstance(value, torch.Tensor):
            # A copy each: bitsandbytes shares one table among all parameters, safetensors shares nothing.
            tensors[path] = value.detach().to("cpu", copy=True).contiguous()
        else:
            assert isinstance(value, int | float), f"{path} is a {type(value).__name__}"
            numbers[path] = value

    walk("", optimiser.state_dict()["state"])
    return tensors, numbers


def _restore(optimiser: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Any]) -> None:
    state: dict[Any, Any] = {}
    for path, value in (*tensors.items(), *numbers.items()):
        index, *keys = path.split("/")
        place = state.setdefault(int(index), {})
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = value
    whole = optimiser.state_dict()
    optimiser.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
