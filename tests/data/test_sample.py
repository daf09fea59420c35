"""The choice of rows is the same for the same seed, and holds out what was asked for."""

import pytest

from puna.data.sample import sample, split
from puna.errors import DataError


def test_the_same_seed_takes_the_same_rows() -> None:
    assert sample(1000, 10, 42) == sample(1000, 10, 42) != sample(1000, 10, 43)
    assert sample(1000, 20, 42)[:10] == sample(1000, 10, 42)


def test_all_rows_are_taken_when_there_are_no_more() -> None:
    assert sorted(sample(5, None, 42)) == sorted(sample(5, 10_000, 42)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("total", "fraction", "held_out"), [(10_000, 0.01, 100), (10, 0.01, 1), (9, 0.5, 5), (7, 0, 0)]
)
def test_no_row_is_lost_or_in_both_parts(total: int, fraction: float, held_out: int) -> None:
    train, test = split(total, fraction, 42)
    assert len(test) == held_out and sorted(train + test) == list(range(total))


def test_rows_to_train_on_must_be_left() -> None:
    with pytest.raises(DataError, match="1 row cannot be split") as caught:
        split(1, 0.01, 42)
    assert "test_fraction: 0" in caught.value.hint
