"""Documents in one flat batch attend as if each were alone."""

from importlib.util import find_spec

import pytest
import torch
from torch.nn import functional as F

from puna.train.batches import Documents
from puna.train.model import attention
from puna.train.model.attention import attend, attend_cached


def alone(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[0] // x.shape[0], 0) for x in (k, v))
    mask = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).tril()
    weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(~mask, float("-inf")).softmax(-1)
    return (weights @ v).transpose(0, 1)


@pytest.mark.parametrize("lengths", [[5], [4, 4, 4], [9, 8, 7, 2, 1], [1, 9, 3, 9, 8]])
def test_packed_documents_attend_as_if_alone(lengths: list[int]) -> None:
    total = sum(lengths)
    q, k, v = torch.randn(total, 4, 8), torch.randn(total, 2, 8), torch.randn(total, 2, 8)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    parts = [alone(*x) for x in zip(*(x.split(lengths) for x in leaves), strict=True)]
    expected = torch.cat(parts)
    theirs = torch.autograd.grad(expected.cos().sum(), leaves)
    out = attend(*leaves, Documents.of(lengths, "cpu"))
    mine = torch.autograd.grad(out.cos().sum(), leaves)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_positions_start_again_in_each_document_and_alike_neighbours_share_a_group() -> None:
    documents = Documents.of([8, 7, 3], "cpu")
    assert documents.positions_T.tolist() == [*range(8), *range(7), *range(3)]
    assert documents.starts.tolist() == [0, 8, 15, 18]
    assert [(g.documents, g.longest) for g in documents.groups] == [(2, 8), (1, 3)]


@pytest.mark.parametrize("new", [1, 3, 6])
def test_with_a_cache_the_last_tokens_see_all_before_them(new: int) -> None:
    q, k, v = torch.randn(6, 4, 8), torch.randn(6, 2, 8), torch.randn(6, 2, 8)
    torch.testing.assert_close(attend_cached(q[-new:], k, v), F.pad(alone(q, k, v), (0, 0))[-new:])


@pytest.mark.parametrize(
    ("capability", "head_dim", "has_flash_4", "kernel"),
    [
        ((7, 5), 64, True, "padded"),
        ((8, 0), 128, True, "varlen"),
        ((8, 0), 512, True, "padded"),
        ((9, 0), 128, True, "flash-attn-4"),
        ((9, 0), 64, True, "flash-attn-4"),
        ((9, 0), 96, True, "varlen"),
        ((9, 0), 128, False, "varlen"),
        ((10, 0), 128, True, "flash-attn-4"),
        ((12, 0), 128, True, "varlen"),
    ],
)
def test_a_gpu_attends_with_the_fastest_kernel_that_it_has(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], head_dim: int, has_flash_4: bool, kernel: str
) -> None:
    monkeypatch.setattr(attention, "_flash_4_function", lambda: print if has_flash_4 else None)
    assert attention._gpu_kernel.__wrapped__(capability, head_dim) == kernel


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="FlashAttention is installed")
def test_without_flash_attention_there_is_none_to_take() -> None:
    assert attention._flash_4_function.__wrapped__() is None
