"""A frozen linear layer with a LoRA pair beside it: float32 masters, compute copies, repeatable dropout."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import nn

from puna.train.kernels import Beside, frozen_linear, lora_linear
from puna.train.quant import FrozenWeight


@dataclass(frozen=True)
class Dropout:
    """Masks that depend on where they are used, and on nothing that went before.

    A mask is drawn from a generator seeded with (seed, step, batch, place): resuming, recomputing a layer
    and running uninterrupted give the same masks, and the resume state is two numbers.
    """

    p: float
    seed: int
    step: int
    batch: int

    def keep(self, shape: torch.Size, place: str, device: torch.device) -> tuple[torch.Tensor | None, float]:
        """(mask, share kept); the mask is None when nothing is dropped. `place` names the layer."""
        # 16 bits a decision: four from each draw, since drawing costs more than comparing.
        dropped = round(self.p * 65536)
        if dropped == 0:
            return None, 1.0
        text = f"{self.seed}/{self.step}/{self.batch}/{place}"
        number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1
        generator = torch.Generator(device).manual_seed(number)
        draws = torch.empty(-(-shape.numel() // 4), dtype=torch.int64, device=device)
        draws.random_(-(2**63), None, generator=generator)
        bits = draws.view(torch.int16)[: shape.numel()].view(shape)
        return bits >= dropped - 32768, 1 - dropped / 65536


class LoraLinear(nn.Module):
    """x W' + bias, plus scale * (drop(x) A') B' when the projection is a LoRA target."""

    def __init__(self, weight: FrozenWeight, bias: torch.Tensor | None, place: str) -> None:
        """`place` is the layer's name in the checkpoint, e.g. `model.layers.0.mlp.up_proj`."""
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.place = place
        self.scale = 0.0
        self.lora_a: nn.Parameter | None = None
        self.lora_b: nn.Parameter | None = None

    def add_lora(self, a_RI: torch.Tensor, b_OR: torch.Tensor, alpha: float) -> None:
        """Put a pair beside the frozen matrix; both are kept in float32."""
        self.lora_a = nn.Parameter(a_RI.float())
        self.lora_b = nn.Parameter(b_OR.float())
        self.scale = alpha / a_RI.shape[0]

    def forward(self, x_TI: torch.Tensor, dropout: Dropout | None = None) -> torch.Tensor:
        """[T, inputs] -> [T, outputs]."""
        if self.lora_a is None or self.lora_b is None:
            return frozen_linear(x_TI, self.weight, self.bias)
        mask, kept = dropout.keep(x_TI.shape, self.place, x_TI.device) if dropout else (None, 1.0)
        a, b = self.lora_a.to(x_TI.dtype), self.lora_b.to(x_TI.dtype)
        return lora_linear(x_TI, a, b, Beside(self.weight, self.bias, self.scale / kept, mask))


def fresh_pair(outputs: int, inputs: int, rank: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """PEFT's start: A kaiming-uniform with a = sqrt(5), B zero, so that training begins at the base's function."""
    bound = math.sqrt(2.0 / (1 + 5)) * math.sqrt(3.0 / inputs)
    a_RI = torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)
    return a_RI, torch.zeros(outputs, rank)
