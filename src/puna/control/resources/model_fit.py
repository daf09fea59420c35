"""Whether a model fits a GPU or half of one: its weights, a KV cache and what else there is, in bytes."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIB = 2**30
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1}
CONTEXT = 8192
"""Tokens of a request, where nobody says: as many, or the model's own most."""
REQUESTS = 4
# CUDA, its graphs and the largest batch's activations, which grow with the model. An 8 B engine asleep, its weights and
# cache given back, held 1.8 GiB (H200).
OVERHEAD_BYTES, OVERHEAD_PART, MOST_BYTES = GIB, 1 / 8, 4 * GIB
TIGHT = 0.9
"""What takes more of its room than this is tight: estimates are no better."""


@dataclass(frozen=True)
class ModelSize:
    """What there is to know of a model's size."""

    name: str
    weights_bytes: int
    kv_bytes_per_token: int = 0
    """0: its config does not say."""
    context: int = 0
    """The longest request that it can take; 0: not known."""

    def need(self, requests: int, context: int) -> Need:
        """What so many requests of so many tokens at once take; 0 tokens: what is usual."""
        usual = min(CONTEXT, self.context or CONTEXT)
        tokens = min(context, self.context or context) or usual
        overhead = min(OVERHEAD_BYTES + int(self.weights_bytes * OVERHEAD_PART), MOST_BYTES)
        return Need(self.weights_bytes, self.kv_bytes_per_token * requests * tokens, overhead, requests, tokens)


@dataclass(frozen=True)
class Need:
    """Bytes, and what they are for."""

    weights_bytes: int
    kv_cache_bytes: int
    overhead_bytes: int
    requests: int
    context: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.kv_cache_bytes + self.overhead_bytes

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self) | {"total_bytes": self.total_bytes}

    def describe(self) -> str:
        """The sum as a person reads it."""
        cache = f"{_gib(self.kv_cache_bytes)} KV cache ({self.requests} × {self.context} tokens)"
        cache = cache if self.kv_cache_bytes else "a KV cache of unknown size"
        parts = f"{_gib(self.weights_bytes)} weights + {cache} + {_gib(self.overhead_bytes)} overhead"
        return f"{parts} = {_gib(self.total_bytes)}"


def fit(need: Need, room_bytes: int, is_free: bool) -> dict[str, Any]:
    """`fits`, `tight` or `does not fit`, by how much, and whether that room is free now."""
    left = room_bytes - need.total_bytes
    verdict = "does not fit" if left < 0 else "tight" if need.total_bytes > TIGHT * room_bytes else "fits"
    by = f", by {_gib(-left)}" if left < 0 else ""
    said = f"{verdict}{by}: {need.describe()} of {_gib(room_bytes)}"
    return {"verdict": verdict, "room_bytes": room_bytes, "left_bytes": left, "free_now": is_free, "said": said}


def read(name: str, folder: Path) -> ModelSize:
    """A model's folder in Hugging Face's layout: only its config and the sizes of its files are looked at."""
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        config = {**config, **(config.get("text_config") or {})}  # models that also see keep it there
        heads = int(config["num_attention_heads"])
        width = int(config.get("head_dim") or config["hidden_size"] // heads)
        each = int(config.get("num_key_value_heads") or heads) * width
        size = BYTES.get(str(config.get("dtype") or config.get("torch_dtype")), 2)
        token = 2 * int(config["num_hidden_layers"]) * each * size
        return ModelSize(name, weights, token, int(config.get("max_position_embeddings") or 0))
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return ModelSize(name, weights)


def together(name: str, models: list[ModelSize]) -> ModelSize:
    """What one app loads: weights and caches add up; the shortest context is the one that all can take."""
    contexts = [model.context for model in models if model.context]
    tokens = sum(model.kv_bytes_per_token for model in models)
    return ModelSize(name, sum(model.weights_bytes for model in models), tokens, min(contexts, default=0))


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / GIB:.1f} GiB"
