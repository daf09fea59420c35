"""Causal attention over documents that lie end to end and never see each other."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.autograd import Function
from torch.nn import functional as F

from puna.train.batches import DocumentGroup, Documents


@dataclass(frozen=True)
class Attended:
    """A forward pass of attention that can be gone back through once."""

    leaves: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    out_THd: torch.Tensor

    def backward(self, grad_THd: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Gradients of q, k and v."""
        return torch.autograd.grad(self.out_THd, self.leaves, grad_THd)


def attend_and_keep(
    q_THd: torch.Tensor, k_TKd: torch.Tensor, v_TKd: torch.Tensor, documents: Documents
) -> tuple[torch.Tensor, Attended]:
    """`attend`, and what its gradient needs: the library's own graph, inside a layer that has no other."""
    with torch.enable_grad():
        q, k, v = (x.detach().requires_grad_() for x in (q_THd, k_TKd, v_TKd))
        out = attend(q, k, v, documents)
    return out.detach(), Attended((q, k, v), out)


def attend(q_THd: torch.Tensor, k_TKd: torch.Tensor, v_TKd: torch.Tensor, documents: Documents) -> torch.Tensor:
    """Each token attends to itself and the earlier ones of its document; returns [T, H, d].

    The fastest that is there: FlashAttention 4 on Hopper and later, torch's variable-length FlashAttention 2,
    else documents of like length padded to rectangles.
    """
    kind = kernel(q_THd.device, q_THd.dtype, q_THd.shape[-1])
    if kind == "flash-attn-4":
        return _flash_4(q_THd, k_TKd, v_TKd, documents)
    return (_varlen if kind == "varlen" else _padded)(q_THd, k_TKd, v_TKd, documents)


def kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Which attention runs there: `flash-attn-4`, `varlen` or `padded`."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return "padded"
    return _gpu_kernel(torch.cuda.get_device_capability(device), head_dim)


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


def _rectangle(q_THd: torch.Tensor, k_TKd: torch.Tensor, v_TKd: torch.Tensor, group: DocumentGroup) -> torch.Tensor:
    n, longest, heads = group.documents, group.longest, q_THd.shape[1]
    spread = (_spread(x, group.place, n * longest) for x in (q_THd, k_TKd, v_TKd))
    q, k, v = (x.view(n, longest, -1, x.shape[-1]).transpose(1, 2) for x in spread)
    out = F.scaled_dot_product_attention(q, _repeat(k, heads), _repeat(v, heads), is_causal=True)
    flat = out.transpose(1, 2).reshape(n * longest, heads, -1)
    return _Gather.apply(flat, group.place)  # type: ignore[no-untyped-call, no-any-return]


def _spread(x: torch.Tensor, place: torch.Tensor | None, rows: int) -> torch.Tensor:
    """Rows to their places among zeros. (The gradient of index_copy_ picks rows; index_put's would add them up.)"""
    return x if place is None else x.new_zeros(rows, *x.shape[1:]).index_copy_(0, place, x)


def _repeat(x_NKTd: torch.Tensor, heads: int) -> torch.Tensor:
    # Explicit, because sdpa's own grouped heads fall back to a slow kernel on the CPU.
    times = heads // x_NKTd.shape[1]
    return x_NKTd if times == 1 else x_NKTd.repeat_interleave(times, dim=1)


class _Gather(Function):
    """The opposite of _spread. (Its gradient, unlike index_select's own, adds nothing up: it is exact.)"""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, place: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(place)
        ctx.rows = x.shape[0]
        return x if place is None else x.index_select(0, place)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (place,) = ctx.saved_tensors
        return _spread(grads[0], place, ctx.rows), None


@cache
def _gpu_kernel(capability: tuple[int, int], head_dim: int) -> str:
    # Heads of 64 and 128: what FlashAttention 4's Hopper kernels were measured and checked with.
    if (9, 0) <= capability < (12, 0) and head_dim in (64, 128) and _flash_4_function() is not None:
        return "flash-attn-4"
    if capability >= (8, 0) and head_dim <= 256 and importlib.util.find_spec("torch.nn.attention.varlen"):
        return "varlen"
    return "padded"


@cache
def _flash_4_function() -> Any:
    # Its import compiles nothing but loads CUTLASS's Python DSL: seconds, so it waits until attention is needed.
    if importlib.util.find_spec("flash_attn") is None or importlib.util.find_spec("flash_attn.cute") is None:
        return None
    try:
        return importlib.import_module("flash_attn.cute").flash_attn_varlen_func
    except (ImportError, OSError, RuntimeError, AttributeError):
        return None  # a part of it is missing or does not fit this CUDA: the plan's reasons name what runs instead


def _flash_4(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents) -> torch.Tensor:
    s, longest = documents.starts, documents.longest
    out = _flash_4_function()(
        q, k, v, cu_seqlens_q=s, cu_seqlens_k=s, max_seqlen_q=longest, max_seqlen_k=longest, causal=True,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    result: torch.Tensor = out[0] if isinstance(out, tuple) else out
    return result


def _varlen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # torch 2.13 asks for grouped heads by name and for a causal window as (-1, 0).
    grouped: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    s, longest = documents.starts, documents.longest
    out = varlen_attn(q, k, v, s, s, longest, longest, window_size=(-1, 0), **grouped)
    assert isinstance(out, torch.Tensor)
    return out
