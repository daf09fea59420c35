"""The blocks' arithmetic with hand-written gradients that keep few activations: plain torch, any device.

Covered: RMSNorm, rotary embedding, SwiGLU, frozen linear with LoRA and dropout, and the loss over a frozen
head. Each is checked against autograd or PEFT in tests/train; they are also the oracle of faster kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import Function
from torch.nn import functional as F

from puna.train.quant import FrozenWeight


def rms_norm(x_TD: torch.Tensor, w_D: torch.Tensor, eps: float) -> torch.Tensor:
    """w * x / rms(x) over the last dimension, the mean in float32; w is frozen."""
    return _RMSNorm.apply(x_TD, w_D, eps)  # type: ignore[no-untyped-call, no-any-return]


def rotate(x_THd: torch.Tensor, cos_Te: torch.Tensor, sin_Te: torch.Tensor) -> torch.Tensor:
    """Rotary embedding, halves convention of the Hugging Face checkpoints; e is half of d."""
    return _Rotate.apply(x_THd, cos_Te, sin_Te)  # type: ignore[no-untyped-call, no-any-return]


def swiglu(g_TF: torch.Tensor, u_TF: torch.Tensor) -> torch.Tensor:
    """silu(g) * u."""
    return _SwiGLU.apply(g_TF, u_TF)  # type: ignore[no-untyped-call, no-any-return]


def lora_linear(x_TI: torch.Tensor, a_RI: torch.Tensor, b_OR: torch.Tensor, beside: Beside) -> torch.Tensor:
    """x W' + bias + scale * (drop(x) A') B'; A and B in the compute dtype."""
    return _Lora.apply(x_TI, a_RI, b_OR, beside)  # type: ignore[no-untyped-call, no-any-return]


def frozen_linear(x_TI: torch.Tensor, weight: FrozenWeight, bias_O: torch.Tensor | None) -> torch.Tensor:
    """x W' + bias without keeping W, which autograd would."""
    return _Frozen.apply(x_TI, weight, bias_O)  # type: ignore[no-untyped-call, no-any-return]


def head_loss(
    h_ND: torch.Tensor,
    head_VD: torch.Tensor,
    rows: tuple[torch.Tensor | None, torch.Tensor | None],
    targets_N: torch.Tensor,
    chunk: int,
) -> torch.Tensor:
    """Sum of cross-entropies, float32; `rows` are the trained rows of the head and their ids, see head_logits."""
    return _HeadLoss.apply(h_ND, head_VD, *rows, targets_N, chunk)  # type: ignore[no-untyped-call, no-any-return]


class _RMSNorm(Function):
    """y = w * x / rms(x), the mean in float32; keeps x and one number a token. w is frozen."""

    @staticmethod
    def forward(ctx: Any, x_TD: torch.Tensor, w_D: torch.Tensor, eps: float) -> torch.Tensor:
        """Normalise the last dimension."""
        x = x_TD.float()
        r = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x_TD, w_D, r)
        y_TD: torch.Tensor = (x * r).to(x_TD.dtype).mul_(w_D)
        return y_TD

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """dx = r * (g - x * r^2 * mean(g * x)) with g = dy * w."""
        x_TD, w_D, r = ctx.saved_tensors
        x, g = x_TD.float(), grads[0].float() * w_D.float()
        mean = torch.linalg.vecdot(g, x).unsqueeze(-1) / x.shape[-1]
        return torch.addcmul(g, x, mean * r * r, value=-1).mul_(r).to(x_TD.dtype), None, None


class _Rotate(Function):
    """Rotary embedding, halves convention of the Hugging Face checkpoints; its gradient rotates back."""

    @staticmethod
    def forward(ctx: Any, x_THd: torch.Tensor, cos_Te: torch.Tensor, sin_Te: torch.Tensor) -> torch.Tensor:
        """Rotate; e is half the head dimension."""
        ctx.save_for_backward(cos_Te, sin_Te)
        return _rotate(x_THd, cos_Te, sin_Te)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Rotate by the opposite angle."""
        cos, sin = ctx.saved_tensors
        return _rotate(grads[0], cos, -sin), None, None


def _rotate(x_THd: torch.Tensor, cos_Te: torch.Tensor, sin_Te: torch.Tensor) -> torch.Tensor:
    half = x_THd.shape[-1] // 2
    cos, sin = cos_Te.unsqueeze(1), sin_Te.unsqueeze(1)
    a, b = x_THd[..., :half], x_THd[..., half:]
    out = torch.empty(x_THd.shape, dtype=x_THd.dtype, device=x_THd.device)
    torch.mul(a, cos, out=out[..., :half]).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=out[..., half:]).addcmul_(a, sin)
    return out


class _SwiGLU(Function):
    """silu(g) * u; keeps g and u only."""

    @staticmethod
    def forward(ctx: Any, g_TF: torch.Tensor, u_TF: torch.Tensor) -> torch.Tensor:
        """The gated activation."""
        ctx.save_for_backward(g_TF, u_TF)
        return F.silu(g_TF).mul_(u_TF)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of both inputs; silu(g) is computed again."""
        g, u = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grads[0] * u, g), F.silu(g).mul_(grads[0])


@dataclass(frozen=True)
class Beside:
    """What a LoRA product needs beside x, A and B, none of it trained."""

    weight: FrozenWeight
    bias_O: torch.Tensor | None
    scale: float
    mask_TI: torch.Tensor | None
    """True where dropout keeps; `scale` already makes up for what it drops."""


class _Lora(Function):
    """y = x W' + b + s (drop(x) A') B' with W frozen; keeps x, x A' and the dropout's mask."""

    @staticmethod
    def forward(ctx: Any, x_TI: torch.Tensor, a_RI: torch.Tensor, b_OR: torch.Tensor, beside: Beside) -> torch.Tensor:
        """A and B come in the compute dtype."""
        y_TO = F.linear(x_TI, beside.weight.tensor(), beside.bias_O)
        u_TR = (x_TI if beside.mask_TI is None else x_TI * beside.mask_TI) @ a_RI.t()
        ctx.save_for_backward(x_TI, a_RI, b_OR, u_TR, beside.mask_TI)
        ctx.weight, ctx.scale = beside.weight, beside.scale
        return y_TO.addmm_(u_TR, b_OR.t(), alpha=beside.scale)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """dA and dB always; dx unless x is a leaf that needs none (the first layer)."""
        x, a, b, u, mask = ctx.saved_tensors
        g = grads[0]
        v = (g @ b).mul_(ctx.scale)
        grad_a = v.t() @ (x if mask is None else x * mask)
        grad_b = (g.t() @ u).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = g @ ctx.weight.tensor()
            if mask is None:
                grad_x.addmm_(v, a)
            else:
                grad_x.addcmul_(v @ a, mask)
        return grad_x, grad_a, grad_b, None


class _Frozen(Function):
    """y = x W' + b with W frozen: autograd would keep the dequantised W."""

    @staticmethod
    def forward(ctx: Any, x_TI: torch.Tensor, weight: FrozenWeight, bias_O: torch.Tensor | None) -> torch.Tensor:
        """The product."""
        ctx.weight = weight
        return F.linear(x_TI, weight.tensor(), bias_O)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """dx = g W."""
        return grads[0] @ ctx.weight.tensor(), None, None


class _HeadLoss(Function):
    """Sum of cross-entropies over a frozen head, logits in float32 and a chunk at a time.

    The gradient is made in the forward pass, where the logits are, so that no logits are kept or computed
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
        for start in range(0, h_ND.shape[0], chunk):
            h, target = h_ND[start : start + chunk], targets_N[start : start + chunk, None]
            z = head_logits(h, head_VD, rows_nD, ids_n)
            lse = torch.logsumexp(z, dim=-1, keepdim=True)
            total += (lse - z.gather(1, target)).sum(dtype=torch.float64)
            if grad_h is None:
                continue
            p = z.sub_(lse).exp_()
            p[torch.arange(len(h), device=h.device), target[:, 0]] -= 1
            p = p.to(h.dtype)
            if rows_nD is not None and ids_n is not None and grad_rows is not None:
                p_n = p[:, ids_n]
                grad_rows += p_n.t() @ h
                p[:, ids_n] = 0
                grad_h[start : start + chunk] = (p @ head_VD).addmm_(p_n, rows_nD)
            else:
                torch.mm(p, head_VD, out=grad_h[start : start + chunk])
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
