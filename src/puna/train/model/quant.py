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
        held = dense if dense is not None else codes
        assert held is not None
        self.dense = dense
        self.codes = codes
        self.dtype = dtype
        self.shape: tuple[int, int] = tuple(state.shape if dense is None else dense.shape)
        self.device = held.device
        self._state = state

    def tensor(self) -> torch.Tensor:
        """The weight [outputs, inputs] in the compute dtype."""
        if self.dense is not None:
            return self.dense
        out_OI = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        self.write(out_OI)
        return out_OI

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

    @property
    def size_bytes(self) -> int:
        """What it holds on to, in bytes, scales left out."""
        held = self.dense if self.dense is not None else self.codes
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
