"""What the trained and the merged model are compared on: held-out rows and prompts of the dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.numpy import load_file

from puna.artifacts import Dataset
from puna.errors import MergeError

Row = tuple[np.ndarray, np.ndarray]
# 65 k tokens fix a mean loss to about 0.005 nats (a token's loss spreads over some 1.3), and take under a minute on
# a GPU; on a CPU only small models are trained.
LOSS_TOKENS = 65_536
# Whole logits are wide: 128 k of them a token in fp32 is half a MB, so few positions are kept.
LOGIT_ROWS, LOGIT_TOKENS = 8, 256
REPLY_TOKENS = 64


class TrainedLike(Protocol):
    """The model as training left it: a frozen base, perhaps in 4 bits, with the adapter beside it."""

    def loss(self, rows: Sequence[Row]) -> float:
        """Mean over the labelled tokens of all rows, in nats."""

    def logits(self, input_ids: Sequence[int]) -> torch.Tensor:
        """fp32 [T, V]."""

    def reply(self, prompt_ids: Sequence[int], max_new_tokens: int, stop_token_ids: Sequence[int]) -> list[int]:
        """Greedy."""


@dataclass(frozen=True)
class Prompt:
    """A held-out conversation up to the user's last turn."""

    messages: list[dict[str, Any]]
    ids: list[int]
    """As the trainer tokenised it, generation prompt included."""


@dataclass(frozen=True)
class Probes:
    """What to compare on."""

    rows: list[Row]
    """(input_ids int32 [T], labels int32 [T], -100 where not learnt), held out unless `held_out` is False."""
    prompts: list[Prompt]
    stop_token_ids: tuple[int, ...]
    held_out: bool
    reply_tokens: int = REPLY_TOKENS

    @property
    def texts(self) -> list[list[int]]:
        """The token ids whose logits are compared."""
        rows = [row[0] for row in self.rows[:LOGIT_ROWS]]
        return [[int(i) for i in ids[:LOGIT_TOKENS]] for ids in rows]


def read_probes(dataset: Dataset) -> Probes:
    """Held-out rows and prompts; training rows when nothing was held out.

    Raises:
        MergeError: the dataset has no row with anything to learn.
    """
    rows, held_out = _rows(dataset, "test"), True
    if not rows:
        rows, held_out = _rows(dataset, "train"), False
    if not rows:
        raise MergeError(f"the dataset {dataset.path} has no row to compare on")
    samples = json.loads((dataset.path / "samples.json").read_text())
    prompts = [Prompt(sample["messages"], [int(i) for i in sample["prompt_ids"]]) for sample in samples]
    return Probes(rows, prompts, stop_ids(dataset.manifest.metrics), held_out)


def stop_ids(metrics: Mapping[str, Any]) -> tuple[int, ...]:
    """Every id that ends a reply, by the dataset's manifest."""
    stop = [metrics["eos_token_id"], *metrics.get("stop_token_ids", [])]
    return tuple(dict.fromkeys(int(i) for i in stop))


def _rows(dataset: Dataset, split: str) -> list[Row]:
    path = dataset.path / f"{split}.safetensors"
    if not path.exists():
        return []
    tensors = load_file(path)
    rows: list[Row] = []
    budget = LOSS_TOKENS
    offsets = tensors["offsets"]
    for start, end in zip(offsets[:-1], offsets[1:], strict=True):
        ids, labels = tensors["input_ids"][start:end], tensors["labels"][start:end]
        # The first token has nothing before it to be predicted from.
        if bool((labels[1:] != -100).any()):
            rows.append((ids, labels))
            budget -= len(ids)
        if budget <= 0:
            break
    return rows
