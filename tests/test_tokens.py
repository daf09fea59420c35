"""Rows go to disk and come back."""

from pathlib import Path

import numpy as np
import pytest

from puna.artifacts import Dataset, drafting
from puna.errors import NotFoundError
from puna.tokens import NOT_LEARNT, PreviewToken, TokenRows, Tokens, excerpt


def row(*ids: int) -> Tokens:
    return np.array(ids, np.int32), np.array([NOT_LEARNT, *ids[1:]], np.int32)


def dataset(tmp_path: Path, rows: TokenRows) -> Dataset:
    with drafting("dataset", tmp_path) as draft:
        rows.save(draft.path / "train.safetensors")
    return Dataset.open(draft.final)


def test_rows_come_back_as_they_were_laid_down(tmp_path: Path) -> None:
    rows = TokenRows.load(dataset(tmp_path, TokenRows.pack([row(1, 2, 3), row(4), row(5, 6)])), "train")
    assert len(rows) == 3 and rows.lengths.tolist() == [3, 1, 2]
    assert [r[0].tolist() for r in rows] == [[1, 2, 3], [4], [5, 6]]
    assert rows[-1][1].tolist() == [NOT_LEARNT, 6]
    assert (rows.input_ids.dtype, rows.labels.dtype, rows.offsets.dtype) == (np.int32, np.int32, np.int64)


def test_a_split_may_be_empty(tmp_path: Path) -> None:
    rows = TokenRows.load(dataset(tmp_path, TokenRows.pack([])), "train")
    assert len(rows) == 0 and list(rows) == [] and rows.lengths.tolist() == []


def test_a_row_that_is_not_there_is_an_index_error() -> None:
    for index in (1, -2):
        with pytest.raises(IndexError):
            TokenRows.pack([row(1)])[index]


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"test\.safetensors"):
        TokenRows.load(dataset(tmp_path, TokenRows.pack([row(1)])), "test")


@pytest.mark.parametrize(
    ("tokens", "learnt_from", "cut"),
    [(5, 2, (0, 5)), (100, 3, (0, 10)), (100, 50, (45, 55)), (100, 99, (90, 100)), (10, 10, (0, 10))],
)
def test_an_excerpt_shows_where_learning_begins(tokens: int, learnt_from: int, cut: tuple[int, int]) -> None:
    row = [PreviewToken("x", i, i >= learnt_from) for i in range(tokens)]
    assert excerpt(row, 10) == cut
