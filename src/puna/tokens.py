"""Tokenised rows: all tokens of a split end to end in one safetensors file, and a preview of what is learnt in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from puna.artifacts import Dataset
from puna.errors import NotFoundError

NOT_LEARNT = -100
"""The label of a token that adds nothing to the loss."""

Tokens = tuple[np.ndarray, np.ndarray]
"""One row: int32 input_ids [L], int32 labels [L]; a label is the token itself or NOT_LEARNT, not shifted."""


@dataclass(frozen=True)
class TokenRows:
    """A split, read whole: `rows[i]` is one row. A token is 8 bytes, so 11 M tokens are 88 MB."""

    input_ids: np.ndarray
    """int32 [total tokens]"""
    labels: np.ndarray
    """int32 [total tokens]"""
    offsets: np.ndarray
    """int64 [rows + 1]: row i is offsets[i] to offsets[i + 1]"""

    @classmethod
    def load(cls, dataset: Dataset, split: Literal["train", "test"]) -> Self:
        """Read one split of a dataset.

        Raises:
            NotFoundError: the file is gone.
        """
        path = dataset.path / f"{split}.safetensors"
        if not path.exists():
            raise NotFoundError(f"dataset {dataset.path} has no {path.name}", "remove the folder and prepare it again")
        tensors = load_file(path)
        return cls(tensors["input_ids"], tensors["labels"], tensors["offsets"])

    @classmethod
    def pack(cls, rows: Sequence[Tokens]) -> Self:
        """Rows laid end to end."""
        empty = [np.zeros(0, np.int32)]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(ids) for ids, _ in rows], out=offsets[1:])
        input_ids = np.concatenate(empty + [ids for ids, _ in rows])
        return cls(input_ids, np.concatenate(empty + [labels for _, labels in rows]), offsets)

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        save_file({"input_ids": self.input_ids, "labels": self.labels, "offsets": self.offsets}, path)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Tokens:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        start, end = self.offsets[index % len(self)], self.offsets[index % len(self) + 1]
        return self.input_ids[start:end], self.labels[start:end]

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [rows]: tokens of each row."""
        return np.diff(self.offsets)

    @cached_property
    def labelled(self) -> int:
        """Tokens that are learnt: a row's first token has nothing before it to be predicted from."""
        known = self.labels != NOT_LEARNT
        firsts = self.offsets[:-1][self.lengths > 0]
        return int(known.sum() - known[firsts].sum())


@dataclass(frozen=True)
class PreviewToken:
    """A token of a row."""

    text: str
    """Empty for the first bytes of a character that takes several tokens: the last of them shows it."""
    token_id: int
    label: bool
    """It counts in the loss."""


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
    """The part [start, end) of a long row that shows, in `most` tokens, what is learnt and what stands before."""
    first = next((i for i, token in enumerate(tokens) if token.label), 0)
    start = max(0, min(first - most // 2, len(tokens) - most))
    return start, min(len(tokens), start + most)


@dataclass(frozen=True)
class Histogram:
    """Counts of rows by length, in bins of `width` tokens from 1 to the longest."""

    width: int
    rows: tuple[int, ...]


def length_histogram(dataset: Dataset, most_bars: int = 12) -> Histogram:
    """The lengths of all rows, held-out ones too, from their offsets alone."""
    lengths = []
    for split in ("train", "test"):
        with safe_open(dataset.path / f"{split}.safetensors", "numpy") as file:
            lengths.append(np.diff(file.get_tensor("offsets")))
    every = np.concatenate(lengths)
    rough = int(every.max()) / most_bars
    width = next(w for zeros in range(20) for w in (10**zeros, 2 * 10**zeros, 5 * 10**zeros) if w >= rough)
    return Histogram(width, tuple(np.bincount((every - 1) // width).tolist()))
