"""Adapters on disk: PEFT's file format, the chat tokens' rows beside it, the tokenizer that belongs to both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from puna.artifacts import Adapter, Dataset, drafting
from puna.config.recipe import Recipe
from puna.errors import TrainError
from puna.train.model.llama import ChatRows, Llama

WEIGHTS, CONFIG, CHAT = "adapter_model.safetensors", "adapter_config.json", "chat_rows.safetensors"


def peft_config(recipe: Recipe) -> dict[str, Any]:
    """adapter_config.json: what `PeftModel.from_pretrained` reads."""
    lora = recipe.lora
    alpha = int(lora.lora_alpha) if lora.lora_alpha == int(lora.lora_alpha) else lora.lora_alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": recipe.base,
        "revision": recipe.base_revision,
        "r": lora.lora_r,
        "lora_alpha": alpha,
        "lora_dropout": lora.lora_dropout,
        "bias": lora.bias,
        "target_modules": list(lora.target_modules),
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": lora.use_rslora,
    }


def write_adapter(model: Llama, recipe: Recipe, dataset: Dataset, run_dir: Path, metrics: dict[str, Any]) -> Adapter:
    """Write the adapter artifact at `run_dir`/adapter; masters are kept in float32, without rounding.

    Raises:
        MachineError: the disk is full.
    """
    with drafting("adapter", run_dir, name="adapter") as draft:
        masters = {name: p.detach().cpu().contiguous() for name, p in model.named_masters().items()}
        pairs = {name: tensor for name, tensor in masters.items() if not name.startswith("chat.")}
        save_file(pairs, draft.path / WEIGHTS, metadata={"format": "pt"})
        (draft.path / CONFIG).write_text(json.dumps(peft_config(recipe), indent=2) + "\n")
        if model.chat is not None:
            embed, head = model.chat.embed.detach().cpu(), model.chat.head.detach().cpu().clone()
            rows = {"embed": embed.contiguous(), "head": head, "token_ids": torch.tensor(model.chat.ids)}
            save_file(rows, draft.path / CHAT)
        shutil.copytree(dataset.path / "tokenizer", draft.path / "tokenizer")
        base = f"hub:{recipe.base}@{recipe.base_revision}" if recipe.base_revision else recipe.base
        draft.made_from = {"base": base, "dataset": dataset.digest, "recipe": recipe.digest}
        draft.config = recipe.as_dict()
        draft.metrics = metrics
    assert draft.final is not None
    return Adapter.open(draft.final)


def load_into(model: Llama, adapter: Adapter) -> None:
    """Put an adapter's LoRA pairs and chat rows on a base.

    Raises:
        TrainError: the adapter does not fit this base.
    """
    config = json.loads((adapter.path / CONFIG).read_text())
    tensors = load_file(adapter.path / WEIGHTS)
    for linear in model.linears:
        prefix = f"base_model.model.{linear.place}.lora_"
        a, b = tensors.pop(f"{prefix}A.weight", None), tensors.pop(f"{prefix}B.weight", None)
        if a is None or b is None:
            continue
        outputs, inputs = model.shape.projections()[linear.place.rsplit(".", 1)[1]]
        if (b.shape[0], a.shape[1]) != (outputs, inputs):
            raise TrainError(f"{linear.place}: the adapter is of another size than the base", "use its own base")
        pair = a.to(model.device), b.to(model.device)
        linear.add_lora(*pair, config["lora_alpha"], config.get("use_rslora", False))
    if tensors:
        raise TrainError(f"the adapter has {len(tensors)} tensors without a place in this base", "use its own base")
    if (adapter.path / CHAT).exists():
        rows = load_file(adapter.path / CHAT)
        embed, head = (rows[key].to(model.device) for key in ("embed", "head"))
        model.chat = ChatRows(rows["token_ids"].tolist(), embed, None if model.shape.tied else head)
