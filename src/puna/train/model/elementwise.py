"""The layer's arithmetic between matrix products, in plain torch: the CPU's path, and the Triton kernels' oracle.

Every function has a twin of the same name and meaning in triton_kernels.py. Rows are tokens; a tensor may be a
view of a wider buffer as long as its last dimension is dense. Sums and products are made in float32 (float64 for
float64), rounded once.

Dropout is (seed, dropped): the element in row t and column c of a [T, K] tensor is zeroed when its 16-bit hash of
(seed, t * K + c) is under `dropped`; what is kept is not scaled here. Where a function takes a `Masked`, the tensor in
it is what else is read or written under that mask, so that dropout costs no pass of its own over the activations.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from puna.train.model import quant

Drop = tuple[int, int]
"""(seed, elements in 65536 that are dropped)."""
Masked = tuple[torch.Tensor, Drop]
WORD = 0xFFFFFFFF


def add_norm(
    x_TD: torch.Tensor,
    y_TD: torch.Tensor | None,
    w_D: torch.Tensor,
    eps: float,
    h_TD: torch.Tensor,
    masked: Masked | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The residual stream x + y, and 1 / rms of each of its rows [T]; writes h = w * stream / rms to `h_TD`.

    As in transformers, the quotient is rounded before it is multiplied by w. `masked` receives h where it is kept.
    """
    if y_TD is not None:
        x_TD = x_TD + y_TD
    x = _wide(x_TD)
    r_T = torch.linalg.vector_norm(x, dim=-1).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    torch.mul((x * r_T[:, None]).to(w_D.dtype), w_D, out=h_TD)
    if masked:
        drop(h_TD, masked[1], masked[0])
    return x_TD, r_T


def norm_backward(
    g_TD: torch.Tensor,
    x_TD: torch.Tensor,
    scale: tuple[torch.Tensor, torch.Tensor],
    residual_TD: torch.Tensor | None,
    out_TD: torch.Tensor,
    masked: Masked | None = None,
) -> None:
    """Gradient of add_norm: writes residual + dx to `out_TD`, and h again over `g_TD`, its own gradient.

    `scale` is (w [D], 1 / rms [T]). dx = r * (wg - x * r^2 * mean(wg * x)). `masked` holds a gradient that came
    through dropout: it is added to g where it is kept, and h is written where it is kept only.
    """
    w_D, r_T = scale
    if masked:
        add_dropped(g_TD, *masked)
    x, r = _wide(x_TD), r_T[:, None]
    g = _wide(g_TD) * _wide(w_D)
    mean = torch.linalg.vecdot(g, x).unsqueeze(-1) / x.shape[-1]
    dx = torch.addcmul(g, x, mean * r * r, value=-1).mul_(r)
    torch.mul((x * r).to(w_D.dtype), w_D, out=g_TD)
    if masked:
        drop(g_TD, masked[1], g_TD)
    out_TD.copy_(dx if residual_TD is None else dx.add_(_wide(residual_TD)))


def swiglu(gu_TG: torch.Tensor, out_TF: torch.Tensor, masked: Masked | None = None) -> None:
    """silu(g) * u; `gu_TG` holds g in its first half of columns, u in the second. See add_norm for `masked`."""
    g, u = (_wide(half) for half in gu_TG.chunk(2, dim=1))
    out_TF.copy_(F.silu(g).mul_(u))
    if masked:
        drop(out_TF, masked[1], masked[0])


def swiglu_backward(gu_TG: torch.Tensor, da_TF: torch.Tensor, masked: Masked | None = None) -> None:
    """In place: g and u become their gradients, and their product's gradient becomes the product again.

    See norm_backward for `masked`.
    """
    if masked:
        add_dropped(da_TF, *masked)
    left, right = gu_TG.chunk(2, dim=1)
    g, u, da = _wide(left), _wide(right), _wide(da_TF)
    silu, d_gate = F.silu(g), torch.ops.aten.silu_backward(da * u, g)
    a, d_up = silu * u, silu.mul_(da)  # all are made before any is written: in float32 they are the tensors themselves
    left.copy_(d_gate)
    right.copy_(d_up)
    da_TF.copy_(a)
    if masked:
        drop(da_TF, masked[1], da_TF)


def rotate(x_TE: torch.Tensor, cos_Te: torch.Tensor, sin_Te: torch.Tensor, head_dim: int) -> None:
    """Rotary embedding in place over every head of `x_TE`, halves convention of the Hugging Face checkpoints."""
    turn_back(x_TE.clone(), cos_Te, -sin_Te, head_dim, x_TE)


def turn_back(
    x_TE: torch.Tensor, cos_Te: torch.Tensor, sin_Te: torch.Tensor, head_dim: int, out_TE: torch.Tensor
) -> None:
    """The gradient of `rotate`, a turn by the opposite angle, written to `out_TE`."""
    half = head_dim // 2
    cos, sin = _wide(cos_Te).unsqueeze(1), _wide(sin_Te).unsqueeze(1)
    heads, out = (x.view(len(x), -1, head_dim) for x in (x_TE, out_TE))
    a, b = _wide(heads[..., :half]), _wide(heads[..., half:])
    out[..., :half] = (a * cos).addcmul_(b, sin)
    out[..., half:] = (b * cos).addcmul_(a, sin, value=-1)


def cross_entropy(z_NV: torch.Tensor, targets_N: torch.Tensor, gradient: bool) -> torch.Tensor:
    """Cross-entropy of each row, float32 [N]; with `gradient`, the logits become their own gradient."""
    z = _wide(z_NV)
    lse_N1 = torch.logsumexp(z, dim=-1, keepdim=True)
    loss_N = (lse_N1 - z.gather(1, targets_N[:, None])).squeeze(1)
    if gradient:
        p = (z - lse_N1).exp_()
        p[torch.arange(len(p), device=p.device), targets_N] -= 1
        z_NV.copy_(p)
    return loss_N


def quantise_rows(x_TK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x in e4m3 with a scale for each row, (values [T, K], scales [T, 1] in float32): see quant.py."""
    scale_T1 = (_wide(x_TK).abs().amax(dim=1, keepdim=True) / quant.LARGEST).clamp_(min=quant.SMALLEST_SCALE)
    return (_wide(x_TK) / scale_T1).to(quant.E4M3), scale_T1.float()


def drop(x_TK: torch.Tensor, how: Drop, out_TK: torch.Tensor) -> None:
    """x where it is kept, 0 elsewhere; `out_TK` may be `x_TK`."""
    torch.mul(x_TK, keep(x_TK.shape, how, x_TK.device), out=out_TK)


def add_dropped(x_TK: torch.Tensor, y_TK: torch.Tensor, how: Drop) -> None:
    """x += y where it is kept, in place."""
    x_TK.addcmul_(y_TK, keep(x_TK.shape, how, x_TK.device).to(x_TK.dtype))


def keep(shape: torch.Size, how: Drop, device: torch.device) -> torch.Tensor:
    """The mask [T, K] that `how` stands for; the hash is MurmurHash3's finaliser of the place added to the seed."""
    seed, dropped = how
    n = torch.arange(shape.numel(), dtype=torch.int64, device=device).add_(seed).bitwise_and_(WORD)
    n.bitwise_xor_(n >> 16).mul_(0x85EBCA6B).bitwise_and_(WORD)
    n.bitwise_xor_(n >> 13).mul_(0xC2B2AE35).bitwise_and_(WORD)
    n.bitwise_xor_(n >> 16)
    return (n.bitwise_and_(0xFFFF) >= dropped).view(shape)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()
