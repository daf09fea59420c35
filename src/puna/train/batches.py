"""Rows of a dataset as the flat tensors of one forward pass, with the borders of their documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from puna.tokens import NOT_LEARNT, Tokens
from puna.train.rows import pack

Longs = npt.NDArray[np.int64]

ALIKE = 0.75
"""Neighbours at least this long, compared with the longest of their group, are padded to it together."""
ALIGNED = 16
"""Slices of a shared buffer start at multiples of this many int64: kernels are compiled anew for odd addresses."""


def to_device(arrays: Sequence[Longs], device: torch.device | str) -> list[torch.Tensor]:
    """The arrays as slices of one buffer that went to the device in one copy, for which nobody waits.

    The copy leaves from pinned memory: one from pageable memory would wait for all that the GPU has yet to do.
    """
    device = torch.device(device)
    begins = np.cumsum([0, *(-(-len(array) // ALIGNED) * ALIGNED for array in arrays)]).tolist()
    buffer = torch.empty(begins[-1], dtype=torch.int64, pin_memory=device.type == "cuda")
    host = buffer.numpy()
    for array, begin in zip(arrays, begins, strict=False):
        host[begin : begin + len(array)] = array
    moved = buffer.to(device, non_blocking=True)
    return [moved[begin : begin + len(array)] for array, begin in zip(arrays, begins, strict=False)]


@dataclass(frozen=True)
class DocumentGroup:
    """Neighbouring documents of about one length, padded to the longest where attention needs a rectangle."""

    tokens: int
    """Of all documents together."""
    documents: int
    longest: int
    place: torch.Tensor | None
    """Each token's place in the padded [documents * longest]; None when nothing is padded."""


@dataclass(frozen=True)
class Documents:
    """Borders of documents in a flat batch of T tokens."""

    lengths: tuple[int, ...]
    positions_T: torch.Tensor
    """Each token's place in its own document."""
    starts: torch.Tensor
    """int32 [documents + 1]: running sum of lengths."""
    groups: tuple[DocumentGroup, ...]

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str) -> Documents:
        """Documents of these lengths, in this order; sorted lengths make few groups."""
        return cls.holding(lengths, to_device(document_arrays(lengths), device))

    @classmethod
    def holding(cls, lengths: Sequence[int], tensors: Sequence[torch.Tensor]) -> Documents:
        """Documents of these lengths, whose `document_arrays` lie on the device already."""
        positions_T, starts, *places = tensors
        groups, padded = [], iter(places)
        for group in _alike(lengths):
            place = next(padded) if min(group) < group[0] else None
            groups.append(DocumentGroup(sum(group), len(group), group[0], place))
        return cls(tuple(lengths), positions_T, starts.to(torch.int32), tuple(groups))

    @property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return max(self.lengths)


def document_arrays(lengths: Sequence[int]) -> list[Longs]:
    """Arrays for the device of documents of these lengths: positions, starts, places in each padded group."""
    starts = np.cumsum([0, *lengths], dtype=np.int64)
    positions = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    padded = [group for group in _alike(lengths) if min(group) < group[0]]
    return [positions, starts, *(_places(group) for group in padded)]


def _places(group: Sequence[int]) -> Longs:
    return np.concatenate([np.arange(length) + row * group[0] for row, length in enumerate(group)])


def _alike(lengths: Sequence[int]) -> Iterator[Sequence[int]]:
    """The lengths in groups of neighbours, the first of which is the longest."""
    borders = [0]
    for index, length in enumerate(lengths):
        if not ALIKE * lengths[borders[-1]] <= length <= lengths[borders[-1]]:
            borders.append(index)
    for first, end in pairwise([*borders, len(lengths)]):
        yield lengths[first:end]


@dataclass(frozen=True)
class Batch:
    """Documents end to end; N of the T places have a following token that is learnt."""

    ids_T: torch.Tensor
    where_N: torch.Tensor
    """Places whose successor is learnt; worked out on the CPU, so that a GPU is never waited for."""
    targets_N: torch.Tensor
    """The token that follows each of them."""
    documents: Documents


def make_batch(rows: Sequence[Tokens], device: torch.device | str) -> Batch:
    """One pass over these rows. A document's last token has no target: nothing is predicted across a border."""
    ids = np.concatenate([ids for ids, _ in rows]).astype(np.int64)
    following = np.concatenate([np.append(labels[1:], NOT_LEARNT) for _, labels in rows]).astype(np.int64)
    where, lengths = np.flatnonzero(following != NOT_LEARNT), [len(ids) for ids, _ in rows]
    ids_T, where_N, targets_N, *borders = to_device([ids, where, following[where], *document_arrays(lengths)], device)
    return Batch(ids_T, where_N, targets_N, Documents.holding(lengths, borders))


def batches(rows: Sequence[Tokens], budget: int, device: torch.device | str) -> Iterator[Batch]:
    """All rows in passes of at most `budget` tokens; rows with nothing in them are left out."""
    full = [row for row in rows if len(row[0])]
    for chosen in pack([len(ids) for ids, _ in full], budget):
        yield make_batch([full[i] for i in chosen], device)
