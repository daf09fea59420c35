"""Rows become the flat tensors of one forward pass: ids, shifted targets, document borders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from puna.train.attention import Documents
from puna.train.rows import IGNORED, Row, pack


@dataclass(frozen=True)
class Batch:
    """Documents end to end; `targets_T` is the token that follows, or -100 where nothing is learnt."""

    ids_T: torch.Tensor
    targets_T: torch.Tensor
    documents: Documents


def make_batch(rows: Sequence[Row], device: torch.device | str) -> Batch:
    """One pass over these rows. A document's last token has no target: nothing is predicted across a border."""
    ids = np.concatenate([ids for ids, _ in rows]).astype(np.int64)
    targets = np.concatenate([np.append(labels[1:], IGNORED) for _, labels in rows]).astype(np.int64)
    documents = Documents.of([len(ids) for ids, _ in rows], device)
    return Batch(torch.from_numpy(ids).to(device), torch.from_numpy(targets).to(device), documents)


def batches(rows: Sequence[Row], budget: int, device: torch.device | str) -> Iterator[Batch]:
    """All rows in passes of at most `budget` tokens; rows with nothing in them are left out."""
    full = [row for row in rows if len(row[0])]
    for chosen in pack([len(ids) for ids, _ in full], budget):
        yield make_batch([full[i] for i in chosen], device)
