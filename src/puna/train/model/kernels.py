"""Which implementation of the layer's arithmetic runs where, and the loss over the frozen head."""

from __future__ import annotations

import importlib.util
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch.autograd import Function

from puna.train.model import elementwise


def kernels(device: torch.device) -> ModuleType:
    """The module with the kernels for this device: Triton's on a GPU, else plain torch; same names, same meaning."""
    return _triton() if device.type == "cuda" else elementwise


@cache
def _triton() -> ModuleType:
    if importlib.util.find_spec("triton") is None:
        return elementwise  # torch builds for CUDA bring Triton along; without it the plain path is right, only slower
    from puna.train.model import triton_kernels  # imports Triton, which a machine without a GPU need not have

    return triton_kernels


def head_loss(
    h_ND: torch.Tensor,
    head_VD: torch.Tensor,
    rows: tuple[torch.Tensor | None, torch.Tensor | None],
    targets_N: torch.Tensor,
    chunk: int,
) -> torch.Tensor:
    """Sum of cross-entropies, float32; `rows` are the trained rows of the head and their ids, see head_logits."""
    return _HeadLoss.apply(h_ND, head_VD, *rows, targets_N, chunk)  # type: ignore[no-untyped-call, no-any-return]


class _HeadLoss(Function):
    """Sum of cross-entropies over a frozen head, a chunk of logits at a time.

    The gradient is made in the forward pass, over the logits themselves, so that no logits are kept or computed
    twice. Rows of the head that are trained (the chat tokens') stand in for the frozen ones of their ids.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h_ND: torch.Tensor,
        head_VD: torch.Tensor,
        rows_nD: torch.Tensor | None,
        ids_n: torch.Tensor | None,
        targets_N: torch.Tensor,
        chunk: int,
    ) -> torch.Tensor:
        """`chunk` is the number of tokens whose logits exist at a time."""
        total = torch.zeros((), dtype=torch.float64, device=h_ND.device)
        needed = any(ctx.needs_input_grad)
        grad_h = torch.empty_like(h_ND) if needed else None
        grad_rows = torch.zeros_like(rows_nD, dtype=torch.float32) if needed and rows_nD is not None else None
        cross_entropy = kernels(h_ND.device).cross_entropy
        for start in range(0, h_ND.shape[0], chunk):
            h, target = h_ND[start : start + chunk], targets_N[start : start + chunk]
            z_NV = h @ head_VD.t()
            if rows_nD is not None and ids_n is not None:
                z_NV[:, ids_n] = h @ rows_nD.t()
            total += cross_entropy(z_NV, target, needed).sum(dtype=torch.float64)
            if grad_h is None:
                continue
            if rows_nD is not None and ids_n is not None and grad_rows is not None:
                p_n = z_NV[:, ids_n]
                grad_rows += p_n.t() @ h
                z_NV.index_fill_(1, ids_n, 0)  # assigning a number would wait for the GPU
                torch.mm(z_NV, head_VD, out=grad_h[start : start + chunk]).addmm_(p_n, rows_nD)
            else:
                torch.mm(z_NV, head_VD, out=grad_h[start : start + chunk])
        ctx.save_for_backward(grad_h, grad_rows)
        ctx.rows_dtype = None if rows_nD is None else rows_nD.dtype
        return total.float()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale what the forward pass made."""
        grad_h, grad_rows = ctx.saved_tensors
        if grad_rows is not None:
            grad_rows = (grad_rows * grads[0]).to(ctx.rows_dtype)
        return grad_h * grads[0].to(grad_h.dtype), None, grad_rows, None, None, None


def head_logits(
    h_ND: torch.Tensor, head_VD: torch.Tensor, rows_nD: torch.Tensor | None, ids_n: torch.Tensor | None
) -> torch.Tensor:
    """float32 logits [N, V]; the trained rows, when there are any, replace the head's rows of their ids."""
    z = (h_ND @ head_VD.t()).float()
    if rows_nD is not None and ids_n is not None:
        z[:, ids_n] = (h_ND @ rows_nD.t()).float()
    return z
