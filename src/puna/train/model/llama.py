"""The Llama block and the whole model: Puna's own, so that its layers can be made fast; weights stay the Hub's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from puna.train.batches import Batch, Documents
from puna.train.model.block import Cache, Kept, Layer, Pass
from puna.train.model.kernels import head_logits, head_loss, kernels
from puna.train.model.lora import Dropout, LoraLinear, Product
from puna.train.model.shape import ModelShape, Rope

LOGITS_TOKENS = 2048
"""Tokens whose logits exist at a time: 0.5 GiB of Llama-3's 128 256 words in 16 bits; fewer make its products slow."""


class ChatRows(nn.Module):
    """The embedding and head rows of the chat template's tokens: the only rows that are trained, in float32."""

    def __init__(self, ids: list[int], embed_nD: torch.Tensor, head_nD: torch.Tensor | None) -> None:
        """`head_nD` is None when the base ties its head to its embedding: then one set of rows is both."""
        super().__init__()
        self.ids = ids
        self.embed = nn.Parameter(embed_nD.float())
        self.head = self.embed if head_nD is None else nn.Parameter(head_nD.float())
        self.ids_n = torch.tensor(ids, device=embed_nD.device)


class Llama(nn.Module):
    """Embedding, layers, norm and head; LoRA pairs and chat rows are its only parameters."""

    def __init__(
        self,
        shape: ModelShape,
        layers: list[Layer],
        embed_VD: torch.Tensor,
        norm_D: torch.Tensor,
        head_VD: torch.Tensor,
    ) -> None:
        """`head_VD` is `embed_VD` itself when tied."""
        super().__init__()
        self.shape = shape
        self.layers: Sequence[Layer] = nn.ModuleList(layers)  # type: ignore[assignment]
        self.embed_VD, self.norm_D, self.head_VD = embed_VD, norm_D, head_VD
        self.chat: ChatRows | None = None
        self.recompute_layers = 0
        self.inverse_e = inverse_frequencies(shape.head_dim, shape.rope).to(embed_VD.device)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.embed_VD.device

    @property
    def linears(self) -> list[LoraLinear]:
        """Every projection, in the checkpoint's order of layers."""
        return [m for m in self.modules() if isinstance(m, LoraLinear)]

    def named_masters(self) -> dict[str, nn.Parameter]:
        """Everything that is trained, by a stable name: PEFT's for LoRA, `chat.embed` and `chat.head`."""
        found: dict[str, nn.Parameter] = {}
        for linear in self.linears:
            if linear.lora_a is not None and linear.lora_b is not None:
                found[f"base_model.model.{linear.place}.lora_A.weight"] = linear.lora_a
                found[f"base_model.model.{linear.place}.lora_B.weight"] = linear.lora_b
        if self.chat is not None:
            found["chat.embed"] = self.chat.embed
            if self.chat.head is not self.chat.embed:
                found["chat.head"] = self.chat.head
        return found

    @property
    def products(self) -> list[Product]:
        """The products of all layers, in the order of a forward pass."""
        return [product for layer in self.layers for product in layer.products.values()]

    def hidden(self, ids_T: torch.Tensor, documents: Documents, dropout: Dropout | None = None) -> torch.Tensor:
        """[T] -> [T, D] after the last norm."""
        shared = Pass(documents, *self._angles(documents.positions_T), dropout)
        self._refresh(shared.kept)
        masters = [p for product in self.products for p in product.masters]
        x_TD = self._embed(ids_T)
        if dropout is not None:
            x_TD = dropout.noisy(x_TD, documents.starts.diff())
        h_TD: torch.Tensor = _Stack.apply(x_TD, self, shared, *masters)  # type: ignore[no-untyped-call]
        return h_TD

    def _refresh(self, kept: float) -> None:
        # Before every pass: a few milliseconds of small copies, and no way for a copy to be older than its master.
        for product in self.products:
            product.refresh(kept)

    def loss(self, batch: Batch, dropout: Dropout | None = None) -> torch.Tensor:
        """Sum of cross-entropies over the batch's learnt places, float32."""
        h_TD = self.hidden(batch.ids_T, batch.documents, dropout)
        h_ND = h_TD.index_select(0, batch.where_N)
        return head_loss(h_ND, self.head_VD, self._head_rows(h_ND.dtype), batch.targets_N, LOGITS_TOKENS)

    def logits(self, ids_T: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        """float32 logits [T, V] of one document; with a cache, of the tokens that follow those in it."""
        if cache is None:
            h = self.hidden(ids_T, Documents.of([len(ids_T)], self.device))
        else:
            h = self._extend(ids_T, cache)[-1:]
        return head_logits(h, self.head_VD, *self._head_rows(h.dtype))

    def _extend(self, ids_T: torch.Tensor, cache: Cache) -> torch.Tensor:
        if not cache.length:
            self._refresh(1.0)
        positions = torch.arange(cache.length, cache.length + len(ids_T), device=self.device)
        h_TD, _, _ = self.through(self._embed(ids_T), Pass(None, *self._angles(positions), cache=cache), None)
        cache.length += len(ids_T)
        return h_TD

    def through(
        self, x_TD: torch.Tensor, shared: Pass, kept: list[Kept] | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(hidden states after the last norm, the stream before it, 1 / rms); what is kept goes to `kept`."""
        y_TD: torch.Tensor | None = None
        for layer in self.layers:
            recompute = layer.index < self.recompute_layers
            x_TD, y_TD, found = layer(x_TD, y_TD, shared, keep=kept is not None, recompute=recompute)
            if kept is not None and found is not None:
                kept.append(found)
        h_TD = torch.empty_like(x_TD)
        stream_TD, r_T = kernels(x_TD.device).add_norm(x_TD, y_TD, self.norm_D, self.shape.eps, h_TD)
        return h_TD, stream_TD, r_T

    def _embed(self, ids_T: torch.Tensor) -> torch.Tensor:
        x_TD = self.embed_VD[ids_T]
        if self.chat is None:
            return x_TD
        # A product with ones and zeros picks rows exactly, and its gradient is a product too: the same bits each time.
        is_chat = (ids_T[:, None] == self.chat.ids_n).to(x_TD.dtype)
        return torch.where(is_chat.any(1, keepdim=True), is_chat @ self.chat.embed.to(x_TD.dtype), x_TD)

    def _head_rows(self, dtype: torch.dtype) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return (None, None) if self.chat is None else (self.chat.head.to(dtype), self.chat.ids_n)

    def _angles(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles_Te = positions_T[:, None].float() * self.inverse_e
        return angles_Te.cos().to(self.embed_VD.dtype), angles_Te.sin().to(self.embed_VD.dtype)


class _Stack(Function):
    """All layers and the last norm as one step of autograd, so that gradients pass between layers in wide buffers."""

    @staticmethod
    def forward(ctx: Any, x_TD: torch.Tensor, model: Llama, shared: Pass, *masters: torch.Tensor) -> torch.Tensor:
        """`masters` are there for autograd to see; the products hold their own."""
        kept: list[Kept] | None = [] if any(ctx.needs_input_grad) else None
        h_TD, stream_TD, r_T = model.through(x_TD, shared, kept)
        ctx.model, ctx.shared, ctx.kept, ctx.last = model, shared, kept, (stream_TD, r_T)
        return h_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Layer by layer from the last; what a layer kept is let go as soon as its gradients are made."""
        model, shared, (stream_TD, r_T) = ctx.model, ctx.shared, ctx.last
        g_TD = model.layers[-1].stream_gradient(stream_TD)
        last = grads[0].clone(memory_format=torch.contiguous_format)
        kernels(g_TD.device).norm_backward(last, stream_TD, (model.norm_D, r_T), None, g_TD)
        del last
        found: list[list[torch.Tensor]] = []
        for layer in reversed(model.layers):
            g_TD, of_products = layer.backward(ctx.kept.pop(), g_TD, shared)
            found.append([grad for name in layer.products for grad in of_products[name]])
        ctx.last = None
        return g_TD, None, None, *(grad for of_layer in reversed(found) for grad in of_layer)


def inverse_frequencies(head_dim: int, rope: Rope) -> torch.Tensor:
    """Radians a token, float32 [head_dim / 2], with Llama-3.1's stretching of the slow ones."""
    inverse_e = 1.0 / (rope.theta ** (torch.arange(0, head_dim, 2).float() / head_dim))
    if rope.kind == "linear":
        return inverse_e / rope.factor
    if rope.kind == "default":
        return inverse_e
    # Waves shorter than the original length / high_freq_factor stay, longer than / low_freq_factor stretch by
    # `factor`, those between are blended.
    turns = rope.original_length * inverse_e / (2 * math.pi)
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = smooth.clamp(0, 1)
    return (1 - smooth) * inverse_e / rope.factor + smooth * inverse_e
