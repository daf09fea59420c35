"""Held-out prompts answered before and after training, for the report and for the eye."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from puna.artifacts import Dataset, write_json

PROMPTS = 4
NEW_TOKENS = 64


class Replies(Protocol):
    """Something to ask: see trained.TrainedModel."""

    def reply(self, prompt_ids: Sequence[int], max_new_tokens: int, stop_token_ids: Sequence[int]) -> list[int]:
        """The likeliest token, again and again."""


def ask(model: Replies, dataset: Dataset) -> list[str]:
    """The model's greedy replies to the dataset's first few held-out prompts, as text."""
    stop = dataset.manifest.metrics.get("stop_token_ids", [])
    replies = [model.reply(s["prompt_ids"], NEW_TOKENS, stop) for s in _samples(dataset)]
    return decode(dataset.path / "tokenizer", replies)


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


def decode(tokenizer_dir: Path, replies: Sequence[Sequence[int]]) -> list[str]:
    """Token ids as text, special tokens left out."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    return [tokenizer.decode(list(ids), skip_special_tokens=True) for ids in replies]


def _samples(dataset: Dataset) -> list[dict[str, Any]]:
    path = dataset.path / "samples.json"
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return found[:PROMPTS]
