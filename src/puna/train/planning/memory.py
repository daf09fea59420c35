"""A byte model of training: what lies in memory at its fullest moment, for one choice of batch and recomputation."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from puna.errors import RecipeError
from puna.train.model.shape import ModelShape

GIB = 2**30
NF4_BYTES = {True: 0.5 + (1 + 4 / 256) / 64, False: 0.5 + 4 / 64}
"""Bytes a weight with and without double quantisation: half a byte, and a scale for each block of 64."""
GPU_OVERHEAD = 0.75 * GIB
"""CUDA's own context, kernels and cuBLAS workspaces: what torch's allocator does not count."""
CPU_OVERHEAD = 1.0 * GIB
"""Python with torch, tokenizers and bitsandbytes loaded, whatever it trains."""
GPU_ALIGNMENT = 64
"""LoRA columns beside a matrix are filled up to a multiple of this, see lora.py."""
LOGITS_TOKENS = 2048
"""Tokens whose logits exist at a time: 0.5 GiB of Llama-3's 128 256 words in 16 bits; fewer make its products slow."""


@dataclass(frozen=True)
class Memory:
    """Bytes, by what they are for."""

    weights: int
    embedding_and_head: int
    lora: int
    optimiser: int
    activations: int
    logits: int
    overhead: int

    @property
    def total(self) -> int:
        """All of it: what the device must have free."""
        return sum(dataclasses.astuple(self))

    @property
    def allocated(self) -> int:
        """What torch's allocator will have handed out at most: all but the overhead."""
        return self.total - self.overhead

    def as_dict(self) -> dict[str, int]:
        """Plain values with the totals."""
        return dataclasses.asdict(self) | {"allocated": self.allocated, "total": self.total}


@dataclass(frozen=True)
class Setup:
    """What of recipe, base and dataset the models of memory and time need."""

    shape: ModelShape
    element_bytes: int
    nf4: bool
    double: bool
    rank: int
    targets: tuple[str, ...]
    dropout: bool
    trainable: int
    optimiser_bytes: int
    """State bytes a trained parameter."""
    longest: int
    mean_length: float
    """Of the row that a token stands in: rows weighted by their tokens."""
    labelled_share: float
    tokens_per_step: int
    """Of nearly every step: three deviations over the mean."""
    mean_tokens_per_step: float
    attention: str = "flash-attn-4"
    """Which kernel attends, see attention.kernel."""
    fp8: bool = False
    gpu: bool = True

    def products(self) -> dict[str, tuple[int, int, int]]:
        """The four products of a layer: (outputs, inputs, LoRA columns beside them)."""
        sizes = self.shape.projections()
        found = {}
        for name, members in PRODUCTS.items():
            rank = self.rank * sum(member in self.targets for member in members)
            align = GPU_ALIGNMENT if self.gpu else 1
            outputs = sum(sizes[member][0] for member in members)
            found[name] = outputs, sizes[members[0]][1], -(-rank // align) * align
        return found

    def layer_bytes_per_token(self) -> float:
        """Bytes that one layer keeps of one token for its backward pass; see block.py for what is kept."""
        s, size = self.shape, self.element_bytes
        products = self.products()
        queries = s.heads * s.head_dim
        # Both streams; q, k, v; the attention's result; gate and up, wide enough for their gradient; inner columns.
        elements = 2 * s.hidden + products["qkv"][0] + queries + sum(products["gate_up"][::2])
        elements += sum(extra for _, _, extra in products.values())
        return elements * size + 4 * (2 + s.heads)  # the norms' and the softmax's statistics, float32

    def weight_bytes(self, resident: bool) -> float:
        """Bytes of all layers' matrices in the form they are held."""
        s = self.shape
        if self.fp8:  # both ways round, a byte each, and the codes they were made from
            held = 2 + (NF4_BYTES[self.double] if self.nf4 else self.element_bytes)
            return s.layers * s.layer_parameters * held
        if resident or not self.nf4:
            whole = sum((n + e) * (k + e) for n, k, e in self.products().values())
            return s.layers * whole * self.element_bytes
        beside = sum(e * (n + k) for n, k, e in self.products().values()) * self.element_bytes
        return s.layers * (s.layer_parameters * NF4_BYTES[self.double] + beside)


PRODUCTS = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
"""Matrices that read the same input are one product, see block.Layer."""


def measure(setup: Setup, tokens: int, recompute_layers: int, resident: bool) -> Memory:
    """The bytes of one choice, where they are most: as the backward pass begins."""
    s, size = setup.shape, setup.element_bytes
    kept = setup.layer_bytes_per_token()
    # A recomputed layer keeps its two streams. The first layers are recomputed: when their turn comes, the whole ones
    # are gone, so that only where all are recomputed does the one at work count.
    whole = s.layers - recompute_layers
    # In flight: hidden states and their gradient on the way to and from the head, the stream's gradient, and a
    # layer's largest gradient beside its input's.
    flight = 6 * s.hidden + s.ff + (2 if setup.dropout else 1) * max(s.hidden, s.ff * setup.dropout)
    if setup.fp8:
        flight += 2 * s.ff // size
    if not whole:
        flight = max(flight, setup.products()["gate_up"][0] + s.ff + 5 * s.hidden)
    activations = tokens * (whole * kept + recompute_layers * 2 * s.hidden * size + flight * size)
    if setup.nf4 and not resident:
        largest = max((n + e) * (k + e) for n, k, e in setup.products().values())
        activations += largest * size  # one dequantised product at a time
    logits = min(LOGITS_TOKENS, tokens) * s.vocab * size * (1 if setup.gpu else 3)
    return Memory(
        weights=int(setup.weight_bytes(resident)),
        embedding_and_head=s.vocab * s.hidden * size * (1 if s.tied else 2),
        lora=setup.trainable * (4 + 4),  # masters and gradients
        optimiser=setup.trainable * setup.optimiser_bytes,
        activations=int(activations),
        logits=logits,
        overhead=int(GPU_OVERHEAD if setup.gpu else CPU_OVERHEAD),
    )


def parse_bytes(text: str) -> int:
    """`16GiB`, `16 GB`, `24000MiB` in bytes.

    Raises:
        RecipeError: it is none of these.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]i?B?)\s*", text, re.IGNORECASE)
    if not found:
        raise RecipeError(f"training.memory is {text!r}", "a number and a unit, such as 16GiB")
    unit = found[2].lower()
    base = 1024 if "i" in unit or not unit.endswith("b") else 1000
    return int(float(found[1]) * base ** ("kmgt".index(unit[0]) + 1))
