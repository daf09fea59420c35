"""The Llama block and the whole model: Puna's own, so that its layers can be made fast; weights stay the Hub's."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from puna.train.attention import attend, attend_cached
from puna.train.documents import Batch, Documents
from puna.train.kernels import head_logits, head_loss, rms_norm, rotate, swiglu
from puna.train.lora import Dropout, LoraLinear
from puna.train.shape import Rope, Shape

CHUNK_ELEMENTS = 2**26
"""float32 logits that exist at a time: 256 MiB, 523 tokens of Llama-3's 128 256 words."""


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
    """What the layers of one forward pass share."""

    documents: Documents | None
    """None while a cache is used."""
    cos_Te: torch.Tensor
    sin_Te: torch.Tensor
    dropout: Dropout | None = None
    cache: Cache | None = None


class Layer(nn.Module):
    """One block: attention and SwiGLU, each behind an RMSNorm and added to the residual stream."""

    def __init__(
        self, index: int, shape: Shape, linears: dict[str, LoraLinear], norms: dict[str, torch.Tensor]
    ) -> None:
        """`norms` holds `input`, `post` and, for Qwen3, `q` and `k`."""
        super().__init__()
        self.index = index
        self.shape = shape
        self.linears = nn.ModuleDict(linears)
        self.norms = norms

    def forward(self, x_TD: torch.Tensor, shared: Pass) -> torch.Tensor:
        """[T, D] -> [T, D]."""
        x_TD = x_TD + self._attention(self._norm("input", x_TD), shared)
        h_TD = self._norm("post", x_TD)
        gate, up = self._linear("gate_proj", h_TD, shared), self._linear("up_proj", h_TD, shared)
        return x_TD + self._linear("down_proj", swiglu(gate, up), shared)

    def _attention(self, h_TD: torch.Tensor, shared: Pass) -> torch.Tensor:
        q, k, v = (
            self._linear(name, h_TD, shared).view(h_TD.shape[0], -1, self.shape.head_dim)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        if "q" in self.norms:
            q, k = self._norm("q", q), self._norm("k", k)
        q, k = rotate(q, shared.cos_Te, shared.sin_Te), rotate(k, shared.cos_Te, shared.sin_Te)
        if shared.cache is not None:
            k, v = shared.cache.extend(self.index, k, v)
            out = attend_cached(q, k, v)
        else:
            assert shared.documents is not None
            out = attend(q, k, v, shared.documents)
        return self._linear("o_proj", out.reshape(h_TD.shape[0], -1), shared)

    def _linear(self, name: str, x: torch.Tensor, shared: Pass) -> torch.Tensor:
        y: torch.Tensor = self.linears[name](x, shared.dropout)
        return y

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.norms[name], self.shape.eps)


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
        self, shape: Shape, layers: list[Layer], embed_VD: torch.Tensor, norm_D: torch.Tensor, head_VD: torch.Tensor
    ) -> None:
        """`head_VD` is `embed_VD` itself when tied."""
        super().__init__()
        self.shape = shape
        self.layers = nn.ModuleList(layers)
        self.embed_VD, self.norm_D, self.head_VD = embed_VD, norm_D, head_VD
        self.chat: ChatRows | None = None
        self.recompute_layers = 0
        self.inverse_e = inverse_frequencies(shape.head_dim, shape.rope).to(embed_VD.device)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
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

    def hidden(self, ids_T: torch.Tensor, documents: Documents, dropout: Dropout | None = None) -> torch.Tensor:
        """[T] -> [T, D] after the last norm."""
        cos, sin = self._angles(documents.positions_T)
        shared = Pass(documents, cos, sin, dropout)
        x = self._embed(ids_T)
        for index, layer in enumerate(self.layers):
            if index < self.recompute_layers and torch.is_grad_enabled():
                x = checkpoint(layer, x, shared, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(x, shared)
        return rms_norm(x, self.norm_D, self.shape.eps)

    def loss(self, batch: Batch, dropout: Dropout | None = None) -> torch.Tensor:
        """Sum of cross-entropies over the batch's learnt places, float32."""
        h_TD = self.hidden(batch.ids_T, batch.documents, dropout)
        h_ND = h_TD.index_select(0, batch.where_N)
        chunk = max(1, CHUNK_ELEMENTS // self.shape.vocab)
        return head_loss(h_ND, self.head_VD, self._head_rows(h_ND.dtype), batch.targets_N, chunk)

    def logits(self, ids_T: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        """float32 logits [T, V] of one document; with a cache, of the tokens that follow those in it."""
        if cache is None:
            h = self.hidden(ids_T, Documents.of([len(ids_T)], self.device))
        else:
            h = self._extend(ids_T, cache)[-1:]
        return head_logits(h, self.head_VD, *self._head_rows(h.dtype))

    def _extend(self, ids_T: torch.Tensor, cache: Cache) -> torch.Tensor:
        positions = torch.arange(cache.length, cache.length + len(ids_T), device=self.device)
        shared = Pass(None, *self._angles(positions), cache=cache)
        x = self._embed(ids_T)
        for layer in self.layers:
            x = layer(x, shared)
        cache.length += len(ids_T)
        return rms_norm(x, self.norm_D, self.shape.eps)

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
