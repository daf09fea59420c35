"""Tokenised rows: read from a dataset folder, put in a seeded order, packed into token-budget batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from heapq import heapreplace

import numpy as np
import numpy.typing as npt

from puna.artifacts import Dataset

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Row = tuple[Ints, Ints]
"""(input_ids [L], labels [L]); labels are not shifted, -100 is not learnt."""

IGNORED = -100


@dataclass(frozen=True)
class Rows:
    """A split of a dataset, read whole: a token is 8 bytes, so 11 M tokens are 88 MB."""

    input_ids: Ints
    labels: Ints
    offsets: Longs

    @classmethod
    def load(cls, dataset: Dataset, split: str) -> Rows:
        """Read `train` or `test`."""
        from safetensors.numpy import load_file

        tensors = load_file(dataset.path / f"{split}.safetensors")
        return cls(tensors["input_ids"], tensors["labels"], tensors["offsets"])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Row:
        start, end = self.offsets[index], self.offsets[index + 1]
        return self.input_ids[start:end], self.labels[start:end]

    @cached_property
    def lengths(self) -> Longs:
        """Tokens of each row."""
        return np.diff(self.offsets)

    @cached_property
    def labelled(self) -> int:
        """Tokens that are learnt: a row's first token has nothing before it to be predicted from."""
        known = self.labels != IGNORED
        firsts = self.offsets[:-1][self.lengths > 0]
        return int(known.sum() - known[firsts].sum())


def step_rows(rows: int, rows_per_step: int, step: int, seed: int) -> Longs:
    """Which rows optimiser step `step` (from 0) learns from.

    Each epoch is a permutation of its own, drawn from (seed, epoch); its last step takes what is left, so
    an epoch has ceil(rows / rows_per_step) steps, as in transformers.
    """
    steps_per_epoch = -(-rows // rows_per_step)
    epoch, at = divmod(step, steps_per_epoch)
    return _order(rows, seed, epoch)[at * rows_per_step : (at + 1) * rows_per_step].astype(np.int64)


@lru_cache(maxsize=1)
def _order(rows: int, seed: int, epoch: int) -> Longs:
    return np.random.default_rng((seed, epoch)).permutation(rows)


def pack(lengths: Sequence[int] | Longs, budget: int) -> list[list[int]]:
    """Split rows into few passes of at most `budget` tokens and nearly the same size; returns positions in `lengths`.

    A large pass and a tiny one would leave a GPU idle in the tiny one. There are never more passes than first fit
    by falling length makes. A row longer than the budget is a pass of its own.
    """
    falling = _falling(lengths)
    own = [[index] for index in falling if lengths[index] > budget]
    rest = falling[len(own) :]
    tight, tokens = _first_fit(lengths, rest, budget), sum(int(lengths[i]) for i in rest)
    for passes in range(max(bool(rest), -(-tokens // budget)), len(tight) + 1):
        even = _spread(lengths, rest, passes)
        if all(sum(int(lengths[i]) for i in chosen) <= budget for chosen in even):
            return own + even
    return own + tight


def share(lengths: Sequence[int] | Longs, parts: int) -> list[list[int]]:
    """Every row to one of `parts` of nearly the same token count; with fewer rows than parts, some are empty."""
    return _spread(lengths, _falling(lengths), parts)


def _falling(lengths: Sequence[int] | Longs) -> list[int]:
    return sorted(range(len(lengths)), key=lambda i: (-int(lengths[i]), i))


def _spread(lengths: Sequence[int] | Longs, falling: Sequence[int], parts: int) -> list[list[int]]:
    """Each row to the part that has least so far, the longest first: parts differ by less than a row."""
    shares: list[list[int]] = [[] for _ in range(parts)]
    loads = [(0, part) for part in range(parts)]
    for index in falling:
        load, part = loads[0]
        shares[part].append(index)
        heapreplace(loads, (load + int(lengths[index]), part))
    return shares


def _first_fit(lengths: Sequence[int] | Longs, falling: Sequence[int], budget: int) -> list[list[int]]:
    passes: list[list[int]] = []
    room: list[int] = []
    for index in falling:
        length = int(lengths[index])
        fit = next((p for p, free in enumerate(room) if free >= length), None)
        if fit is None:
            passes.append([])
            room.append(budget)
            fit = len(passes) - 1
        passes[fit].append(index)
        room[fit] -= length
    return passes


def count_labelled(rows: Sequence[Row]) -> int:
    """Tokens of these rows that are learnt."""
    return sum(int((labels[1:] != IGNORED).sum()) for _, labels in rows)
