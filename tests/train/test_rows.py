"""Rows in, batches out: every row once an epoch, in a seeded order, never over the budget."""

import numpy as np

from puna.artifacts import Dataset
from puna.train.batches import batches, make_batch
from puna.train.rows import Rows, count_labelled, pack, step_rows
from train.tiny import random_rows


def test_rows_come_back_as_they_were_written(dataset: Dataset) -> None:
    rows = Rows.load(dataset, "train")
    for mine, (ids, labels) in zip((rows[i] for i in range(len(rows))), random_rows(24, 1), strict=True):
        assert np.array_equal(mine[0], ids) and np.array_equal(mine[1], labels)
    assert rows.labelled == count_labelled([rows[i] for i in range(len(rows))])


def test_an_epoch_shows_each_row_once_and_the_next_in_another_order() -> None:
    epochs = [np.concatenate([step_rows(10, 4, epoch * 3 + s, seed=1) for s in range(3)]) for epoch in range(2)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert list(epochs[0]) != list(epochs[1])
    assert [len(step_rows(10, 4, s, 1)) for s in range(3)] == [4, 4, 2]
    assert list(step_rows(10, 4, 1, 1)) == list(step_rows(10, 4, 1, 1)) != list(step_rows(10, 4, 1, 2))


def test_packing_keeps_every_row_and_the_budget() -> None:
    lengths = [5, 90, 30, 30, 45, 8, 100, 3]
    packed = pack(lengths, 90)
    assert sorted(i for batch in packed for i in batch) == list(range(8))
    assert [sum(lengths[i] for i in batch) for batch in packed if len(batch) > 1 or lengths[batch[0]] <= 90]
    assert all(sum(lengths[i] for i in batch) <= 90 or len(batch) == 1 for batch in packed)


def test_targets_are_shifted_inside_a_document_and_never_across_its_border() -> None:
    row = (np.array([1, 2, 3], np.int32), np.array([-100, 2, 3], np.int32))
    batch = make_batch([row, row], "cpu")
    assert batch.ids_T.tolist() == [1, 2, 3, 1, 2, 3]
    assert batch.where_N.tolist() == [0, 1, 3, 4] and batch.targets_N.tolist() == [2, 3, 2, 3]


def test_an_empty_row_is_left_out() -> None:
    empty = (np.zeros(0, np.int32), np.zeros(0, np.int32))
    assert [len(b.ids_T) for b in batches([empty, *random_rows(1)], 100, "cpu")] == [len(random_rows(1)[0][0])]
