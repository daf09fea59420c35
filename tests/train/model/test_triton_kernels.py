"""Each Triton kernel against its plain twin: on a GPU as compiled, elsewhere in Triton's interpreter.

A few odd sizes, rows in wider buffers, every option; the twins themselves are checked against autograd in test_block.
"""

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from puna.train.model import elementwise, triton_kernels
from puna.train.model.lora import wide
from puna.train.model.quant import dequantise, quantise

# NumPy, under the interpreter, overflows 32-bit hashes on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton's interpreter cuts float32 off to bfloat16 instead of rounding it: bits are compared on a GPU only.
SOURCES = [torch.float16, torch.float32, *([torch.bfloat16] if DEVICE == "cuda" else [])]
DROP = (123_456_789, 6554)


def rows(tokens: int, width: int, extra: int = 0, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    values = torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))
    return wide(tokens, width, extra, torch.empty(0, dtype=dtype, device=DEVICE)).copy_(values)


def both(name: str, *arguments: Any) -> list[list[torch.Tensor]]:
    """What each twin returns and leaves in its arguments, on copies of them."""
    found = []
    for module in (triton_kernels, elementwise):
        copies = [_copied(a) for a in arguments]
        returned = getattr(module, name)(*copies)
        left = [returned] if isinstance(returned, torch.Tensor) else list(returned or ())
        found.append([*left, *(t for c in copies for t in _tensors(c))])
    return found


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=DEVICE).copy_(value)
    return tuple(_copied(v) for v in value) if isinstance(value, tuple) else value


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, tuple):
        return [t for v in value for t in _tensors(v)]
    return [value] if isinstance(value, torch.Tensor) else []


def assert_twins(name: str, *arguments: Any, dtype: torch.dtype = torch.float32) -> None:
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    for mine, plain in zip(*both(name, *arguments), strict=True):
        torch.testing.assert_close(mine, plain, atol=tolerance, rtol=tolerance)


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
MASKS = pytest.mark.parametrize("masked", [False, True], ids=["whole", "dropped"])


@DTYPES
@MASKS
@pytest.mark.parametrize("added", [False, True])
def test_add_norm(dtype: torch.dtype, masked: bool, added: bool) -> None:
    x, y, w = (rows(5, 96, e, dtype, s) for s, e in enumerate((0, 8, 0)))
    into = (torch.zeros(5, 96, dtype=dtype, device=DEVICE), DROP) if masked else None
    h = torch.zeros_like(rows(5, 96, 16, dtype))
    assert_twins("add_norm", x, y if added else None, w[0], 1e-5, h, into, dtype=dtype)


@DTYPES
@MASKS
@pytest.mark.parametrize("added", [False, True])
def test_norm_backward(dtype: torch.dtype, masked: bool, added: bool) -> None:
    g, x, w, residual, dropped = (rows(5, 96, e, dtype, s) for s, e in enumerate((0, 8, 0, 4, 0)))
    r = torch.rand(5, device=DEVICE) + 0.5
    out, through = torch.zeros_like(residual), (dropped, DROP) if masked else None
    assert_twins("norm_backward", g, x, (w[0], r), residual if added else None, out, through, dtype=dtype)


@DTYPES
@MASKS
def test_swiglu_and_its_gradient(dtype: torch.dtype, masked: bool) -> None:
    gu, da, dropped = rows(4, 2 * 72, 8, dtype), rows(4, 72, 0, dtype, 1), rows(4, 72, 0, dtype, 2)
    out, into = torch.zeros_like(rows(4, 72, 8, dtype)), torch.zeros(4, 72, dtype=dtype, device=DEVICE)
    assert_twins("swiglu", gu, out, (into, DROP) if masked else None, dtype=dtype)
    assert_twins("swiglu_backward", gu, da, (dropped, DROP) if masked else None, dtype=dtype)


@DTYPES
def test_rotary_embedding_and_its_gradient(dtype: torch.dtype) -> None:
    angle = torch.rand(6, 8, device=DEVICE) * 6
    cos, sin, x = angle.cos().to(dtype), angle.sin().to(dtype), rows(6, 3 * 16, 16, dtype)
    assert_twins("rotate", x, cos, sin, 16, dtype=dtype)
    assert_twins("turn_back", x, cos, sin, 16, torch.zeros_like(rows(6, 48, 5, dtype)), dtype=dtype)


@DTYPES
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("vocab", [40, 8192 + 100])
def test_cross_entropy(dtype: torch.dtype, gradient: bool, vocab: int) -> None:
    targets = torch.tensor([0, vocab - 1, 17], device=DEVICE)
    assert_twins("cross_entropy", rows(3, vocab, 0, dtype) * 3, targets, gradient, dtype=dtype)


def test_dropping_and_adding_what_was_dropped_are_exact() -> None:
    x, y = rows(7, 300, 4), rows(7, 300, 0, seed=1)
    for name, arguments in (("drop", (x, DROP, torch.zeros_like(y))), ("add_dropped", (x, y, DROP))):
        for mine, plain in zip(*both(name, *arguments), strict=True):
            assert torch.equal(mine, plain)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_decoding_nf4_equals_bitsandbytes_bit_by_bit(double: bool, source: torch.dtype) -> None:
    width = 2 * triton_kernels.COLUMNS + 64  # a program for a row's whole columns, and one for the few that are left
    weight = (torch.randn(20, width, generator=torch.Generator().manual_seed(3)) * 0.02).to(DEVICE, source)
    codes, state = quantise(weight, double)
    out = rows(20, width, 64, source)
    triton_kernels.dequantise(codes, state, out)
    assert torch.equal(out, dequantise(codes, state))


def test_matrices_wider_than_a_block_in_4_bits() -> None:
    width = 2 * (2 * triton_kernels.COLUMNS) + 64
    weight = (torch.randn(2, width, generator=torch.Generator().manual_seed(4)) * 0.02).to(DEVICE)
    codes, state = quantise(weight, False)
    out = rows(2, width, 64)
    triton_kernels.dequantise(codes, state, out)
    assert torch.equal(out, dequantise(codes, state))


@DTYPES
def test_rows_in_8_bits(dtype: torch.dtype) -> None:
    x = rows(4, 5000, 8, dtype)
    (mine, scale), (plain, same) = (module.quantise_rows(x) for module in (triton_kernels, elementwise))
    torch.testing.assert_close(scale, same)
    if DEVICE == "cpu":
        return  # Triton's interpreter converts to e4m3 in its own way: values are compared on a GPU only
    # A value in the middle of two may go either way: one step of e4m3 is at most an eighth.
    torch.testing.assert_close(mine.float(), plain.float(), rtol=0.13, atol=0.002)
    assert (mine.float() == plain.float()).float().mean() > 0.99
    torch.testing.assert_close(mine.float() * scale, x.float(), rtol=0.07, atol=float(scale.max()))
