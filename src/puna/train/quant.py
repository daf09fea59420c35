"""Frozen weights: NF4 with double quantisation, bit-equal to bitsandbytes, or kept dense."""

from __future__ import annotations

from typing import Any

import torch

BLOCK = 64
"""Weights that share one scale, as in the QLoRA paper and bitsandbytes' default."""


class FrozenWeight:
    """A matrix that is never trained: held as NF4 codes, or dense in the compute dtype.

    Both forms are the same function, W = dequantise(nf4(W)): a dense one costs four times the memory and
    saves dequantising at each use.
    """

    def __init__(self, dense: torch.Tensor | None, codes: torch.Tensor | None, state: Any, dtype: torch.dtype) -> None:
        """One of `dense` and (`codes`, `state`) is given; `dtype` is what `tensor` returns."""
        self._dense = dense
        self._codes = codes
        self._state = state
        self._dtype = dtype

    def tensor(self) -> torch.Tensor:
        """The weight [outputs, inputs] in the compute dtype."""
        if self._dense is not None:
            return self._dense
        assert self._codes is not None
        return dequantise(self._codes, self._state).to(self._dtype)

    @property
    def size_bytes(self) -> int:
        """What it holds on to, in bytes, scales left out."""
        held = self._dense if self._dense is not None else self._codes
        assert held is not None
        return held.numel() * held.element_size()


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
