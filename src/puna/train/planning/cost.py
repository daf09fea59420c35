"""Models of a run's memory and time, for one choice of tokens a pass, recomputation and resident weights."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from puna.errors import RecipeError
from puna.train.device import TrainingMachine
from puna.train.model.llama import LOGITS_TOKENS
from puna.train.model.lora import GPU_ALIGNMENT
from puna.train.model.shape import PRODUCTS, ModelShape

GIB = 2**30
NF4_BYTES = {True: 0.5 + (1 + 4 / 256) / 64, False: 0.5 + 4 / 64}
"""Bytes a weight with and without double quantisation: half a byte, and a scale for each block of 64."""
GPU_OVERHEAD = 0.75 * GIB
"""CUDA's own context, kernels and cuBLAS workspaces: what torch's allocator does not count."""
CPU_OVERHEAD = 1.0 * GIB
"""Python with torch, tokenizers and bitsandbytes loaded, whatever it trains."""


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

    def as_dict(self) -> dict[str, int]:
        """Plain values with the total, and the peak of torch's allocator: all but the overhead."""
        return dataclasses.asdict(self) | {"allocated": self.total - self.overhead, "total": self.total}


@dataclass(frozen=True)
class Setup:
    """Facts of recipe, base and dataset that the models of memory and time need."""

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


# Shares of the data sheet's numbers, measured on one H200 (docs/LOG.md, 2026-11-25) over whole steps, where the chip
# runs at its power limit: a product alone, in the first second, is faster.
PRODUCT_SHARE = 0.71
"""Of peak, matrix products of a layer and the head."""
FP8_SHARE = 1.22
"""Of bf16's peak, products in 8 bits with a scale a row and sums kept in float32."""
ATTENTION_SHARE = {"flash-attn-4": (0.37, 0.26), "varlen": (0.25, 0.17), "padded": (0.12, 0.08)}
"""Of peak, attention forward and backward (deterministic)."""
BANDWIDTH_SHARE = 0.80
"""Of the memory's bandwidth, kernels that only read and write."""
STEP_S = 0.006
"""Optimiser and clipping, once a step."""
PASS_S = 0.0009
"""Of each pass beside its tokens, a layer: masters copied, thin products and tails of large ones."""
LAUNCH_S = 0.0055
"""Python and the driver need this long for one layer's forward and backward pass, whatever its size."""
CPU_PASS_S = 0.001
"""Of a CPU's pass beside its tokens, a layer: some sixty operations, each started from Python."""
CPU_UTILISATION = 0.45
"""Share of a plain matrix product's speed, measured on two AVX2 cores with the demo's model."""


@dataclass(frozen=True)
class PassChoice:
    """One way to lay out a run's passes."""

    tokens_per_batch: int
    recompute_layers: int
    resident: bool


def flops_per_token(setup: Setup, recompute_layers: int = 0) -> float:
    """FLOPs of one token's forward and backward pass."""
    s = setup.shape
    base = s.layers * s.layer_parameters
    lora = s.lora_parameters(setup.rank, setup.targets)
    head = s.vocab * s.hidden * setup.labelled_share
    attention = attention_flops(setup)
    again = recompute_layers / s.layers * (_recomputed_parameters(setup) * 2 + attention)
    return 4 * base + 6 * lora + 4 * head + 3.5 * attention + again


def attention_flops(setup: Setup) -> float:
    """FLOPs of one token's QK' and PV in all layers, causal."""
    s = setup.shape
    return 4 * s.layers * setup.mean_length / 2 * s.heads * s.head_dim


def step_s(setup: Setup, machine: TrainingMachine, choice: PassChoice) -> float:
    """Seconds of one optimiser step with the mean number of tokens."""
    tokens = setup.mean_tokens_per_step
    passes = max(1.0, -(-tokens // choice.tokens_per_batch))
    if not machine.is_gpu:
        busy = tokens * flops_per_token(setup, choice.recompute_layers) / (machine.flops * CPU_UTILISATION)
        return busy + passes * CPU_PASS_S * setup.shape.layers
    busy = tokens * token_s(setup, machine, choice) + passes * _weights_s(setup, machine, choice)
    busy += passes * PASS_S * setup.shape.layers
    return max(busy, passes * LAUNCH_S * setup.shape.layers) + STEP_S


def evaluation_s(setup: Setup, machine: TrainingMachine, choice: PassChoice, tokens: int) -> float:
    """Seconds of one pass over held-out rows without gradients: about a third of training's, a pass at a time."""
    if not tokens:
        return 0.0
    if not machine.is_gpu:
        return tokens * flops_per_token(setup) / 3 / (machine.flops * CPU_UTILISATION)
    passes = -(-tokens // choice.tokens_per_batch)
    return tokens * token_s(setup, machine, choice) * 0.31 + passes * LAUNCH_S * setup.shape.layers / 3


def token_s(setup: Setup, machine: TrainingMachine, choice: PassChoice) -> float:
    """Seconds that a GPU works on one token, forward and backward."""
    s, again = setup.shape, choice.recompute_layers / setup.shape.layers
    frozen = 4 * s.layers * s.layer_parameters + 2 * again * _recomputed_parameters(setup)
    products = frozen / (machine.flops * (FP8_SHARE if setup.fp8 else PRODUCT_SHARE))
    products += 4 * s.vocab * s.hidden * setup.labelled_share / (machine.flops * PRODUCT_SHARE)
    forward, backward = ATTENTION_SHARE[setup.attention]
    attention = attention_flops(setup)
    attention_s = attention * ((1 + again) / forward + 2.5 / backward) / machine.flops
    return products + attention_s + _traffic_bytes(setup, again) / (machine.bandwidth * BANDWIDTH_SHARE)


def _recomputed_parameters(setup: Setup) -> float:
    # The attention's output product and the down product are never computed again, see block.py.
    sizes = setup.products()
    return setup.shape.layers * sum(sizes[name][0] * sizes[name][1] for name in ("qkv", "gate_up"))


def _traffic_bytes(setup: Setup, again: float) -> float:
    """Bytes a token that kernels between matrix products read and write, and LoRA's thin products."""
    s, (qkv, _, _), ff = setup.shape, setup.products()["qkv"], setup.shape.ff
    d, queries = s.hidden, s.heads * s.head_dim
    turned = qkv - s.kv_heads * s.head_dim
    thin_in = 2 * d + queries + ff  # inputs of the four products
    thin_out = qkv + 2 * d + 2 * ff  # their outputs
    forward: float = 8 * d + 2 * turned + 3 * ff + 2 * d + thin_in
    backward: float = 10 * d + 2 * qkv + 6 * ff + 2 * thin_out + thin_in
    recomputed = 4 * d + 2 * turned + 2 * d
    if setup.dropout:  # masked copies; what came through a mask is written, read and added
        forward += 2 * d + 2 * queries + ff
        backward += 2 * thin_in + 5 * queries
    if setup.fp8:  # a row is read and written in a byte; LoRA's part is added to y and to dx
        forward += 1.5 * thin_in + 2 * thin_out
        backward += 1.5 * thin_out + 2 * thin_in
    layers = s.layers * (forward + backward + again * recomputed) * setup.element_bytes
    return layers + 3 * setup.element_bytes * s.vocab * setup.labelled_share


def _weights_s(setup: Setup, machine: TrainingMachine, choice: PassChoice) -> float:
    """Seconds that one pass spends on dequantising, forward, backward and recomputing."""
    if choice.resident or not setup.nf4 or setup.fp8:
        return 0.0
    s = setup.shape
    again = choice.recompute_layers / s.layers * _recomputed_parameters(setup)
    written = 2 * s.layers * s.layer_parameters + again
    return written * (NF4_BYTES[setup.double] + setup.element_bytes) / (machine.bandwidth * 0.6)
