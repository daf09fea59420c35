"""Rows in, batches out: every row once an epoch, in a seeded order, never over the budget, evenly split."""

import math

import numpy as np
import pytest
import torch

from puna.artifacts import Dataset
from puna.tokens import TokenRows
from puna.train.batches import Documents, batches, make_batch, to_device
from puna.train.rows import count_labelled, pack, share, step_rows
from train.tiny import random_rows


def test_rows_come_back_as_they_were_written(dataset: Dataset) -> None:
    rows = TokenRows.load(dataset, "train")
    for mine, (ids, labels) in zip((rows[i] for i in range(len(rows))), random_rows(24, 1), strict=True):
        assert np.array_equal(mine[0], ids) and np.array_equal(mine[1], labels)
    assert rows.labelled == count_labelled([rows[i] for i in range(len(rows))])


def test_an_epoch_shows_each_row_once_and_the_next_in_another_order() -> None:
    epochs = [np.concatenate([step_rows(10, 4, epoch * 3 + s, seed=1) for s in range(3)]) for epoch in range(2)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert list(epochs[0]) != list(epochs[1])
    assert [len(step_rows(10, 4, s, 1)) for s in range(3)] == [4, 4, 2]
    assert list(step_rows(10, 4, 1, 1)) == list(step_rows(10, 4, 1, 1)) != list(step_rows(10, 4, 1, 2))


def first_fit(lengths: list[int], budget: int) -> int:
    """Passes that the simplest packing needs: longest first, each into the first pass with room."""
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        fit = next((i for i, free in enumerate(room) if free >= length), None)
        if fit is None:
            room.append(budget - length)
        else:
            room[fit] -= length
    return len(room)


@pytest.mark.parametrize("seed", range(60))
def test_a_step_is_split_into_few_passes_of_nearly_one_size(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = [int(n) for n in rng.integers(1, int(rng.integers(2, 300)), size=int(rng.integers(1, 40)))]
    budget = int(rng.integers(50, 1000))
    packed = pack(lengths, budget)
    assert packed == pack(lengths, budget)
    assert sorted(i for chosen in packed for i in chosen) == list(range(len(lengths)))
    own = [chosen for chosen in packed if sum(lengths[i] for i in chosen) > budget]
    assert all(len(chosen) == 1 for chosen in own) and len(own) == sum(n > budget for n in lengths)
    rest = [chosen for chosen in packed if chosen not in own]
    loads, short = [sum(lengths[i] for i in chosen) for chosen in rest], [n for n in lengths if n <= budget]
    assert math.ceil(sum(short) / budget) <= len(rest) <= first_fit(short, budget)
    # Only a tight fit is uneven: then the passes are as full as rows of this size allow.
    if loads and max(loads) - min(loads) > max(short):
        assert sum(loads) > (len(rest) - 1) * (budget - max(short))
    assert all([lengths[i] for i in chosen] == sorted((lengths[i] for i in chosen), reverse=True) for chosen in packed)


def test_a_step_a_little_over_the_budget_is_two_halves() -> None:
    lengths = [100] * 11
    assert sorted(sum(lengths[i] for i in chosen) for chosen in pack(lengths, 1000)) == [500, 600]


@pytest.mark.parametrize("seed", range(30))
def test_shares_hold_every_row_once_and_differ_by_less_than_a_row(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = [int(n) for n in rng.integers(1, 300, size=int(rng.integers(0, 30)))]
    parts = int(rng.integers(1, 9))
    shares = share(lengths, parts)
    assert len(shares) == parts and sorted(i for chosen in shares for i in chosen) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in chosen) for chosen in shares]
    assert max(loads) - min(loads) <= max(lengths, default=0)


def test_what_goes_to_the_device_in_one_buffer_arrives_whole_and_aligned() -> None:
    arrays = [np.arange(n, dtype=np.int64) + n for n in (3, 0, 17, 16, 1)]
    tensors = to_device(arrays, "cpu")
    assert [t.tolist() for t in tensors] == [a.tolist() for a in arrays]
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == 1
    assert all(t.storage_offset() % 16 == 0 for t in tensors)


def test_documents_know_their_places_borders_and_padded_groups() -> None:
    documents = Documents.of([4, 3, 2, 2], "cpu")
    assert documents.positions_T.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 0, 1]
    assert documents.starts.tolist() == [0, 4, 7, 9, 11] and documents.starts.dtype == torch.int32
    padded, plain = documents.groups
    assert padded.place is not None and padded.place.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert (padded.tokens, padded.documents, padded.longest) == (7, 2, 4)
    assert (plain.tokens, plain.documents, plain.longest, plain.place) == (4, 2, 2, None)


def test_targets_are_shifted_inside_a_document_and_never_across_its_border() -> None:
    row = (np.array([1, 2, 3], np.int32), np.array([-100, 2, 3], np.int32))
    batch = make_batch([row, row], "cpu")
    assert batch.ids_T.tolist() == [1, 2, 3, 1, 2, 3]
    assert batch.where_N.tolist() == [0, 1, 3, 4] and batch.targets_N.tolist() == [2, 3, 2, 3]


def test_an_empty_row_is_left_out() -> None:
    empty = (np.zeros(0, np.int32), np.zeros(0, np.int32))
    assert [len(b.ids_T) for b in batches([empty, *random_rows(1)], 100, "cpu")] == [len(random_rows(1)[0][0])]
