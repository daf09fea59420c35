"""Frozen matrices with LoRA pairs beside them, computed as one product; float32 masters; repeatable dropout."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from puna.train.model.kernels import kernels
from puna.train.model.quant import EightBit, FrozenWeight

GPU_ALIGNMENT = 64
"""LoRA columns of a product are filled up to a multiple of this: the tensor cores' step along the inner dimension."""


@dataclass(frozen=True)
class Dropout:
    """The randomness of one pass: masks, and noise, that depend on their place and on nothing before.

    A mask is a hash of (seed, step, batch, place) and of the element's own place: resuming, recomputing a layer and
    running uninterrupted give the same masks, no mask is stored, and the resume state is two numbers. Projections
    that read the same input share its mask.
    """

    p: float
    seed: int
    step: int
    batch: int
    noise_alpha: float = 0.0
    """NEFTune's; no noise when 0."""

    def at(self, place: str) -> tuple[int, int] | None:
        """(seed, elements in 65536 that are dropped) of one place in the model; None when nothing is dropped."""
        dropped = round(self.p * 65536)
        if not dropped:
            return None
        return self._seed_of(place), dropped

    def _seed_of(self, place: str) -> int:
        text = f"{self.seed}/{self.step}/{self.batch}/{place}"
        # 31 bits, so that a kernel's argument has one type.
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) >> 1

    @property
    def kept(self) -> float:
        """The share that is not dropped."""
        return 1 - round(self.p * 65536) / 65536

    def noisy(self, x_TD: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The embeddings of documents of these lengths with NEFTune's noise: uniform in +- alpha / sqrt(L x D)."""
        if not self.noise_alpha:
            return x_TD
        generator = torch.Generator(x_TD.device).manual_seed(self._seed_of("embeddings"))
        noise_TD = torch.empty_like(x_TD).uniform_(-1, 1, generator=generator)
        bounds = self.noise_alpha / (lengths.float() * x_TD.shape[1]).sqrt()
        # The size is known here: without it, the host would wait for the GPU to say.
        bounds_T = torch.repeat_interleave(bounds, lengths, output_size=len(x_TD))
        return x_TD + noise_TD.mul_(bounds_T[:, None].to(x_TD.dtype))


class LoraLinear(nn.Module):
    """One frozen matrix of the checkpoint and, when it is a LoRA target, its pair of float32 masters."""

    def __init__(self, weight: FrozenWeight, bias: torch.Tensor | None, place: str) -> None:
        """`place` is the layer's name in the checkpoint, e.g. `model.layers.0.mlp.up_proj`."""
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.place = place
        self.scale = 0.0
        self.lora_a: nn.Parameter | None = None
        self.lora_b: nn.Parameter | None = None

    def add_lora(self, a_RI: torch.Tensor, b_OR: torch.Tensor, alpha: float, use_rslora: bool = False) -> None:
        """Put a pair beside the frozen matrix; both are kept in float32 (float64 if given so)."""
        master = torch.promote_types(a_RI.dtype, torch.float32)
        self.lora_a = nn.Parameter(a_RI.to(master))
        self.lora_b = nn.Parameter(b_OR.to(master))
        self.scale = alpha / (math.sqrt(a_RI.shape[0]) if use_rslora else a_RI.shape[0])

    @property
    def rank(self) -> int:
        """Columns of its pair; 0 when it has none."""
        return 0 if self.lora_a is None else self.lora_a.shape[0]


class Product(nn.Module):
    """Matrices that read the same input, with their LoRA pairs, as one matrix product each way.

    W [N, K] are the matrices below each other; A [R, K] and sB [N, R] their pairs, B in blocks. They lie in one
    buffer, [[W, sB], [A, 0]], so that with u = drop(x) A' and v = g (sB)

        y  = [x, u] [W, sB]'        and        dx = [g, v] [W; A]

    are single products, where adding the LoRA part to y and dx would read and write both once more. R is filled up
    to `extra` columns of zeros. Callers keep x and g in buffers `extra` columns wider than they are.
    """

    def __init__(self, linears: Sequence[LoraLinear]) -> None:
        """All of `linears` have the same inputs, dtype and device."""
        super().__init__()
        self.members: Sequence[LoraLinear] = nn.ModuleList(linears)  # type: ignore[assignment]
        first: FrozenWeight = linears[0].weight
        self.outputs = sum(linear.weight.shape[0] for linear in linears)
        self.inputs = first.shape[1]
        self.extra = 0
        self.is_fp8 = False
        """Multiply the frozen part in 8 bits; set before the first pass."""
        self._eight: EightBit | None = None
        self._like = torch.empty(0, dtype=first.dtype, device=first.device)
        self._resident = first.dense is not None
        self._buffer: torch.Tensor | None = None
        self._sides: tuple[torch.Tensor, torch.Tensor] | None = None
        biases = [linear.bias for linear in linears if linear.bias is not None]
        self.bias_N = torch.cat(biases) if biases else None

    @property
    def beside(self) -> int:
        """Columns that must be free behind x and g: none where LoRA's part is a product of its own."""
        return 0 if self.is_fp8 else self.extra

    @property
    def masters(self) -> list[nn.Parameter]:
        """A and B of each matrix that has them, in order."""
        return [p for linear in self.members for p in (linear.lora_a, linear.lora_b) if p is not None]

    def refresh(self, kept: float) -> None:
        """Write the masters, rounded to the compute dtype, beside the frozen weights; `kept` is dropout's share."""
        rank = sum(linear.rank for linear in self.members)
        align = GPU_ALIGNMENT if self._like.is_cuda else 1
        extra = -(-rank // align) * align
        if self._sides is None or extra != self.extra:
            self.extra = extra
            self._lay_out()
        assert self._sides is not None
        right_NE, below_EK = self._sides
        with torch.no_grad():
            for linear, rows, columns in self._blocks():
                if linear.lora_a is not None and linear.lora_b is not None:
                    below_EK[columns].copy_(linear.lora_a)
                    right_NE[rows, columns].copy_(linear.lora_b * (linear.scale / kept))

    def _lay_out(self) -> None:
        n, k, e = self.outputs, self.inputs, self.extra
        if self.is_fp8 and self._eight is None:
            dense = self._like.new_empty(n, k)
            self._write_weights(dense, move=False)
            self._eight = EightBit(dense, kernels(dense.device).quantise_rows)
        if self._resident and not self.is_fp8:
            self._buffer = buffer = self._like.new_empty(n + e, k + e)
            self._write_weights(buffer, move=True)
            self._sides = buffer[:n, k:], buffer[n:, :k]
        else:
            self._sides = self._like.new_empty(n, e), self._like.new_empty(e, k)
        for side in self._sides:
            side.zero_()

    def _write_weights(self, buffer: torch.Tensor, move: bool) -> None:
        for linear, rows, _ in self._blocks():
            place = buffer[rows, : self.inputs]
            (linear.weight.move_to if move else linear.weight.write)(place)

    def weights(self) -> torch.Tensor:
        """The buffer [N + extra, K + extra]; dequantised anew unless the weights are resident."""
        if self._buffer is not None:
            return self._buffer
        assert self._sides is not None, "refresh() comes first"
        n, k = self.outputs, self.inputs
        buffer = self._like.new_empty(n + self.extra, k + self.extra)
        self._write_weights(buffer, move=False)
        buffer[:n, k:].copy_(self._sides[0])
        buffer[n:, :k].copy_(self._sides[1])
        return buffer

    def down(self, x_TK: torch.Tensor) -> torch.Tensor | None:
        """u = x A' [T, extra]; x is already dropped out. None without LoRA."""
        return None if self._sides is None or not self.extra else x_TK @ self._sides[1].t()

    def forward(
        self, x_TE: torch.Tensor, u_TR: torch.Tensor | None, out_TN: torch.Tensor | None = None
    ) -> torch.Tensor:
        """y [T, N] of x [T, K], a view whose buffer has `extra` more columns: see `wide`."""
        if self._eight is not None:
            return self._added(self._eight.forward(x_TE), u_TR)
        n, whole = self.outputs, self.weights()
        if u_TR is not None:
            x_TE = _widened(x_TE, self.extra)
            x_TE[:, self.inputs :].copy_(u_TR)
        return self._biased(torch.mm(x_TE, whole[:n, : x_TE.shape[1]].t(), out=out_TN))

    def apart(self, x_TK: torch.Tensor, u_TR: torch.Tensor | None) -> torch.Tensor:
        """y of an x that comes from elsewhere, without room behind it: the LoRA part is added afterwards."""
        if self._eight is not None:
            return self._added(self._eight.forward(x_TK), u_TR)
        return self._added(x_TK @ self.weights()[: self.outputs, : self.inputs].t(), u_TR)

    def _added(self, y_TN: torch.Tensor, u_TR: torch.Tensor | None) -> torch.Tensor:
        if u_TR is not None and self._sides is not None:
            y_TN.addmm_(u_TR, self._sides[0].t())
        return self._biased(y_TN)

    def _biased(self, y_TN: torch.Tensor) -> torch.Tensor:
        return y_TN if self.bias_N is None else y_TN.add_(self.bias_N)

    def back(self, g_TE: torch.Tensor) -> torch.Tensor | None:
        """v = g (sB) [T, extra]; None without LoRA."""
        return None if self._sides is None or not self.extra else g_TE @ self._sides[0]

    def input_gradient(
        self, g_TE: torch.Tensor, v_TR: torch.Tensor | None, drop: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """dx [T, K] of dy [T, N]; with `drop`, the frozen part and the LoRA part, which is dropped out where x was."""
        if self._eight is not None:
            dx_TK = self._eight.backward(g_TE)
            if v_TR is None or self._sides is None:
                return dx_TK, None
            return (dx_TK, v_TR @ self._sides[1]) if drop else (dx_TK.addmm_(v_TR, self._sides[1]), None)
        k, whole = self.inputs, self.weights()
        if v_TR is None:
            return g_TE @ whole[: self.outputs, :k], None
        if drop:
            return g_TE @ whole[: self.outputs, :k], v_TR @ whole[self.outputs :, :k]
        g_TE = _widened(g_TE, self.extra)
        g_TE[:, self.outputs :].copy_(v_TR)
        return g_TE @ whole[:, :k], None

    def lora_gradients(
        self,
        forward: tuple[torch.Tensor, torch.Tensor | None],
        backward: tuple[torch.Tensor, torch.Tensor | None],
        kept: float,
    ) -> list[torch.Tensor]:
        """Float32 gradients of `masters`, in their order, from (x dropped out, u) and (g, v)."""
        (x_TK, u_TR), (g_TN, v_TR) = forward, backward
        if u_TR is None or v_TR is None:
            return []
        grad_a_EK, grad_b_NE = transposed_product(v_TR, x_TK), transposed_product(g_TN, u_TR)
        found: list[torch.Tensor] = []
        for linear, rows, columns in self._blocks():
            if linear.rank:
                found += [grad_a_EK[columns], grad_b_NE[rows, columns] * (linear.scale / kept)]
        return found

    def _blocks(self) -> Iterator[tuple[LoraLinear, slice, slice]]:
        """Each matrix with its rows of the product and its columns of LoRA's."""
        row = column = 0
        for linear in self.members:
            rows, columns = slice(row, row + linear.weight.shape[0]), slice(column, column + linear.rank)
            row, column = rows.stop, columns.stop
            yield linear, rows, columns


def transposed_product(a_TM: torch.Tensor, b_TN: torch.Tensor) -> torch.Tensor:
    """a' b [M, N], in float32 on a GPU, where a sum over many tokens would lose bits in 16."""
    if a_TM.is_cuda and a_TM.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a_TM.t(), b_TN, out_dtype=torch.float32)
    return (a_TM.t() @ b_TN).to(torch.promote_types(a_TM.dtype, torch.float32))


def wide(tokens: int, width: int, extra: int, like: torch.Tensor) -> torch.Tensor:
    """An uninitialised [tokens, width] view of a buffer with `extra` more columns."""
    return like.new_empty(tokens, width + extra)[:, :width]


def _widened(x_TE: torch.Tensor, extra: int) -> torch.Tensor:
    # The view made by `wide`, with the columns behind it.
    return x_TE.as_strided((x_TE.shape[0], x_TE.shape[1] + extra), x_TE.stride())


def fresh_pair(outputs: int, inputs: int, rank: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """PEFT's start: A kaiming-uniform with a = sqrt(5), B zero, so that training begins at the base's function."""
    bound = math.sqrt(2.0 / (1 + 5)) * math.sqrt(3.0 / inputs)
    a_RI = torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)
    return a_RI, torch.zeros(outputs, rank)
