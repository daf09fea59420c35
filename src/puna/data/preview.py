"""One prepared row as a person reads it: each token's text, and whether it is learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from puna.artifacts import Dataset
from puna.data.tokens import NOT_LEARNT, Rows
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

    rows = Rows.load(dataset, split)
    if not 0 <= row < len(rows):
        raise NotFoundError(f"there is no row {row} in the {split} split", f"it has {len(rows)}, counted from 0")
    tokenizer = Tokenizer.from_file(str(dataset.path / "tokenizer" / "tokenizer.json"))
    stream = DecodeStream(skip_special_tokens=False)
    input_ids, labels = rows[row]
    return [
        PreviewToken(stream.step(tokenizer, int(token_id)) or "", int(token_id), bool(label != NOT_LEARNT))
        for token_id, label in zip(input_ids, labels, strict=True)
    ]
