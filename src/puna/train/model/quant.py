"""Frozen weights: NF4 with double quantisation, bit-equal to bitsandbytes, 8 bits with a scale a row, or dense."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest finite value of e4m3."""
SMALLEST_SCALE = 1e-12
"""A row of zeros gets this scale instead of none."""
Rows = tuple[torch.Tensor, torch.Tensor]
"""(values [T, K] in e4m3, scales [T, 1] in float32): a row is values * scale."""


class EightBit:
    """A frozen matrix in 8 bits, a scale for each of its rows; and again for each of its columns, for its gradient.

    The tensor cores read both operands along the inner dimension, so that the matrix is held both ways round: two
    bytes a weight, as much as one copy in 16 bits.
    """

    def __init__(self, dense_NK: torch.Tensor, quantise_rows: Callable[[torch.Tensor], Rows]) -> None:
        """`quantise_rows` is the device's kernel of that name."""
        self._rows = quantise_rows(dense_NK)
        self._columns = quantise_rows(dense_NK.t().contiguous())
        self._quantise = quantise_rows
        self._dtype = dense_NK.dtype

    def forward(self, x_TK: torch.Tensor) -> torch.Tensor:
        """x W' [T, N]; x gets a scale for each token."""
        return multiply(self._quantise(x_TK), self._rows, self._dtype)

    def backward(self, g_TN: torch.Tensor) -> torch.Tensor:
        """g W [T, K]; g gets a scale for each token."""
        return multiply(self._quantise(g_TN), self._columns, self._dtype)


def multiply(a: Rows, b: Rows, dtype: torch.dtype) -> torch.Tensor:
    """a b' [T, N] of a [T, K] and b [N, K]; on a device without 8-bit products, the same in float32."""
    (a_TK, a_scale), (b_NK, b_scale) = a, b
    if a_TK.is_cuda and torch.cuda.get_device_capability(a_TK.device) >= (8, 9):
        # Without fast accumulation: Hopper's own sums have 14 bits, these are carried over to float32 on the way.
        return torch._scaled_mm(a_TK, b_NK.t(), a_scale, b_scale.t(), out_dtype=dtype, use_fast_accum=False)
    return ((a_TK.float() * a_scale) @ (b_NK.float() * b_scale).t()).to(dtype)


BLOCK = 64
"""Weights that share one scale, as in the QLoRA paper and bitsandbytes' default."""


class FrozenWeight:
    """A matrix that is never trained: held as NF4 codes, or dense in the compute dtype.

    Both forms are the same function, W = dequantise(nf4(W)): a dense one costs four times the memory and
    saves dequantising at each use.
    """

    def __init__(self, dense: torch.Tensor | None, codes: torch.Tensor | None, state: Any, dtype: torch.dtype) -> None:
        """One of `dense` and (`codes`, `state`) is given; `dtype` is what is computed in."""
        held = dense if dense is not None else codes
        assert held is not None
        self.dense = dense
        self.codes = codes
        self.dtype = dtype
        self.shape: tuple[int, int] = tuple(state.shape if dense is None else dense.shape)
        self.device = held.device
        self._state = state

    def write(self, out_OI: torch.Tensor) -> None:
        """Write the weight to a tensor whose rows may lie in a wider buffer."""
        if self.dense is not None:
            out_OI.copy_(self.dense)
            return
        assert self.codes is not None
        if self.codes.is_cuda and self._state.dtype != torch.float64:
            from puna.train.model import triton_kernels  # not there on a machine without a GPU

            triton_kernels.dequantise(self.codes, self._state, out_OI)
        else:
            out_OI.copy_(dequantise(self.codes, self._state))

    def move_to(self, out_OI: torch.Tensor) -> None:
        """Give the dense weight a place in a wider buffer, and let go of the one that it had."""
        self.write(out_OI)
        self.dense, self.codes, self._state = out_OI, None, None


def quantise(weight: torch.Tensor, double: bool) -> tuple[torch.Tensor, Any]:
    """NF4 codes (two a byte) and their scales, as `bitsandbytes.nn.Linear4bit` makes them."""
    from bitsandbytes.functional import quantize_4bit

    codes, state = quantize_4bit(weight.contiguous(), blocksize=BLOCK, compress_statistics=double, quant_type="nf4")
    return codes, state


def dequantise(codes: torch.Tensor, state: Any) -> torch.Tensor:
    """The weight that the codes stand for, in the dtype it was quantised from."""
    from bitsandbytes.functional import dequantize_4bit

    dense: torch.Tensor = dequantize_4bit(codes, state, quant_type="nf4")
    return dense


def freeze(weight: torch.Tensor, dtype: torch.dtype, *, nf4: bool, double: bool, resident: bool) -> FrozenWeight:
    """Hold a weight for training, quantised from the dtype of its checkpoint as bitsandbytes does.

    With `resident` the codes are dropped and the dequantised weight stays.
    """
    if not nf4:
        return FrozenWeight(weight.to(dtype), None, None, dtype)
    codes, state = quantise(weight, double)
    if resident:
        return FrozenWeight(dequantise(codes, state).to(dtype), None, None, dtype)
    return FrozenWeight(None, codes, state, dtype)
