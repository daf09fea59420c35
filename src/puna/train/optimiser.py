"""The optimisers by their recipe names, and the learning rate of each step as transformers computes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from puna.config.recipe import TrainingRecipe


def make_optimiser(masters: Iterable[nn.Parameter], training: TrainingRecipe, device: str) -> torch.optim.Optimizer:
    """AdamW over the float32 masters: torch's fused one, or bitsandbytes' with 8-bit states.

    paged_adamw_8bit keeps its states in pages that the GPU may push out to host memory; a CPU has nothing to
    page, so there it is adamw_8bit, whose numbers are the same.
    """
    parameters = list(masters)
    betas = (training.adam_beta1, training.adam_beta2)
    lr, eps, decay = training.learning_rate, training.adam_epsilon, training.weight_decay
    if training.optim == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, betas=betas, eps=eps, weight_decay=decay, fused=True)
    cls = _eight_bit(paged=training.optim == "paged_adamw_8bit" and device.startswith("cuda"))
    return cls(parameters, lr=lr, betas=betas, eps=eps, weight_decay=decay)


def _eight_bit(paged: bool) -> Callable[..., torch.optim.Optimizer]:
    import bitsandbytes

    base: Any = bitsandbytes.optim.PagedAdamW8bit if paged else bitsandbytes.optim.AdamW8bit

    class Queued(base):  # type: ignore[misc]
        """bitsandbytes' step waits for the GPU after each parameter; here its updates only join the queue.

        Paged states are read by the host for a checkpoint alone, after the masters: copying those waits for all.
        """

        initialized: bool

        @torch.no_grad()
        def step(self, closure: None = None) -> None:
            if not self.initialized:
                self.check_overrides()
                self.to_gpu()
                self.initialized = True
            for number, group in enumerate(self.param_groups):
                for index, parameter in enumerate(group["params"]):
                    if parameter.grad is None:
                        continue
                    if not self.state[parameter]:
                        self.init_state(group, parameter, number, index)
                    self.prefetch_state(parameter)
                    self.update_step(group, parameter, number, index)

    return Queued


def learning_rate(training: TrainingRecipe, step: int, steps: int) -> float:
    """The rate of optimiser step `step` (from 0) of `steps`.

    `constant` ignores warmup_steps, as in transformers; the others rise from 0 over them.
    """
    base, warmup = training.learning_rate, training.warmup_steps
    if training.lr_scheduler_type == "constant":
        return base
    if step < warmup:
        return base * step / max(1, warmup)
    if training.lr_scheduler_type == "constant_with_warmup":
        return base
    left = steps - warmup
    if training.lr_scheduler_type == "linear":
        return base * max(0.0, (steps - step) / max(1, left))
    return base * max(0.0, 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, left))))


def clip(masters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scale all gradients so that their joint norm is at most `max_norm` (0: as they are); returns the norm before.

    Neither the norm nor the scale leaves the device: nothing waits.
    """
    return nn.utils.clip_grad_norm_(masters, max_norm if max_norm > 0 else math.inf)
