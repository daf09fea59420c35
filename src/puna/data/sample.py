"""Which rows are used, and which are held out: the same choice as `datasets` makes with the same seed."""

from __future__ import annotations

import math

import numpy as np

from puna.errors import DataError


def sample(total: int, take: int | None, seed: int) -> list[int]:
    """Indices of the rows to use: `Dataset.shuffle(seed=seed).select(range(take))` of the tutorial, row for row."""
    order = np.random.default_rng(seed).permutation(total)
    return [int(i) for i in order[:take]]


def split(total: int, test_fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of training and held-out rows: `Dataset.train_test_split(test_size=..., seed=seed)`, row for row.

    Raises:
        DataError: so few rows that none would be left to train on.
    """
    held_out = math.ceil(test_fraction * total)
    if held_out >= total:
        raise DataError(
            f"{total} row{'s' * (total != 1)} cannot be split into rows to train on and {held_out} to hold out",
            "add rows, or set `data.test_fraction: 0`",
        )
    if not held_out:
        return list(range(total)), []
    order = [int(i) for i in np.random.default_rng(seed).permutation(total)]
    return order[held_out:], order[:held_out]
