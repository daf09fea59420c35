"""The trained model, or its base before training, to ask: loss, logits, and greedy replies to held-out prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from puna.artifacts import Adapter, Dataset, write_json
from puna.config.recipe import Recipe
from puna.tokens import Tokens
from puna.train.batches import batches
from puna.train.device import compute_dtype, look
from puna.train.model.block import Cache
from puna.train.model.llama import Llama
from puna.train.model.loading import Choices, add_fresh_chat_rows, load_into, load_llama
from puna.train.model.shape import read_shape
from puna.train.rows import count_labelled

TOKENS_PER_PASS = 4096
"""Tokens of one pass without gradients: enough to fill a GPU, little enough for any memory that holds the model."""
PROMPTS = 4
NEW_TOKENS = 64


class TrainedModel:
    """A base in the form it is trained in (NF4), with or without an adapter."""

    def __init__(self, model: Llama) -> None:
        """`model` is used as it is, and never changed."""
        self.model = model

    @torch.no_grad()
    def loss(self, rows: Sequence[Tokens]) -> float:
        """Mean cross-entropy over the rows' labelled tokens, in nats; rows are (input_ids [L], labels [L])."""
        total = sum(float(self.model.loss(batch)) for batch in batches(rows, TOKENS_PER_PASS, self.model.device))
        return total / max(1, count_labelled(rows))

    @torch.no_grad()
    def logits(self, input_ids: Sequence[int]) -> torch.Tensor:
        """float32 logits [T, V] of one document, on the CPU."""
        return self.model.logits(self._ids(input_ids)).cpu()

    @torch.no_grad()
    def reply(self, prompt_ids: Sequence[int], max_new_tokens: int, stop_token_ids: Sequence[int]) -> list[int]:
        """The likeliest token, again and again; the stop token is not part of the reply."""
        cache = Cache()
        found: list[int] = []
        logits_V = self.model.logits(self._ids(prompt_ids), cache)[-1]
        while len(found) < max_new_tokens:
            token = int(logits_V.argmax())
            if token in stop_token_ids:
                break
            found.append(token)
            logits_V = self.model.logits(self._ids([token]), cache)[-1]
        return found

    def _ids(self, ids: Sequence[int]) -> torch.Tensor:
        return torch.from_numpy(np.asarray(ids, dtype=np.int64)).to(self.model.device)


def load_trained(adapter: Adapter, base_dir: Path, recipe: Recipe, device: str | None = None) -> TrainedModel:
    """The base as it was trained on, with the adapter on it.

    Raises:
        TrainError: adapter and base do not belong together.
    """
    model = load_llama(base_dir, _choices(base_dir, recipe, device))
    load_into(model, adapter)
    return TrainedModel(model.requires_grad_(False))


def load_base(base_dir: Path, recipe: Recipe, dataset: Dataset, device: str | None = None) -> TrainedModel:
    """The base as training finds it: quantised, its chat rows at their start."""
    model = load_llama(base_dir, _choices(base_dir, recipe, device))
    if recipe.lora.train_chat_tokens:
        add_fresh_chat_rows(model, dataset.manifest.metrics.get("chat_token_ids", {}))
    return TrainedModel(model.requires_grad_(False))


def _choices(base_dir: Path, recipe: Recipe, device: str | None) -> Choices:
    machine, shape, quantization = look(device), read_shape(base_dir), recipe.quantization
    name, _ = compute_dtype(machine, quantization.bnb_4bit_compute_dtype)
    dtype: torch.dtype = getattr(torch, name)
    dense_bytes = shape.layers * shape.layer_parameters * dtype.itemsize
    # Dequantised copies are the same function; without gradients to keep, half the memory is room enough.
    resident = not machine.is_gpu or dense_bytes < machine.memory_bytes / 2
    return Choices(machine.device, dtype, quantization.load_in_4bit, quantization.bnb_4bit_use_double_quant, resident)


def ask(model: TrainedModel, dataset: Dataset) -> list[str]:
    """The model's greedy replies to the dataset's first few held-out prompts, as text without special tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(dataset.path / "tokenizer" / "tokenizer.json"))
    stop = dataset.manifest.metrics.get("stop_token_ids", [])
    replies = (model.reply(s["prompt_ids"], NEW_TOKENS, stop) for s in _samples(dataset))
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in replies]


def write_samples(run_dir: Path, dataset: Dataset, key: str, replies: Sequence[str]) -> None:
    """Add the replies `before` or `after` to the run's samples.json."""
    path = run_dir / "samples.json"
    old = json.loads(path.read_text()) if path.exists() else [{} for _ in replies]
    lines = []
    for sample, kept, reply in zip(_samples(dataset), old, replies, strict=True):
        prompt = sample["messages"][-1]["content"] if sample.get("messages") else ""
        fresh = {"prompt": prompt, "before": "", "after": "", "reference": sample.get("reference", "")}
        lines.append(fresh | kept | {key: reply})
    write_json(path, lines)


def _samples(dataset: Dataset) -> list[dict[str, Any]]:
    path = dataset.path / "samples.json"
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return found[:PROMPTS]
