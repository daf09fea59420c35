"""The layer's arithmetic between matrix products as Triton kernels: the twins of elementwise.py, and NF4 decoding.

What each means is said in elementwise.py. A row is one program, or a tile of rows and columns is; 64-bit offsets,
since 32k tokens of 28 672 columns are near 2^30 elements and logits are beyond it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

Drop = tuple[int, int]
Masked = tuple[torch.Tensor, Drop]

COLUMNS = 1024
"""Columns of a tile: with 8 rows of it, 16-byte accesses and enough of them in flight."""
VOCABULARY = 8192
"""Logits that one program holds at a time."""


@triton.jit
def _kept(seed, dropped, places):
    n = places.to(tl.uint32) + seed.to(tl.uint32)
    n = (n ^ (n >> 16)) * 0x85EBCA6B
    n = (n ^ (n >> 13)) * 0xC2B2AE35
    return ((n ^ (n >> 16)) & 0xFFFF) >= dropped.to(tl.uint32)


@triton.jit(do_not_specialize=["seed", "dropped"])
def _add_norm(x_p, y_p, w_p, s_p, h_p, m_p, r_p, x_s, y_s, h_s, m_s, eps, seed, dropped,
              D: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr, MASK: tl.constexpr):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    inside = c < D
    x = tl.load(x_p + t * x_s + c, mask=inside, other=0.0)
    if ADD:
        y = tl.load(y_p + t * y_s + c, mask=inside, other=0.0)
        x = (x.to(tl.float32) + y.to(tl.float32)).to(s_p.dtype.element_ty)
        tl.store(s_p + t * D + c, x, mask=inside)
    x = x.to(tl.float32)
    r = 1.0 / tl.sqrt(tl.sum(x * x) / D + eps)
    tl.store(r_p + t, r)
    w = tl.load(w_p + c, mask=inside, other=0.0).to(tl.float32)
    h = ((x * r).to(h_p.dtype.element_ty).to(tl.float32) * w).to(h_p.dtype.element_ty)
    tl.store(h_p + t * h_s + c, h, mask=inside)
    if MASK:
        kept = _kept(seed, dropped, t * D + c)
        tl.store(m_p + t * m_s + c, tl.where(kept, h.to(tl.float32), 0.0).to(h_p.dtype.element_ty), mask=inside)


def add_norm(
    x_TD: torch.Tensor,
    y_TD: torch.Tensor | None,
    w_D: torch.Tensor,
    eps: float,
    h_TD: torch.Tensor,
    masked: Masked | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See elementwise.add_norm."""
    tokens, width = x_TD.shape
    stream = x_TD if y_TD is None else torch.empty_like(x_TD, memory_format=torch.contiguous_format)
    y, (m, (seed, dropped)) = (x_TD if y_TD is None else y_TD), masked or (h_TD, (0, 0))
    r_T = torch.empty(tokens, dtype=torch.float32, device=x_TD.device)
    _add_norm[(tokens,)](
        x_TD, y, w_D, stream, h_TD, m, r_T, x_TD.stride(0), y.stride(0), h_TD.stride(0), m.stride(0), eps,
        seed, dropped, width, triton.next_power_of_2(width), y_TD is not None, masked is not None,
        num_warps=_warps(width),
    )  # fmt: skip
    return stream, r_T


@triton.jit(do_not_specialize=["seed", "dropped"])
def _norm_backward(g_p, x_p, w_p, r_p, res_p, out_p, m_p, g_s, x_s, res_s, out_s, m_s, seed, dropped,
                   D: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr, MASK: tl.constexpr):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    inside = c < D
    x = tl.load(x_p + t * x_s + c, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(g_p + t * g_s + c, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(w_p + c, mask=inside, other=0.0).to(tl.float32)
    r = tl.load(r_p + t)
    h = (x * r).to(g_p.dtype.element_ty).to(tl.float32) * w
    if MASK:
        kept = _kept(seed, dropped, t * D + c)
        g += tl.where(kept, tl.load(m_p + t * m_s + c, mask=inside, other=0.0).to(tl.float32), 0.0)
        g = g.to(g_p.dtype.element_ty).to(tl.float32)
        h = tl.where(kept, h, 0.0)
    tl.store(g_p + t * g_s + c, h.to(g_p.dtype.element_ty), mask=inside)
    g = g * w
    dx = r * (g - x * (r * r * (tl.sum(g * x) / D)))
    if ADD:
        dx += tl.load(res_p + t * res_s + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_p + t * out_s + c, dx.to(out_p.dtype.element_ty), mask=inside)


def norm_backward(
    g_TD: torch.Tensor,
    x_TD: torch.Tensor,
    scale: tuple[torch.Tensor, torch.Tensor],
    residual_TD: torch.Tensor | None,
    out_TD: torch.Tensor,
    masked: Masked | None = None,
) -> None:
    """See elementwise.norm_backward."""
    tokens, width = x_TD.shape
    residual, (m, (seed, dropped)) = (x_TD if residual_TD is None else residual_TD), masked or (g_TD, (0, 0))
    _norm_backward[(tokens,)](
        g_TD, x_TD, *scale, residual, out_TD, m, g_TD.stride(0), x_TD.stride(0), residual.stride(0), out_TD.stride(0),
        m.stride(0), seed, dropped, width, triton.next_power_of_2(width), residual_TD is not None, masked is not None,
        num_warps=_warps(width),
    )  # fmt: skip


@triton.jit(do_not_specialize=["seed", "dropped"])
def _swiglu(gu_p, out_p, m_p, gu_s, out_s, m_s, seed, dropped, F, BLOCK: tl.constexpr, MASK: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < F
    g = tl.load(gu_p + t * gu_s + c, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(gu_p + t * gu_s + F + c, mask=inside, other=0.0).to(tl.float32)
    a = (g * tl.sigmoid(g) * u).to(out_p.dtype.element_ty)
    tl.store(out_p + t * out_s + c, a, mask=inside)
    if MASK:
        kept = _kept(seed, dropped, t * F + c)
        tl.store(m_p + t * m_s + c, tl.where(kept, a.to(tl.float32), 0.0).to(out_p.dtype.element_ty), mask=inside)


def swiglu(gu_TG: torch.Tensor, out_TF: torch.Tensor, masked: Masked | None = None) -> None:
    """See elementwise.swiglu."""
    tokens, width = out_TF.shape
    m, (seed, dropped) = masked or (out_TF, (0, 0))
    _swiglu[(tokens, triton.cdiv(width, 2 * COLUMNS))](
        gu_TG, out_TF, m, gu_TG.stride(0), out_TF.stride(0), m.stride(0), seed, dropped, width, 2 * COLUMNS,
        masked is not None, num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["seed", "dropped"])
def _swiglu_backward(gu_p, da_p, m_p, gu_s, da_s, m_s, seed, dropped, F, BLOCK: tl.constexpr, MASK: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < F
    g = tl.load(gu_p + t * gu_s + c, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(gu_p + t * gu_s + F + c, mask=inside, other=0.0).to(tl.float32)
    da = tl.load(da_p + t * da_s + c, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(g)
    silu = g * sigmoid
    a = silu * u
    if MASK:
        kept = _kept(seed, dropped, t * F + c)
        da += tl.where(kept, tl.load(m_p + t * m_s + c, mask=inside, other=0.0).to(tl.float32), 0.0)
        da = da.to(da_p.dtype.element_ty).to(tl.float32)
        a = tl.where(kept, a, 0.0)
    dtype = gu_p.dtype.element_ty
    tl.store(gu_p + t * gu_s + c, (da * u * (sigmoid + silu * (1.0 - sigmoid))).to(dtype), mask=inside)
    tl.store(gu_p + t * gu_s + F + c, (da * silu).to(dtype), mask=inside)
    tl.store(da_p + t * da_s + c, a.to(dtype), mask=inside)


def swiglu_backward(gu_TG: torch.Tensor, da_TF: torch.Tensor, masked: Masked | None = None) -> None:
    """See elementwise.swiglu_backward."""
    tokens, width = da_TF.shape
    m, (seed, dropped) = masked or (da_TF, (0, 0))
    _swiglu_backward[(tokens, triton.cdiv(width, 2 * COLUMNS))](
        gu_TG, da_TF, m, gu_TG.stride(0), da_TF.stride(0), m.stride(0), seed, dropped, width, 2 * COLUMNS,
        masked is not None, num_warps=4,
    )  # fmt: skip


@triton.jit
def _turn(x_p, cos_p, sin_p, out_p, x_s, out_s, heads, sign,
          HALF: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    h, c = tl.arange(0, HEADS)[:, None], tl.arange(0, BLOCK)[None, :]
    inside = (h < heads) & (c < HALF)
    place = h * (2 * HALF) + c
    a = tl.load(x_p + t * x_s + place, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x_p + t * x_s + place + HALF, mask=inside, other=0.0).to(tl.float32)
    cos = tl.load(cos_p + t * HALF + c, mask=c < HALF, other=0.0).to(tl.float32)
    sin = tl.load(sin_p + t * HALF + c, mask=c < HALF, other=0.0).to(tl.float32) * sign
    dtype = out_p.dtype.element_ty
    tl.store(out_p + t * out_s + place, (a * cos + b * sin).to(dtype), mask=inside)
    tl.store(out_p + t * out_s + place + HALF, (b * cos - a * sin).to(dtype), mask=inside)


def rotate(x_TE: torch.Tensor, cos_Te: torch.Tensor, sin_Te: torch.Tensor, head_dim: int) -> None:
    """See elementwise.rotate."""
    _rotated(x_TE, (cos_Te, sin_Te, -1.0), head_dim, x_TE)


def turn_back(
    x_TE: torch.Tensor, cos_Te: torch.Tensor, sin_Te: torch.Tensor, head_dim: int, out_TE: torch.Tensor
) -> None:
    """See elementwise.turn_back."""
    _rotated(x_TE, (cos_Te, sin_Te, 1.0), head_dim, out_TE)


def _rotated(
    x_TE: torch.Tensor, angle: tuple[torch.Tensor, torch.Tensor, float], head_dim: int, out: torch.Tensor
) -> None:
    heads, half = x_TE.shape[1] // head_dim, head_dim // 2
    cos, sin, sign = angle
    _turn[(x_TE.shape[0],)](
        x_TE, cos, sin, out, x_TE.stride(0), out.stride(0), heads, sign,
        half, triton.next_power_of_2(half), triton.next_power_of_2(heads), num_warps=4,
    )  # fmt: skip


@triton.jit
def _cross_entropy(z_p, target_p, loss_p, z_s, V: tl.constexpr, BLOCK: tl.constexpr, GRADIENT: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    z_p += n * z_s
    target = tl.load(target_p + n)
    largest, total = -float("inf"), 0.0
    for start in range(0, V, BLOCK):
        c = start + tl.arange(0, BLOCK)
        z = tl.load(z_p + c, mask=c < V, other=-float("inf")).to(tl.float32)
        new = tl.maximum(largest, tl.max(z))
        total = total * tl.exp(largest - new) + tl.sum(tl.exp(z - new))
        largest = new
    lse = largest + tl.log(total)
    tl.store(loss_p + n, lse - tl.load(z_p + target).to(tl.float32))
    if GRADIENT:
        for start in range(0, V, BLOCK):
            c = start + tl.arange(0, BLOCK)
            z = tl.load(z_p + c, mask=c < V, other=-float("inf")).to(tl.float32)
            p = tl.exp(z - lse) - tl.where(c == target, 1.0, 0.0)
            tl.store(z_p + c, p.to(z_p.dtype.element_ty), mask=c < V)


def cross_entropy(z_NV: torch.Tensor, targets_N: torch.Tensor, gradient: bool) -> torch.Tensor:
    """See elementwise.cross_entropy."""
    rows, vocab = z_NV.shape
    loss_N = torch.empty(rows, dtype=torch.float32, device=z_NV.device)
    block = min(VOCABULARY, triton.next_power_of_2(vocab))
    if rows:
        _cross_entropy[(rows,)](z_NV, targets_N, loss_N, z_NV.stride(0), vocab, block, gradient, num_warps=16)
    return loss_N


@triton.jit
def _quantise_rows(x_p, out_p, scale_p, x_s, K: tl.constexpr, BLOCK: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    largest = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, K, BLOCK):
        c = start + tl.arange(0, BLOCK)
        x = tl.load(x_p + t * x_s + c, mask=c < K, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(x))
    scale = tl.maximum(tl.max(largest) / 448.0, 1e-12)  # quant.LARGEST, .SMALLEST_SCALE: a kernel takes no globals
    tl.store(scale_p + t, scale)
    for start in range(0, K, BLOCK):  # read again: a row of 57 KB is still in the cache
        c = start + tl.arange(0, BLOCK)
        x = tl.load(x_p + t * x_s + c, mask=c < K, other=0.0).to(tl.float32)
        tl.store(out_p + t * K + c, (x / scale).to(out_p.dtype.element_ty), mask=c < K)


def quantise_rows(x_TK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See elementwise.quantise_rows."""
    tokens, width = x_TK.shape
    out_TK = torch.empty(tokens, width, dtype=torch.float8_e4m3fn, device=x_TK.device)
    scale_T1 = torch.empty(tokens, 1, dtype=torch.float32, device=x_TK.device)
    block = min(4096, triton.next_power_of_2(width))
    _quantise_rows[(tokens,)](x_TK, out_TK, scale_T1, x_TK.stride(0), width, block, num_warps=8)
    return out_TK, scale_T1


@triton.jit(do_not_specialize=["seed", "dropped"])
def _dropped(x_p, out_p, x_s, out_s, seed, dropped, K, BLOCK: tl.constexpr, ADD: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < K
    x = tl.load(x_p + t * x_s + c, mask=inside, other=0.0).to(tl.float32)
    x = tl.where(_kept(seed, dropped, t * K + c), x, 0.0)
    if ADD:
        x += tl.load(out_p + t * out_s + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_p + t * out_s + c, x.to(out_p.dtype.element_ty), mask=inside)


def drop(x_TK: torch.Tensor, how: Drop, out_TK: torch.Tensor) -> None:
    """See elementwise.drop."""
    _apply_drop(x_TK, out_TK, how, add=False)


def add_dropped(x_TK: torch.Tensor, y_TK: torch.Tensor, how: Drop) -> None:
    """See elementwise.add_dropped."""
    _apply_drop(y_TK, x_TK, how, add=True)


def _apply_drop(x_TK: torch.Tensor, out_TK: torch.Tensor, how: Drop, add: bool) -> None:
    tokens, width = x_TK.shape
    _dropped[(tokens, triton.cdiv(width, COLUMNS))](
        x_TK, out_TK, x_TK.stride(0), out_TK.stride(0), *how, width, COLUMNS, add, num_warps=4
    )


@triton.jit
def _dequantise(codes_p, absmax_p, code_p, nested_p, offset_p, nf4_p, out_p, out_s, K,
                BLOCK: tl.constexpr, NESTED: tl.constexpr, SOURCE: tl.constexpr):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    pair = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # two weights a byte, the first in the high half
    inside = pair < K // 2
    place = n * (K // 2) + pair
    byte = tl.load(codes_p + place, mask=inside, other=0)
    block = place // 32
    absmax = tl.load(absmax_p + block, mask=inside, other=0)
    if NESTED:
        scale = tl.load(nested_p + block // 256, mask=inside, other=0.0)
        absmax = tl.load(code_p + absmax.to(tl.int32)) * scale + tl.load(offset_p)
    high = (tl.load(nf4_p + (byte >> 4).to(tl.int32)) * absmax).to(SOURCE)
    low = (tl.load(nf4_p + (byte & 15).to(tl.int32)) * absmax).to(SOURCE)
    c = tl.program_id(1) * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
    tl.store(out_p + n * out_s + c, tl.interleave(high, low).to(out_p.dtype.element_ty), mask=c < K)


def dequantise(codes: torch.Tensor, state: Any, out_NK: torch.Tensor) -> None:
    """NF4 codes to `out_NK`, whose rows may lie in a wider buffer; bit-equal to bitsandbytes' dequantize_4bit.

    `state` is bitsandbytes' QuantState with blocks of 64. One launch, where bitsandbytes takes three for nested scales.
    """
    rows, width = out_NK.shape
    inner = state.state2
    code, nested, offset = (inner.code, inner.absmax, state.offset) if state.nested else (state.code,) * 3
    source = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}[state.dtype]
    # Without contraction into fused multiply-adds: bitsandbytes rounds the scale before it adds the offset.
    _dequantise[(rows, triton.cdiv(width // 2, COLUMNS))](
        codes, state.absmax, code, nested, offset, state.code, out_NK, out_NK.stride(0), width,
        COLUMNS, state.nested, source, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


def _warps(width: int) -> int:
    return 8 if width > 2048 else 4
