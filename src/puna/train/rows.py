"""Tokenised rows put in a seeded order, and packed into token-budget batches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from heapq import heapreplace

import numpy as np
import numpy.typing as npt

from puna.tokens import NOT_LEARNT, Tokens

Longs = npt.NDArray[np.int64]


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


def count_labelled(rows: Sequence[Tokens]) -> int:
    """Tokens of these rows that are learnt."""
    return sum(int((labels[1:] != NOT_LEARNT).sum()) for _, labels in rows)
