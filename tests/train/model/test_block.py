"""The hand-written block, and the model of them, against plain autograd in float64: every option, every gradient."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from puna.config.recipe import PROJECTIONS
from puna.tokens import Tokens
from puna.train.batches import Documents, make_batch
from puna.train.model import elementwise
from puna.train.model.block import Kept, Layer, Pass
from puna.train.model.llama import ChatRows, Llama
from puna.train.model.lora import Dropout, LoraLinear, Product, fresh_pair, wide
from puna.train.model.quant import FrozenWeight, quantise
from puna.train.model.shape import ModelShape, Rope, weight_name
from train.tiny import whole

SHAPE = ModelShape(50, 32, 48, 2, 4, 2, 8, 1e-5, False, Rope())
LENGTHS = [7, 5, 5]
CHAT = [4, 9]
HALF = Dropout(0.3, 1, 2, 3)


def random(*size: int, seed: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.2


def model(targets: tuple[str, ...], qwen: bool, nf4: bool = False) -> Llama:
    layers, generator = [], torch.Generator().manual_seed(0)
    for index in range(SHAPE.layers):
        linears = {}
        for number, (name, (n, k)) in enumerate(SHAPE.projections().items()):
            weight = random(n, k, seed=10 * index + number)
            held = FrozenWeight(None, *quantise(weight.float(), True), torch.float64) if nf4 else None
            bias = random(n, seed=number) if qwen and name in ("q_proj", "k_proj", "v_proj") else None
            linear = LoraLinear(held or FrozenWeight(weight, None, None, torch.float64), bias, weight_name(index, name))
            if name in targets:
                a, _ = fresh_pair(n, k, 3, generator)
                linear.add_lora(a.double(), random(n, 3, seed=number), 6)
            linears[name] = linear
        sizes = {"input": 32, "post": 32} | ({"q": 8, "k": 8} if qwen else {})
        norms = {name: random(size, seed=ord(name[0])) + 1 for name, size in sizes.items()}
        layers.append(Layer(index, SHAPE, linears, norms))
    return Llama(SHAPE, layers, random(50, 32, seed=98), random(32, seed=97) + 1, random(50, 32, seed=99))


def norm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return w * x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()


def reference(llama: Llama, x: torch.Tensor, shared: Pass) -> torch.Tensor:
    """All layers and the last norm as one would write them, with the same masks."""
    for layer in llama.layers:
        linears = {linear.place.rsplit(".", 1)[1]: linear for p in layer.products.values() for linear in p.members}
        place = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "o_proj": "o", "down_proj": "down"}

        def apply(name: str, h: torch.Tensor, linears: Any = linears, place: Any = place, at: Any = layer) -> Any:
            linear = linears[name]
            y = F.linear(h, whole(linear.weight), linear.bias)
            if linear.lora_a is None:
                return y
            how = shared.dropout.at(f"{at.index}.{place.get(name, 'gate_up')}") if shared.dropout else None
            kept = h * elementwise.keep(h.shape, how, h.device) / shared.kept if how else h
            return y + linear.scale * (kept @ linear.lora_a.t()) @ linear.lora_b.t()

        h = norm(x, layer.norms["input"])
        q, k, v = (apply(name, h).unflatten(1, (-1, 8)) for name in ("q_proj", "k_proj", "v_proj"))
        if "q" in layer.norms:
            q, k = norm(q, layer.norms["q"]), norm(k, layer.norms["k"])
        q, k = (turned(t, shared) for t in (q, k))
        x = x + apply("o_proj", attention(q, k, v).flatten(1))
        h = norm(x, layer.norms["post"])
        x = x + apply("down_proj", F.silu(apply("gate_proj", h)) * apply("up_proj", h))
    return norm(x, llama.norm_D)


def turned(x_THd: torch.Tensor, shared: Pass) -> torch.Tensor:
    a, b = x_THd.chunk(2, dim=-1)
    cos, sin = shared.cos_Te.unsqueeze(1), shared.sin_Te.unsqueeze(1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    parts = []
    for part in zip(*(t.split(LENGTHS) for t in (q, k, v)), strict=True):
        heads = [t.transpose(0, 1).repeat_interleave(4 // t.shape[1], 0) for t in part]
        parts.append(F.scaled_dot_product_attention(*heads, is_causal=True).transpose(0, 1))
    return torch.cat(parts)


def shared_pass(dropout: Dropout | None) -> Pass:
    documents = Documents.of(LENGTHS, "cpu")
    angles = documents.positions_T[:, None] * torch.rand(4, dtype=torch.float64)
    return Pass(documents, angles.cos(), angles.sin(), dropout)


def gradients(llama: Llama, shared: Pass, plain: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    from puna.train.model.llama import _Stack

    x = random(sum(LENGTHS), 32, seed=5).requires_grad_()
    masters = [p for layer in llama.layers for product in layer.products.values() for p in product.masters]
    llama._refresh(shared.kept)
    h = reference(llama, x, shared) if plain else _Stack.apply(x, llama, shared, *masters)
    return h, list(torch.autograd.grad((h * random(*h.shape, seed=6)).sum(), [x, *masters]))


@pytest.mark.parametrize("dropout", [None, HALF], ids=["whole", "dropped"])
@pytest.mark.parametrize("recompute", [0, 1, 2])
@pytest.mark.parametrize(
    ("targets", "qwen", "nf4"),
    [
        (PROJECTIONS, False, False), (PROJECTIONS, True, False), (PROJECTIONS, False, True),
        (("q_proj", "v_proj"), False, False), (("k_proj", "up_proj", "down_proj"), True, True),
        (("o_proj",), False, False),
    ],
)  # fmt: skip
def test_the_block_equals_autograd(
    targets: tuple[str, ...], qwen: bool, nf4: bool, recompute: int, dropout: Dropout | None
) -> None:
    llama, shared = model(targets, qwen, nf4), shared_pass(dropout)
    llama.recompute_layers = recompute
    mine, theirs = (gradients(llama, shared, plain) for plain in (False, True))
    torch.testing.assert_close(mine[0], theirs[0])
    assert len(mine[1]) == len(theirs[1]) == 1 + 2 * 2 * len(targets)
    for a, b in zip(mine[1], theirs[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_a_recomputed_layer_keeps_the_two_streams_only() -> None:
    llama, kept = model(PROJECTIONS, False), list[Kept]()
    llama.recompute_layers = 1
    llama._refresh(1.0)
    llama.through(random(17, 32, seed=1), shared_pass(None), kept)
    assert kept[0].attention is None and kept[0].mlp is None
    assert kept[1].attention is not None and kept[1].mlp is not None


def test_a_product_follows_its_masters_and_its_rank() -> None:
    linear = LoraLinear(FrozenWeight(random(6, 4, seed=1), None, None, torch.float64), None, "x")
    product, x = Product([linear]), wide(3, 4, 5, torch.empty(0, dtype=torch.float64)).copy_(random(3, 4, seed=2))
    product.refresh(1.0)
    plain = product(x, product.down(x))
    torch.testing.assert_close(plain, x @ whole(linear.weight).t())
    for rank in (2, 5):
        linear.add_lora(random(rank, 4, seed=3), random(6, rank, seed=4), 2 * rank)
        product.refresh(0.5)
        u = product.down(x)
        expected = plain + 4 * (x @ linear.lora_a.t()) @ linear.lora_b.t()  # type: ignore[union-attr]
        torch.testing.assert_close(product(x, u), expected)
        torch.testing.assert_close(product.apart(x.contiguous(), u), expected)


def rows_with_chat_tokens() -> list[Tokens]:
    """Documents of LENGTHS, in which every chat token is read and predicted."""
    rng, rows = np.random.default_rng(4), []
    for length in LENGTHS:
        ids = rng.integers(10, SHAPE.vocab, length).astype(np.int32)
        ids[[1, 3]] = CHAT
        labels = ids.copy()
        labels[0] = -100
        rows.append((ids, labels))
    return rows


def with_chat_rows(llama: Llama, tied: bool) -> Llama:
    if tied:
        llama.head_VD = llama.embed_VD
    llama.chat = ChatRows(CHAT, llama.embed_VD[CHAT] + 0.1, None if tied else llama.head_VD[CHAT] - 0.1)
    llama.chat.double()
    return llama


def loss_and_gradients(llama: Llama, rows: list[list[Tokens]]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Of passes that each have some rows."""
    losses = [llama.loss(make_batch(each, "cpu")) for each in rows]
    total, masters = torch.stack(losses).sum(), llama.named_masters()
    return total, dict(zip(masters, torch.autograd.grad(total, list(masters.values())), strict=True))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_packed_documents_give_the_loss_and_the_gradients_of_each_alone(tied: bool) -> None:
    llama, rows = with_chat_rows(model(PROJECTIONS, False), tied), rows_with_chat_tokens()
    packed, alone = loss_and_gradients(llama, [rows]), loss_and_gradients(llama, [[row] for row in rows])
    assert len(packed[1]) == 2 * 2 * len(PROJECTIONS) + (1 if tied else 2)
    torch.testing.assert_close(packed[0], alone[0], rtol=1e-5, atol=0)
    for name, gradient in packed[1].items():
        torch.testing.assert_close(gradient, alone[1][name], rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_trained_chat_rows_get_autograds_gradients(tied: bool) -> None:
    llama, rows = with_chat_rows(model(PROJECTIONS, False), tied), rows_with_chat_tokens()
    loss, mine = loss_and_gradients(llama, [rows])
    batch, chat, masters = make_batch(rows, "cpu"), llama.chat, llama.named_masters()
    assert chat is not None and (chat.head is chat.embed) == tied
    embed_VD = llama.embed_VD.index_put((chat.ids_n,), chat.embed)
    head_VD = llama.head_VD.index_put((chat.ids_n,), chat.head)
    shared = Pass(batch.documents, *llama._angles(batch.documents.positions_T))
    logits_NV = reference(llama, embed_VD[batch.ids_T], shared)[batch.where_N] @ head_VD.t()
    expected = F.cross_entropy(logits_NV, batch.targets_N, reduction="sum")
    gradients = torch.autograd.grad(expected, list(masters.values()))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    for name, gradient in zip(masters, gradients, strict=True):
        # The head's rows sum their gradient in float32 whatever the rest has.
        torch.testing.assert_close(mine[name], gradient, rtol=1e-5, atol=1e-6, msg=name)
