"""The plain kernels against autograd, in float64 so that only mistakes are left; the head's loss against torch's."""

import pytest
import torch
from torch.nn import functional as F

from puna.train.model import elementwise as ops
from puna.train.model.kernels import head_loss

DROP = (42, 20_000)


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def zeros(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(x, requires_grad=False)


def norm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return w * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("dropped", [False, True])
def test_the_norm_of_a_sum_and_its_gradient(dropped: bool) -> None:
    x, y, residual, dh = leaf(5, 8), leaf(5, 8), leaf(5, 8), leaf(5, 8)
    w, through = torch.rand(8, dtype=torch.float64) + 0.5, leaf(5, 8).detach()
    mask = ops.keep(x.shape, DROP, x.device)
    expected = norm(x + y, w)
    h, into = zeros(x), zeros(x)
    stream, r = ops.add_norm(x.detach(), y.detach(), w, 1e-5, h, (into, DROP) if dropped else None)
    torch.testing.assert_close(h, expected.detach())
    torch.testing.assert_close(stream, (x + y).detach())
    if dropped:
        assert torch.equal(into, h * mask)
    total = dh + through * mask if dropped else dh
    (theirs,) = torch.autograd.grad(expected, x, total.detach())
    g, out = dh.detach().clone(), zeros(x)
    ops.norm_backward(g, stream, (w, r), residual.detach(), out, (through, DROP) if dropped else None)
    torch.testing.assert_close(out, theirs + residual.detach())
    torch.testing.assert_close(g, h * mask if dropped else h)


@pytest.mark.parametrize("dropped", [False, True])
def test_swiglu_and_its_gradient(dropped: bool) -> None:
    gu, da, through = leaf(4, 12), leaf(4, 6).detach(), leaf(4, 6).detach()
    mask = ops.keep(da.shape, DROP, da.device)
    expected = F.silu(gu[:, :6]) * gu[:, 6:]
    out, into = zeros(da), zeros(da)
    ops.swiglu(gu.detach(), out, (into, DROP) if dropped else None)
    torch.testing.assert_close(out, expected.detach())
    (theirs,) = torch.autograd.grad(expected, gu, da + through * mask if dropped else da)
    mine, product = gu.detach().clone(), da.clone()
    ops.swiglu_backward(mine, product, (through, DROP) if dropped else None)
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(product, out * mask if dropped else out)
    assert not dropped or torch.equal(into, out * mask)


def test_the_rotary_embedding_turns_back_in_its_gradient() -> None:
    angle, x, g = torch.randn(4, 3, dtype=torch.float64), leaf(4, 12), leaf(4, 12).detach()
    a, b = x.unflatten(1, (2, 2, 3)).unbind(2)
    cos, sin = angle.cos().unsqueeze(1), angle.sin().unsqueeze(1)
    expected = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=2).flatten(1)
    mine, back = x.detach().clone(), zeros(g)
    ops.rotate(mine, angle.cos(), angle.sin(), 6)
    torch.testing.assert_close(mine, expected.detach())
    ops.turn_back(g, angle.cos(), angle.sin(), 6, back)
    torch.testing.assert_close(back, torch.autograd.grad(expected, x, g)[0])


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
