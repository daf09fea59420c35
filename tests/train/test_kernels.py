"""Hand-written gradients against autograd's, in float64 so that only mistakes are left."""

import pytest
import torch
from torch.nn import functional as F

from puna.train.kernels import Beside, frozen_linear, head_loss, lora_linear, rms_norm, rotate, swiglu
from puna.train.quant import FrozenWeight


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def frozen(*shape: int) -> FrozenWeight:
    return FrozenWeight(torch.randn(*shape, dtype=torch.float64), None, None, torch.float64)


def test_rms_norm_and_its_gradient() -> None:
    x, w = torch.randn(5, 16).requires_grad_(), torch.randn(16)
    expected = w * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
    (g,) = torch.autograd.grad(expected.sin().sum(), x)
    ours = rms_norm(x, w, 1e-5)
    (mine,) = torch.autograd.grad(ours.sin().sum(), x)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(mine, g, atol=1e-6, rtol=1e-5)


def test_the_rotary_embedding_turns_back_in_its_gradient() -> None:
    angle = torch.randn(4, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: rotate(x, angle.cos(), angle.sin()), (leaf(4, 2, 6),))


def test_swiglu_gradients() -> None:
    assert torch.autograd.gradcheck(swiglu, (leaf(3, 5), leaf(3, 5)))


@pytest.mark.parametrize("dropped", [False, True])
def test_lora_gradients_with_and_without_dropout(dropped: bool) -> None:
    mask = torch.rand(3, 6) > 0.3 if dropped else None
    beside = Beside(frozen(5, 6), torch.randn(5, dtype=torch.float64), 1.7, mask)
    inputs = (leaf(3, 6), leaf(2, 6), leaf(5, 2))
    assert torch.autograd.gradcheck(lambda x, a, b: lora_linear(x, a, b, beside), inputs)


def test_a_frozen_product_passes_the_gradient_on() -> None:
    weight = frozen(5, 6)
    assert torch.autograd.gradcheck(lambda x: frozen_linear(x, weight, None), (leaf(3, 6),))


@pytest.mark.parametrize("chunk", [2, 100])
def test_the_head_loss_equals_cross_entropy_however_it_is_cut(chunk: int) -> None:
    h, rows = torch.randn(7, 12).requires_grad_(), torch.randn(2, 12).requires_grad_()
    head, ids, targets = torch.randn(20, 12), torch.tensor([3, 17]), torch.tensor([1, 3, 3, 17, 0, 19, 5])
    whole = head.index_copy(0, ids, rows)
    expected = F.cross_entropy(h @ whole.t(), targets, reduction="sum")
    theirs = torch.autograd.grad(3 * expected, (h, rows))
    loss = head_loss(h, head, (rows, ids), targets, chunk)
    mine = torch.autograd.grad(3 * loss, (h, rows))
    torch.testing.assert_close(loss, expected)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
