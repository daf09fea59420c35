"""The Llama block, forward and backward written by hand: it keeps few activations and passes over them seldom.

Until its backward pass a layer keeps of each token the residual stream before both of its halves (2 x D), q, k, v, the
attention's result, gate and up, LoRA's inner columns and three float32 statistics. Norms and SwiGLU are computed again
where their gradients are, in the same pass over memory. A recomputed layer keeps the residual stream only, so that
neither the attention's output product nor the down product is ever computed twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from puna.train.batches import Documents
from puna.train.model.attention import Attended, attend, attend_and_keep, attend_cached
from puna.train.model.kernels import kernels
from puna.train.model.lora import Dropout, LoraLinear, Product, wide
from puna.train.model.shape import PRODUCTS, ModelShape

Grads = dict[str, list[torch.Tensor]]
"""Gradients of each product's masters, by the product's name."""


@dataclass
class Cache:
    """Keys and values of the tokens seen so far, one pair a layer, for one document."""

    pairs: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    length: int = 0

    def extend(self, layer: int, k_TKd: torch.Tensor, v_TKd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the new tokens' keys and values; returns all of the layer's."""
        if layer in self.pairs:
            old_k, old_v = self.pairs[layer]
            k_TKd, v_TKd = torch.cat((old_k, k_TKd)), torch.cat((old_v, v_TKd))
        self.pairs[layer] = (k_TKd, v_TKd)
        return k_TKd, v_TKd


@dataclass(frozen=True)
class Pass:
    """State that the layers of one forward pass share."""

    documents: Documents | None
    """None while a cache is used."""
    cos_Te: torch.Tensor
    sin_Te: torch.Tensor
    dropout: Dropout | None = None
    cache: Cache | None = None

    @property
    def kept(self) -> float:
        """The share of activations that dropout keeps; LoRA's scale makes up for it."""
        return self.dropout.kept if self.dropout else 1.0


@dataclass
class AttentionHalf:
    """Tensors that the attention half keeps."""

    r_T: torch.Tensor
    u_in: torch.Tensor | None
    attended: Attended | None
    own_norms: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    """(heads before, 1 / rms) of q and k, where they have norms of their own (Qwen 3)."""
    u_out: torch.Tensor | None = None


@dataclass
class MlpHalf:
    """Tensors that the MLP half keeps; `u_out` is None in a recomputed layer, which makes it in its backward pass."""

    r_T: torch.Tensor
    u_in: torch.Tensor | None
    gu_TG: torch.Tensor
    u_out: torch.Tensor | None = None


@dataclass
class Kept:
    """Tensors that one layer keeps for its backward pass; a recomputed one keeps the two streams only."""

    first_TD: torch.Tensor
    second_TD: torch.Tensor
    attention: AttentionHalf | None
    mlp: MlpHalf | None


class Layer(nn.Module):
    """One block: attention and SwiGLU, each behind an RMSNorm and added to the residual stream."""

    def __init__(
        self, index: int, shape: ModelShape, linears: dict[str, LoraLinear], norms: dict[str, torch.Tensor]
    ) -> None:
        """`norms` holds `input`, `post` and, for Qwen3, `q` and `k`."""
        super().__init__()
        self.index = index
        self.shape = shape
        self.norms = norms
        made = (Product([linears[name] for name in members]) for members in PRODUCTS.values())
        self.qkv, self.o, self.gate_up, self.down = made

    @property
    def products(self) -> dict[str, Product]:
        """The four products by name, in the order of a forward pass."""
        return {"qkv": self.qkv, "o": self.o, "gate_up": self.gate_up, "down": self.down}

    # ------------------------------------------------------------------ forward

    def forward(
        self, x_TD: torch.Tensor, y_TD: torch.Tensor | None, shared: Pass, *, keep: bool, recompute: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, Kept | None]:
        """The stream x + y becomes (stream, what is to be added to it); and what is kept, when `keep` says so."""
        first_TD, o_THd, attention = self._attention(x_TD, y_TD, shared, keep and not recompute)
        o_TD = self._o(o_THd, attention, shared)
        second_TD, mlp = self._gate_and_up(first_TD, o_TD, shared)
        a_TF = wide(len(x_TD), self.down.inputs, self.down.beside, x_TD)
        how = self._how("down", shared)
        masked = (torch.empty_like(a_TF), how) if how else None
        kernels(x_TD.device).swiglu(mlp.gu_TG, a_TF, masked)
        mlp.u_out = self.down.down(masked[0] if masked else a_TF)
        z_TD = self.down(a_TF, mlp.u_out)
        if not keep:
            return second_TD, z_TD, None
        return second_TD, z_TD, Kept(first_TD, second_TD, *((None, None) if recompute else (attention, mlp)))

    def _how(self, product: str, shared: Pass) -> tuple[int, int] | None:
        # Dropout stands before LoRA's A only: a product without LoRA has none.
        if shared.dropout is None or not self.products[product].extra:
            return None
        return shared.dropout.at(f"{self.index}.{product}")

    def _enter(
        self, x_TD: torch.Tensor, y_TD: torch.Tensor | None, product: str, shared: Pass
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """(stream, 1 / rms, its norm, LoRA's inner columns) where a half begins."""
        to, norm = self.products[product], self.norms["input" if product == "qkv" else "post"]
        h_TD = wide(len(x_TD), to.inputs, to.beside, x_TD)
        how = self._how(product, shared)
        masked = (torch.empty_like(x_TD), how) if how else None
        stream_TD, r_T = kernels(x_TD.device).add_norm(x_TD, y_TD, norm, self.shape.eps, h_TD, masked)
        return stream_TD, r_T, h_TD, to.down(masked[0] if masked else h_TD)

    def _attention(
        self, x_TD: torch.Tensor, y_TD: torch.Tensor | None, shared: Pass, keep: bool
    ) -> tuple[torch.Tensor, torch.Tensor, AttentionHalf]:
        """(stream, attention's result [T, H, d], what is kept)."""
        stream_TD, r_T, h_TD, u = self._enter(x_TD, y_TD, "qkv", shared)
        qkv_TN, d = self.qkv(h_TD, u), self.shape.head_dim
        q_TE, k_TE, v_TE = torch.split(qkv_TN, [linear.weight.shape[0] for linear in self.qkv.members], dim=1)
        own = tuple(self._own_norm(name, x) for name, x in (("q", q_TE), ("k", k_TE)) if name in self.norms)
        turned = qkv_TN[:, : q_TE.shape[1] + k_TE.shape[1]]
        kernels(x_TD.device).rotate(turned, shared.cos_Te, shared.sin_Te, d)
        q, k, v = (x.view(len(x), -1, d) for x in (q_TE, k_TE, v_TE))
        attended = None
        if shared.cache is not None:
            out = attend_cached(q, *shared.cache.extend(self.index, k, v))
        else:
            assert shared.documents is not None
            if keep:
                out, attended = attend_and_keep(q, k, v, shared.documents)
            else:
                out = attend(q, k, v, shared.documents)
        return stream_TD, out, AttentionHalf(r_T, u, attended, own)

    def _own_norm(self, name: str, x_TE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        before = x_TE.reshape(-1, self.shape.head_dim).clone()
        after = torch.empty_like(before)
        _, r = kernels(x_TE.device).add_norm(before, None, self.norms[name], self.shape.eps, after)
        x_TE.copy_(after.view(x_TE.shape))
        return before, r

    def _o(self, o_THd: torch.Tensor, half: AttentionHalf, shared: Pass) -> torch.Tensor:
        o_TE = o_THd.reshape(len(o_THd), -1)
        half.u_out = self.o.down(self._dropped(o_TE, "o", shared))
        return self.o.apart(o_TE, half.u_out)

    def _dropped(self, x_TK: torch.Tensor, product: str, shared: Pass) -> torch.Tensor:
        how = self._how(product, shared)
        if how is None:
            return x_TK
        out_TK = torch.empty_like(x_TK)
        kernels(x_TK.device).drop(x_TK, how, out_TK)
        return out_TK

    def _gate_and_up(self, x_TD: torch.Tensor, y_TD: torch.Tensor | None, shared: Pass) -> tuple[torch.Tensor, MlpHalf]:
        stream_TD, r_T, h_TD, u = self._enter(x_TD, y_TD, "gate_up", shared)
        # Wide, because its gradient will lie in the same place with LoRA's columns behind it.
        gu_TG = wide(len(x_TD), self.gate_up.outputs, self.gate_up.beside, x_TD)
        return stream_TD, MlpHalf(r_T, u, self.gate_up(h_TD, u, gu_TG))

    # ----------------------------------------------------------------- backward

    def backward(self, kept: Kept, g_TD: torch.Tensor, shared: Pass) -> tuple[torch.Tensor, Grads]:
        """From the gradient of the stream after the layer to that before it; `g_TD` is `wide` for `down`.

        What `kept` holds is used up, overwritten in part.
        """
        grads: Grads = {}
        attention, mlp = kept.attention, kept.mlp
        if mlp is None:
            _, mlp = self._gate_and_up(kept.second_TD, None, shared)
        g_TD = self._mlp_backward(mlp, kept.second_TD, g_TD, shared, grads)
        kept.mlp = mlp = None
        if attention is None:
            _, o_THd, attention = self._attention(kept.first_TD, None, shared, keep=True)
            attention.u_out = self.o.down(self._dropped(o_THd.reshape(len(o_THd), -1), "o", shared))
        return self._attention_backward(attention, kept.first_TD, g_TD, shared, grads), grads

    def stream_gradient(self, like_T: torch.Tensor) -> torch.Tensor:
        """An uninitialised gradient [T, D] of the residual stream, wide enough for the products that read it."""
        return wide(len(like_T), self.shape.hidden, max(self.o.beside, self.down.beside), like_T)

    def _mlp_backward(
        self, half: MlpHalf, stream_TD: torch.Tensor, g_TD: torch.Tensor, shared: Pass, grads: Grads
    ) -> torch.Tensor:
        ops = kernels(g_TD.device)
        v, how = self.down.back(g_TD), self._how("down", shared)
        da_TF, dropped_TF = self.down.input_gradient(g_TD, v, how is not None)
        ops.swiglu_backward(half.gu_TG, da_TF, (dropped_TF, how) if how else None)
        a_TF = da_TF  # swiglu_backward leaves what `down` was given where its gradient was
        u = half.u_out if half.u_out is not None else self.down.down(a_TF)
        grads["down"] = self.down.lora_gradients((a_TF, u), (g_TD, v), shared.kept)
        del a_TF, da_TF, dropped_TF
        return self._leave("gate_up", (half.gu_TG, half.r_T, half.u_in), stream_TD, g_TD, shared, grads)

    def _attention_backward(
        self, half: AttentionHalf, stream_TD: torch.Tensor, g_TD: torch.Tensor, shared: Pass, grads: Grads
    ) -> torch.Tensor:
        ops, d = kernels(g_TD.device), self.shape.head_dim
        assert half.attended is not None
        v, how = self.o.back(g_TD), self._how("o", shared)
        do_TE, dropped_TE = self.o.input_gradient(g_TD, v, how is not None)
        if how:
            ops.add_dropped(do_TE, dropped_TE, how)
        o_THd = half.attended.out_THd.detach()
        o_TE = self._dropped(o_THd.reshape(len(o_THd), -1), "o", shared)
        grads["o"] = self.o.lora_gradients((o_TE, half.u_out), (g_TD, v), shared.kept)
        dq, dk, dv = (x.flatten(1) for x in half.attended.backward(do_TE.view(o_THd.shape)))
        half.attended = None
        g_TN = wide(len(g_TD), self.qkv.outputs, self.qkv.beside, g_TD)
        q_TE, k_TE, v_TE = torch.split(g_TN, [linear.weight.shape[0] for linear in self.qkv.members], dim=1)
        ops.turn_back(dq, shared.cos_Te, shared.sin_Te, d, q_TE)
        ops.turn_back(dk, shared.cos_Te, shared.sin_Te, d, k_TE)
        v_TE.copy_(dv)
        for name, x_TE, (before, r) in zip(("q", "k"), (q_TE, k_TE), half.own_norms, strict=False):
            g = x_TE.reshape(before.shape).clone()
            ops.norm_backward(g, before, (self.norms[name], r), None, out := torch.empty_like(before))
            x_TE.copy_(out.view(x_TE.shape))
        return self._leave("qkv", (g_TN, half.r_T, half.u_in), stream_TD, g_TD, shared, grads)

    def _leave(
        self,
        product: str,
        at: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
        stream_TD: torch.Tensor,
        residual_TD: torch.Tensor,
        shared: Pass,
        grads: Grads,
    ) -> torch.Tensor:
        """Back through a half's first product and norm; `at` is (gradient of the product, 1 / rms, inner columns)."""
        through, norm = self.products[product], self.norms["input" if product == "qkv" else "post"]
        g_TN, r_T, u = at
        v, how = through.back(g_TN), self._how(product, shared)
        gh_TD, dropped_TD = through.input_gradient(g_TN, v, how is not None)
        out_TD = self.stream_gradient(g_TN)
        masked = (dropped_TD, how) if how else None
        kernels(g_TN.device).norm_backward(gh_TD, stream_TD, (norm, r_T), residual_TD, out_TD, masked)
        grads[product] = through.lora_gradients((gh_TD, u), (g_TN, v), shared.kept)  # gh_TD holds the norm again
        return out_TD
