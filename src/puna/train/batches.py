"""Rows become the flat tensors of one forward pass: ids, what follows where it is learnt, document borders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from puna.train.model.documents import Batch, Documents, document_arrays, to_device
from puna.train.rows import IGNORED, Row, pack


def make_batch(rows: Sequence[Row], device: torch.device | str) -> Batch:
    """One pass over these rows. A document's last token has no target: nothing is predicted across a border."""
    ids = np.concatenate([ids for ids, _ in rows]).astype(np.int64)
    following = np.concatenate([np.append(labels[1:], IGNORED) for _, labels in rows]).astype(np.int64)
    where, lengths = np.flatnonzero(following != IGNORED), [len(ids) for ids, _ in rows]
    ids_T, where_N, targets_N, *borders = to_device([ids, where, following[where], *document_arrays(lengths)], device)
    return Batch(ids_T, where_N, targets_N, Documents.holding(lengths, borders))


def batches(rows: Sequence[Row], budget: int, device: torch.device | str) -> Iterator[Batch]:
    """All rows in passes of at most `budget` tokens; rows with nothing in them are left out."""
    full = [row for row in rows if len(row[0])]
    for chosen in pack([len(ids) for ids, _ in full], budget):
        yield make_batch([full[i] for i in chosen], device)
