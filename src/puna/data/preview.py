"""A prepared dataset as a person looks at it: a row with its learnt tokens, and how long rows are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from puna.artifacts import Dataset
from puna.data.tokens import NOT_LEARNT, TokenRows
from puna.errors import NotFoundError


@dataclass(frozen=True)
class PreviewToken:
    """A token of a row."""

    text: str
    """Empty for the first bytes of a character that takes several tokens: the last of them shows it."""
    token_id: int
    label: bool
    """Whether it is learnt."""


def preview(dataset: Dataset, row: int = 0, split: Literal["train", "test"] = "train") -> list[PreviewToken]:
    """The tokens of one row; their texts, joined, are the row's text with its special tokens.

    Raises:
        NotFoundError: the split has no such row.
    """
    from tokenizers import Tokenizer
    from tokenizers.decoders import DecodeStream

    rows = TokenRows.load(dataset, split)
    if not 0 <= row < len(rows):
        raise NotFoundError(f"there is no row {row} in the {split} split", f"it has {len(rows)}, counted from 0")
    tokenizer = Tokenizer.from_file(str(dataset.path / "tokenizer" / "tokenizer.json"))
    stream = DecodeStream(skip_special_tokens=False)
    input_ids, labels = rows[row]
    return [
        PreviewToken(stream.step(tokenizer, int(token_id)) or "", int(token_id), bool(label != NOT_LEARNT))
        for token_id, label in zip(input_ids, labels, strict=True)
    ]


def excerpt(tokens: Sequence[PreviewToken], most: int = 160) -> tuple[int, int]:
    """Where to cut a long row so that `most` tokens show what is learnt and what stands before it: [start, end)."""
    first = next((i for i, token in enumerate(tokens) if token.label), 0)
    start = max(0, min(first - most // 2, len(tokens) - most))
    return start, min(len(tokens), start + most)


@dataclass(frozen=True)
class Histogram:
    """How many rows have 1 to `width` tokens, how many up to twice that, and so on to the longest."""

    width: int
    rows: tuple[int, ...]


def length_histogram(dataset: Dataset, most_bars: int = 12) -> Histogram:
    """The lengths of all rows, held-out ones too, from their offsets alone."""
    from safetensors import safe_open

    lengths = []
    for split in ("train", "test"):
        with safe_open(dataset.path / f"{split}.safetensors", "numpy") as file:
            lengths.append(np.diff(file.get_tensor("offsets")))
    every = np.concatenate(lengths)
    rough = int(every.max()) / most_bars
    width = next(w for zeros in range(20) for w in (10**zeros, 2 * 10**zeros, 5 * 10**zeros) if w >= rough)
    return Histogram(width, tuple(np.bincount((every - 1) // width).tolist()))
