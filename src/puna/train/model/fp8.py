"""Products with frozen matrices in 8 bits: e4m3 values, one float32 scale a row, sums kept in float32."""

from __future__ import annotations

from collections.abc import Callable

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
