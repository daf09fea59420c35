"""Learning rates as transformers computes them, optimisers by every name, clipping."""

import math

import pytest
import torch
import transformers
from torch import nn

from puna.config.recipe import TrainingRecipe
from puna.train.optimiser import clip, learning_rate, make_optimiser

STEPS, WARMUP = 23, 5


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant", "constant_with_warmup"])
def test_schedules_equal_those_of_transformers(kind: str) -> None:
    training = TrainingRecipe(lr_scheduler_type=kind, learning_rate=3e-4, warmup_steps=WARMUP)
    reference = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3e-4)
    schedule = transformers.get_scheduler(kind, reference, WARMUP, STEPS)
    for step in range(STEPS):
        assert learning_rate(training, step, STEPS) == pytest.approx(schedule.get_last_lr()[0], rel=1e-12, abs=1e-15)
        reference.step()
        schedule.step()


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "paged_adamw_8bit"])
def test_every_optimiser_moves_the_masters_as_adamw_does(name: str) -> None:
    training = TrainingRecipe(optim=name, learning_rate=1e-2, weight_decay=0.1)
    start = torch.randn(96, 64, generator=torch.Generator().manual_seed(1))
    mine, reference = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours = make_optimiser([mine], training, "cpu")
    theirs = torch.optim.AdamW([reference], lr=1e-2, weight_decay=0.1)
    for _ in range(5):
        for parameter, optimiser in ((mine, ours), (reference, theirs)):
            parameter.grad = torch.sin(3 * parameter.detach())
            optimiser.step()
    moved = (reference - start).norm()
    assert (mine - reference).norm() < (1e-6 if name == "adamw" else 0.05) * moved


def test_clipping_keeps_small_gradients_and_reports_the_norm_before() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert clip([parameter], 10.0) == pytest.approx(5.0)
    assert parameter.grad.tolist() == [3.0, 4.0]
    assert clip([parameter], 1.0) == pytest.approx(5.0)
    assert parameter.grad.norm() == pytest.approx(1.0, rel=1e-5)
    parameter.grad = torch.tensor([math.nan, 1.0])
    assert math.isnan(clip([parameter], 1.0))
