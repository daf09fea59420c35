"""A model of time: what a step takes on a device, from its arithmetic and its memory traffic."""

from __future__ import annotations

from dataclasses import dataclass

from puna.train.device import TrainingMachine
from puna.train.planning.memory import NF4_BYTES, Setup

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
"""What each pass costs beside its tokens, a layer: masters copied, thin products and tails of large ones."""
LAUNCH_S = 0.0055
"""Python and the driver need this long for one layer's forward and backward pass, whatever its size."""
CPU_PASS_S = 0.001
"""What a pass costs a CPU beside its tokens, a layer: some sixty operations, each started from Python."""
CPU_UTILISATION = 0.45
"""Share of a plain matrix product's speed, measured on two AVX2 cores with the demo's model."""


@dataclass(frozen=True)
class PassChoice:
    """How a run could be laid out."""

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
