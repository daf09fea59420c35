"""Base weights, LoRA and chat rows into the model, a tensor at a time; the trained part out of it as a PEFT adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from puna.artifacts import Adapter, Dataset, drafting
from puna.config.recipe import Recipe
from puna.errors import TrainError
from puna.progress import Progress, Silent
from puna.train.model.block import Layer
from puna.train.model.llama import ChatRows, Llama
from puna.train.model.lora import LoraLinear, fresh_pair
from puna.train.model.quant import freeze
from puna.train.model.shape import ModelShape, Weights, read_shape, weight_name

UNTRAINED_NORM = 0.1
"""A row whose norm is under this share of the median norm was never trained (Llama-3's reserved rows are ~0)."""


@dataclass(frozen=True)
class Choices:
    """Device and number format of the base's weights."""

    device: str
    dtype: torch.dtype
    nf4: bool = True
    double: bool = True
    resident: bool = True


def load_llama(base_dir: Path, choices: Choices, progress: Progress = Silent()) -> Llama:
    """The base without anything to train.

    Raises:
        TrainError: the folder does not hold a whole Llama-architecture model.
    """
    shape, weights = read_shape(base_dir), Weights(base_dir)
    layers = []
    for index in range(shape.layers):
        layers.append(_layer(index, shape, weights, choices))
        progress.advance(index + 1, shape.layers)

    embed = _dense("model.embed_tokens.weight", weights, choices)
    if embed.shape != (shape.vocab, shape.hidden):
        raise TrainError(f"the embedding is {tuple(embed.shape)}, config.json says {(shape.vocab, shape.hidden)}")
    head = embed if shape.tied else _dense("lm_head.weight", weights, choices)
    return Llama(shape, layers, embed, _dense("model.norm.weight", weights, choices), head)


def _dense(name: str, weights: Weights, choices: Choices) -> torch.Tensor:
    tensor: torch.Tensor = weights.tensor(name)
    return tensor.to(choices.device, choices.dtype)


def _layer(index: int, shape: ModelShape, weights: Weights, choices: Choices) -> Layer:
    linears = {}
    for projection, size in shape.projections().items():
        place = weight_name(index, projection)
        tensor = weights.tensor(f"{place}.weight").to(choices.device)
        if tuple(tensor.shape) != size:
            raise TrainError(f"{place}.weight is {tuple(tensor.shape)}, config.json says {size}")
        frozen = freeze(tensor, choices.dtype, nf4=choices.nf4, double=choices.double, resident=choices.resident)
        bias = _dense(f"{place}.bias", weights, choices) if f"{place}.bias" in weights else None
        linears[projection] = LoraLinear(frozen, bias, place)
    names = {
        "input": "input_layernorm",
        "post": "post_attention_layernorm",
        "q": "self_attn.q_norm",
        "k": "self_attn.k_norm",
    }
    places = {key: f"model.layers.{index}.{name}.weight" for key, name in names.items()}
    norms = {key: _dense(place, weights, choices) for key, place in places.items() if place in weights}
    return Layer(index, shape, linears, norms)


def add_fresh_lora(model: Llama, recipe: Recipe) -> None:
    """LoRA pairs at PEFT's starting point, drawn from the recipe's seed on the CPU: the same on every device."""
    generator = torch.Generator().manual_seed(recipe.training.seed)
    sizes, lora = model.shape.projections(), recipe.lora
    for linear in model.linears:
        projection = linear.place.rsplit(".", 1)[1]
        if projection in lora.target_modules:
            a, b = fresh_pair(*sizes[projection], lora.lora_r, generator)
            linear.add_lora(a.to(model.device), b.to(model.device), lora.lora_alpha, lora.use_rslora)


def add_fresh_chat_rows(model: Llama, token_ids: Mapping[str, int]) -> list[str]:
    """Make the chat tokens' rows trainable; rows that the base never trained start at the mean of trained ones.

    Rows that are trained already (an instruction-tuned base, or one that Puna made) are kept as they are.
    Returns the tokens whose rows were given a start.
    """
    if not token_ids:
        return []
    ids = sorted(set(token_ids.values()))
    embed, fresh = _start(model.embed_VD, ids)
    head, fresh_head = (None, fresh) if model.shape.tied else _start(model.head_VD, ids)
    model.chat = ChatRows(ids, embed, head)
    return sorted(token for token, number in token_ids.items() if number in fresh | fresh_head)


def _start(matrix_VD: torch.Tensor, ids: list[int]) -> tuple[torch.Tensor, set[int]]:
    norms_V = torch.linalg.vector_norm(matrix_VD, dim=1, dtype=torch.float32)
    trained_V = norms_V > UNTRAINED_NORM * norms_V.median()
    others_V = trained_V.clone()
    others_V[ids] = False
    # In pieces, since a float32 copy of Llama-3's embedding would take 2 GB.
    pieces = zip(torch.split(matrix_VD, 8192), torch.split(others_V.float(), 8192), strict=True)
    mean_D = torch.stack([chosen @ piece.float() for piece, chosen in pieces]).sum(0) / others_V.sum().clamp(min=1)
    rows = matrix_VD[ids].float()
    fresh = {number for number in ids if not trained_V[number]}
    for at, number in enumerate(ids):
        if number in fresh:
            rows[at] = mean_D
    return rows, fresh


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
