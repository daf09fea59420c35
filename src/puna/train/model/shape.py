"""A base model's shape: its config.json and its safetensors headers, read before any weight."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from puna.errors import TrainError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type`s that are Llama blocks with, at most, biases on q, k, v or norms on q, k."""

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
PRODUCTS = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
"""Matrices that read the same input are one product, in the order of a forward pass: see block.Layer."""


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding; the scaling fields are used by `llama3` (all) and `linear` (factor)."""

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192


@dataclass(frozen=True)
class ModelShape:
    """The numbers that define a Llama-architecture model."""

    vocab: int
    hidden: int
    ff: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    tied: bool
    rope: Rope
    window: int | None = None
    """Sliding attention window in tokens; None means that every earlier token is seen."""

    def projections(self) -> dict[str, tuple[int, int]]:
        """The seven matrices of one layer: name -> (outputs, inputs)."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (queries, self.hidden),
            "k_proj": (keys, self.hidden),
            "v_proj": (keys, self.hidden),
            "o_proj": (self.hidden, queries),
            "gate_proj": (self.ff, self.hidden),
            "up_proj": (self.ff, self.hidden),
            "down_proj": (self.hidden, self.ff),
        }

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer's seven matrices."""
        return sum(o * i for o, i in self.projections().values())

    def lora_parameters(self, rank: int, targets: tuple[str, ...]) -> int:
        """Parameters of all LoRA pairs together."""
        return self.layers * sum(rank * (o + i) for n, (o, i) in self.projections().items() if n in targets)


def weight_name(layer: int, projection: str) -> str:
    """The name of a layer's matrix in a checkpoint, without `.weight`."""
    block = "self_attn" if projection in ATTENTION else "mlp"
    return f"model.layers.{layer}.{block}.{projection}"


def read_shape(base_dir: Path) -> ModelShape:
    """The shape of the model in `base_dir`.

    Raises:
        TrainError: no config.json, or an architecture that is not Llama's.
    """
    try:
        config: dict[str, Any] = json.loads((base_dir / "config.json").read_text())
    except (FileNotFoundError, ValueError) as error:
        raise TrainError(f"{base_dir} holds no readable config.json: {error}", "check `base:` in the recipe") from None
    family = config.get("model_type")
    if family not in FAMILIES:
        raise TrainError(f"the base is a {family!r} model", f"Puna trains {', '.join(FAMILIES)}")
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise TrainError(f"the base's activation is {config['hidden_act']!r}", "Puna trains SwiGLU models only")
    heads = int(config["num_attention_heads"])
    window = config.get("sliding_window") if config.get("use_sliding_window", family == "mistral") else None
    return ModelShape(
        vocab=int(config["vocab_size"]),
        hidden=int(config["hidden_size"]),
        ff=int(config["intermediate_size"]),
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
        eps=float(config.get("rms_norm_eps", 1e-6)),
        tied=bool(config.get("tie_word_embeddings")) or "lm_head.weight" not in Weights(base_dir),
        rope=_rope(config),
        window=int(window) if window else None,
    )


def _rope(config: dict[str, Any]) -> Rope:
    # transformers 5 writes `rope_parameters`; before it, `rope_theta` and `rope_scaling`.
    values = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = values.get("rope_type") or values.get("type") or "default"
    if kind not in ("default", "linear", "llama3"):
        raise TrainError(f"the base's rope scaling is {kind!r}", "Puna knows default, linear and llama3")
    if float(values.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))) != 1.0:
        raise TrainError("the base rotates only a part of each head", "Puna trains full-rotary models only")
    length = config.get("max_position_embeddings", 8192)
    return Rope(
        theta=float(values.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        kind=kind,
        factor=float(values.get("factor", 1.0)),
        low_freq_factor=float(values.get("low_freq_factor", 1.0)),
        high_freq_factor=float(values.get("high_freq_factor", 4.0)),
        original_length=int(values.get("original_max_position_embeddings", length)),
    )


@dataclass(frozen=True)
class Weights:
    """The tensors of a base folder, by name; `tensor` reads one at a time."""

    base_dir: Path

    @cached_property
    def headers(self) -> dict[str, tuple[Path, int]]:
        """Every tensor's file and number of elements.

        Raises:
            TrainError: the folder holds no safetensors, or one that cannot be read.
        """
        files = sorted(self.base_dir.glob("*.safetensors"))
        index = self.base_dir / "model.safetensors.index.json"
        if index.exists():
            try:
                names = dict(json.loads(index.read_text())["weight_map"]).values()
                files = sorted({self.base_dir / name for name in names})
            except (ValueError, KeyError, TypeError) as error:
                raise TrainError(f"{index} cannot be read: {error!r}", "download the base again") from None
        if not files:
            hint = "Puna reads safetensors only; convert pickled weights first"
            raise TrainError(f"{self.base_dir} holds no .safetensors file", hint)
        return {name: header for file in files for name, header in _headers(file).items()}

    def __contains__(self, name: object) -> bool:
        return name in self.headers

    def tensor(self, name: str) -> Any:
        """Read one tensor (torch, on the CPU, in the file's dtype).

        Raises:
            TrainError: there is none of that name.
        """
        if name not in self.headers:
            raise TrainError(f"{self.base_dir} holds no tensor {name}", "is the base a whole Llama checkpoint?")
        with safe_open(str(self.headers[name][0]), framework="pt") as file:
            return file.get_tensor(name)


def _headers(file: Path) -> dict[str, tuple[Path, int]]:
    try:
        with safe_open(str(file), framework="pt") as opened:
            return {name: (file, prod(opened.get_slice(name).get_shape())) for name in opened.keys()}
    except (OSError, SafetensorError) as error:
        raise TrainError(f"{file} cannot be read: {error}", "download the base again") from None
