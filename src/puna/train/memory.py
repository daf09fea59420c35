"""A byte model of training: what lies in memory, and the largest batch with the least recomputing that fits."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from puna.errors import TrainError
from puna.train.machine import Machine
from puna.train.shape import Shape

GIB = 2**30
NF4_BYTES = {True: 0.5 + (1 + 4 / 256) / 64, False: 0.5 + 4 / 64}
"""Bytes a weight with and without double quantisation: half a byte, and a scale for each block of 64."""
GPU_OVERHEAD = 1 * GIB
"""CUDA's own context and cuBLAS workspaces."""
CPU_OVERHEAD = 0.3 * GIB
LOGITS_BYTES = 2**26 * (4 + 4 + 2)
"""A chunk of logits: the product, its float32 copy, its gradient in 16 bits. See llama.CHUNK_ELEMENTS."""
SAFETY = 0.94
"""The share of free memory to plan with: the allocator's fragments take the rest."""
DEQUANT_BYTES_PER_S = 3.5e12
"""Memory traffic that dequantising reaches on a Hopper GPU (its limit is 4.3 to 4.8)."""
CPU_TOKENS = 4096
"""Tokens a pass on a CPU: activations of more fall out of its caches, fewer make small matrix products."""
GPU_TOKENS = 16_384
"""Tokens a pass on a GPU, at most: larger ones gain nothing measurable."""


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
        """All of it."""
        return sum(dataclasses.astuple(self))

    def as_dict(self) -> dict[str, int]:
        """Plain values with the total."""
        return dataclasses.asdict(self) | {"total": self.total}


@dataclass(frozen=True)
class Setup:
    """What of recipe, base and dataset the byte model needs."""

    shape: Shape
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
    labelled_share: float
    tokens_per_step: int

    def layer_bytes_per_token(self) -> float:
        """Bytes that one layer keeps of one token for its backward pass; see kernels.py for what is saved."""
        s, size = self.shape, self.element_bytes
        queries, keys = s.heads * s.head_dim, s.kv_heads * s.head_dim
        # x and its normed copy twice (both halves of the block); q, k, v, the attention's result; gate, up, act.
        elements = 4 * s.hidden + 2 * queries + 2 * keys + 3 * s.ff
        elements += self.rank * len(self.targets)
        inputs = sum(i for name, (_, i) in s.projections().items() if name in self.targets)
        statistics = 4 * (2 + s.heads)  # two norms' and the softmax's, in float32
        return elements * size + statistics + (inputs if self.dropout else 0)  # a mask is a byte an input

    def flops_per_token(self, recompute_layers: int) -> float:
        """FLOPs of one token's forward and backward pass."""
        s = self.shape
        base = s.layers * s.layer_parameters
        lora = s.lora_parameters(self.rank, self.targets)
        head = s.vocab * s.hidden * self.labelled_share
        attention = 2 * s.layers * self.mean_length / 2 * s.heads * s.head_dim  # multiply-adds of QK' and PV, causal
        forward = 2 * (base + lora + attention)
        backward = 2 * (base + 2 * lora + 2.5 * attention)
        return forward + backward + 4 * head + forward * recompute_layers / s.layers

    def dequant_s(self, recompute_layers: int) -> float:
        """Seconds that one pass spends on dequantising, forward, backward and recomputing."""
        layers = 2 * self.shape.layers + recompute_layers
        return layers * self.shape.layer_parameters * (0.5 + 2) / DEQUANT_BYTES_PER_S if self.nf4 else 0.0


@dataclass(frozen=True)
class Budget:
    """What was chosen and why."""

    tokens_per_batch: int
    recompute_layers: int
    resident: bool
    memory: Memory
    flops_per_token: float
    reasons: tuple[str, ...]


def measure(setup: Setup, tokens: int, recompute_layers: int, resident: bool, gpu: bool) -> Memory:
    """The bytes of one choice."""
    s, size = setup.shape, setup.element_bytes
    base = s.layers * s.layer_parameters
    each = size if resident or not setup.nf4 else NF4_BYTES[setup.double]
    kept = setup.layer_bytes_per_token()
    # A recomputed layer keeps its input; one at a time is whole while its gradient is made.
    whole = s.layers - recompute_layers + (1 if recompute_layers else 0)
    scratch = 2 * s.ff + 4 * s.hidden  # gradients in flight
    activations = tokens * (whole * kept + recompute_layers * s.hidden * size + scratch * size)
    if not resident and setup.nf4:
        activations += 2 * s.ff * s.hidden * size  # one dequantised matrix, and its successor
    return Memory(
        weights=int(base * each),
        embedding_and_head=s.vocab * s.hidden * size * (1 if s.tied else 2),
        lora=setup.trainable * (4 + 4 + size),  # masters, gradients, compute copies
        optimiser=setup.trainable * setup.optimiser_bytes,
        activations=int(activations),
        logits=min(LOGITS_BYTES, tokens * s.vocab * 10),
        overhead=int(GPU_OVERHEAD if gpu else CPU_OVERHEAD),
    )


def choose(setup: Setup, machine: Machine, tokens: int | None, recompute: int | None) -> Budget:
    """The fastest choice that fits; `tokens` and `recompute` are the recipe's, kept when they fit.

    Raises:
        TrainError: nothing fits, and how much memory is missing.
    """
    room = int(machine.memory_bytes * SAFETY)
    options = [
        (n, layers, resident)
        for n in _token_options(setup, machine, tokens)
        for resident in ((True, False) if machine.is_gpu and setup.nf4 else (True,))
        for layers in ([recompute] if recompute is not None else range(setup.shape.layers + 1))
    ]
    sizes = {option: measure(setup, *option, machine.is_gpu) for option in options}
    fitting = [option for option in options if sizes[option].total <= room]
    if not fitting:
        raise _too_large(min(sizes.values(), key=lambda m: m.total), machine, room)

    def seconds_per_token(option: tuple[int, int, bool]) -> tuple[float, int]:
        n, layers, resident = option
        fixed = 0.0 if resident else setup.dequant_s(layers)
        launches = 40e-6 * 30 * setup.shape.layers if machine.is_gpu else 0.0  # ~30 kernels a layer wait for Python
        return setup.flops_per_token(layers) / (machine.flops * 0.5) + (fixed + launches) / n, layers

    best = min(fitting, key=seconds_per_token)
    return Budget(
        *best, sizes[best], setup.flops_per_token(best[1]), _reasons(setup, machine, best, sizes[best], tokens)
    )


def _token_options(setup: Setup, machine: Machine, asked: int | None) -> list[int]:
    # A batch holds the longest row and no more than a step's rows; multiples of 128 suit the kernels.
    least = -(-setup.longest // 128) * 128
    if asked is not None:
        return [max(asked, setup.longest)]
    most = min(GPU_TOKENS if machine.is_gpu else CPU_TOKENS, -(-setup.tokens_per_step // 128) * 128)
    return sorted({max(least, most >> halvings) for halvings in range(8)}, reverse=True)


def _reasons(
    setup: Setup, machine: Machine, best: tuple[int, int, bool], memory: Memory, asked: int | None
) -> tuple[str, ...]:
    tokens, layers, resident = best
    free = f"{machine.memory_bytes / GIB:.1f} GiB free"
    found = [f"{tokens} tokens a pass" + (" as the recipe asks" if asked else f": {memory.total / GIB:.1f} of {free}")]
    if asked is not None and asked < setup.longest:
        found[0] = f"{tokens} tokens a pass, not {asked}: the longest row has {setup.longest}"
    found.append(
        f"{layers} of {setup.shape.layers} layers are recomputed: their activations would not fit"
        if layers
        else "no layer is recomputed: all activations fit"
    )
    if setup.nf4:
        found.append(
            "weights are quantised to NF4 and stay dequantised: the same function, no dequantising at each use"
            if resident
            else "weights stay in NF4: dequantised copies would not fit"
        )
    return tuple(found)


def _too_large(least: Memory, machine: Machine, room: int) -> TrainError:
    missing = (least.total - room) / GIB
    parts = ", ".join(f"{k} {v / GIB:.1f}" for k, v in dataclasses.asdict(least).items())
    return TrainError(
        f"training does not fit {machine.name}: {missing:.1f} GiB are missing "
        f"({least.total / GIB:.1f} needed at least, {SAFETY:.0%} of {machine.memory_bytes / GIB:.1f} free to use)",
        "lower data.max_length or lora.lora_r, free the device, or choose a smaller base",
        f"at the least: {parts} GiB",
    )
