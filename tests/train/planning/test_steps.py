"""Steps foreseen are the steps that are taken."""

import numpy as np
import pytest

from puna.train.planning.steps import Steps
from puna.train.rows import pack, share, step_rows

LENGTHS = np.random.default_rng(0).integers(5, 60, 45).astype(np.int64)


@pytest.mark.parametrize("world", [1, 3])
def test_tokens_of_each_step_and_of_the_largest_pass(world: int) -> None:
    steps = Steps.foresee(LENGTHS, 10, 7, 42, world)
    taken = []
    for step in range(7):
        chosen = LENGTHS[step_rows(45, 10, step, 42)]
        taken += [[int(chosen[i]) for i in part] for part in share(chosen, world)]
    assert [sum(s) for s in steps.shares] == [sum(s) for s in taken]
    assert steps.mean_tokens == pytest.approx(sum(map(sum, taken)) / len(taken))
    assert steps.most_tokens == max(map(sum, taken))
    for budget in (60, 100, 100_000):
        passes = [sum(s[i] for i in one) for s in taken for one in pack(s, budget)]
        assert steps.largest_pass(budget) == max(passes)
