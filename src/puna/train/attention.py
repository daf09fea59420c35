"""Causal attention over documents that lie end to end and never see each other."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch.autograd import Function
from torch.nn import functional as F

from puna.train.documents import Documents, Group


def attend(q_THd: torch.Tensor, k_TKd: torch.Tensor, v_TKd: torch.Tensor, documents: Documents) -> torch.Tensor:
    """Each token attends to itself and the earlier ones of its document; returns [T, H, d]."""
    if q_THd.is_cuda and _varlen_fits(q_THd):
        return _varlen(q_THd, k_TKd, v_TKd, documents)
    return _padded(q_THd, k_TKd, v_TKd, documents)


def attend_cached(q_THd: torch.Tensor, k_SKd: torch.Tensor, v_SKd: torch.Tensor) -> torch.Tensor:
    """The last T of S tokens of one document attend to all before them; returns [T, H, d]."""
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q_THd, k_SKd, v_SKd))
    k, v = _repeat(k, q.shape[1]), _repeat(v, q.shape[1])
    new, seen = q.shape[2], k.shape[2]
    mask = None
    if 1 < new < seen:
        mask = torch.ones(new, seen, dtype=torch.bool, device=q.device).tril(seen - new)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=new == seen and new > 1)
    return out.squeeze(0).transpose(0, 1)


def _padded(q_THd: torch.Tensor, k_TKd: torch.Tensor, v_TKd: torch.Tensor, documents: Documents) -> torch.Tensor:
    # Padding stands behind each document, where causal attention never looks, so no mask is needed.
    # torch.split, since the gradient of one slice is as large as the whole.
    sizes = [group.tokens for group in documents.groups]
    pieces = zip(*(torch.split(x, sizes) for x in (q_THd, k_TKd, v_TKd)), documents.groups, strict=True)
    parts = [_rectangle(*piece) for piece in pieces]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _rectangle(q_THd: torch.Tensor, k_TKd: torch.Tensor, v_TKd: torch.Tensor, group: Group) -> torch.Tensor:
    n, longest, heads = group.documents, group.longest, q_THd.shape[1]
    q, k, v = (
        _spread(x, group.place, n * longest).view(n, longest, -1, x.shape[-1]).transpose(1, 2)
        for x in (q_THd, k_TKd, v_TKd)
    )
    out = F.scaled_dot_product_attention(q, _repeat(k, heads), _repeat(v, heads), is_causal=True)
    flat = out.transpose(1, 2).reshape(n * longest, heads, -1)
    return _Gather.apply(flat, group.place)  # type: ignore[no-untyped-call, no-any-return]


def _spread(x: torch.Tensor, place: torch.Tensor | None, rows: int) -> torch.Tensor:
    return _Spread.apply(x, place, rows)  # type: ignore[no-untyped-call, no-any-return]


def _repeat(x_NKTd: torch.Tensor, heads: int) -> torch.Tensor:
    # Explicit, because sdpa's own grouped heads fall back to a slow kernel on the CPU.
    times = heads // x_NKTd.shape[1]
    return x_NKTd if times == 1 else x_NKTd.repeat_interleave(times, dim=1)


class _Spread(Function):
    """Rows to their places among zeros. (Its gradient, unlike index_put's, adds nothing up: it is exact.)"""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, place: torch.Tensor | None, rows: int) -> torch.Tensor:
        ctx.save_for_backward(place)
        return x if place is None else x.new_zeros(rows, *x.shape[1:]).index_copy_(0, place, x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (place,) = ctx.saved_tensors
        return grads[0] if place is None else grads[0].index_select(0, place), None, None


class _Gather(Function):
    """The opposite of _Spread."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, place: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(place)
        ctx.rows = x.shape[0]
        return x if place is None else x.index_select(0, place)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (place,) = ctx.saved_tensors
        g = grads[0]
        return g if place is None else g.new_zeros(ctx.rows, *g.shape[1:]).index_copy_(0, place, g), None


def _varlen_fits(q_THd: torch.Tensor) -> bool:
    modern = torch.cuda.get_device_capability(q_THd.device) >= (8, 0)
    return modern and q_THd.dtype in (torch.bfloat16, torch.float16) and q_THd.shape[-1] <= 256 and _has_varlen()


@cache
def _has_varlen() -> bool:
    try:
        import torch.nn.attention.varlen  # noqa: F401
    except ImportError:
        return False
    return True


def _varlen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # torch 2.13 asks for grouped heads by name and for a causal window as (-1, 0).
    grouped: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    s, longest = documents.starts, documents.longest
    out = varlen_attn(q, k, v, s, s, longest, longest, window_size=(-1, 0), **grouped)
    assert isinstance(out, torch.Tensor)
    return out
