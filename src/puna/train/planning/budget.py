"""The budget of a run: tokens a pass, layers recomputed, weights resident or not; the fastest choice that fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from puna.errors import TrainError
from puna.train.device import TrainingMachine
from puna.train.planning.cost import GIB, Memory, PassChoice, Setup, flops_per_token, measure, step_s

SAFETY = 0.95
"""The share of the memory to plan with: the allocator's fragments take the rest."""
CPU_TOKENS = 4096
"""Tokens a pass on a CPU: activations of more fall out of its caches, fewer make small matrix products."""
GPU_TOKENS = 32_768
"""Tokens a pass on a GPU, at most: larger ones gain nothing measurable."""


@dataclass(frozen=True)
class BudgetLimits:
    """Values that the recipe fixes; None leaves one to the plan."""

    tokens_per_batch: int | None = None
    recompute_layers: int | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class TokenBudget:
    """The choice, its cost and its reasons."""

    choice: PassChoice
    memory: Memory
    flops_per_token: float
    step_s: float
    reasons: tuple[str, ...]


def choose(setup: Setup, machine: TrainingMachine, limits: BudgetLimits = BudgetLimits()) -> TokenBudget:
    """The fastest choice that fits; what the recipe fixes is kept when it fits.

    Raises:
        TrainError: nothing fits, and how much memory is missing.
    """
    room = int(min(machine.memory_bytes, limits.memory_bytes or machine.memory_bytes) * SAFETY)
    sizes = {choice: measure(setup, *dataclasses.astuple(choice)) for choice in _choices(setup, machine, limits)}
    fitting = [choice for choice, memory in sizes.items() if memory.total <= room]
    if not fitting:
        raise _too_large(min(sizes.values(), key=lambda m: m.total), machine, room)
    # Of equals, the one with fewer recomputed layers, then the smaller pass.
    times = {choice: step_s(setup, machine, choice) for choice in fitting}
    best = min(fitting, key=lambda choice: (times[choice], choice.recompute_layers, choice.tokens_per_batch))
    flops = flops_per_token(setup, best.recompute_layers)
    reasons = _reasons(setup, machine, best, sizes[best], limits)
    return TokenBudget(best, sizes[best], flops, times[best], reasons)


def _choices(setup: Setup, machine: TrainingMachine, limits: BudgetLimits) -> Iterator[PassChoice]:
    resident = (True, False) if machine.is_gpu and setup.nf4 and not setup.fp8 else (True,)
    fixed = limits.recompute_layers
    layers = [min(fixed, setup.shape.layers)] if fixed is not None else range(setup.shape.layers + 1)
    for tokens in _token_options(setup, machine, limits.tokens_per_batch):
        for is_resident in resident:
            for recompute in layers:
                yield PassChoice(tokens, recompute, is_resident)


def _token_options(setup: Setup, machine: TrainingMachine, asked: int | None) -> list[int]:
    # A pass holds the longest row and no more than a step's rows; multiples of 128 suit the kernels.
    least = _rounded(setup.longest)
    if asked is not None:
        return [max(asked, setup.longest)]
    most = min(GPU_TOKENS if machine.is_gpu else CPU_TOKENS, _rounded(setup.tokens_per_step))
    # A step in 1, 2, 3 ... even passes: what lies between holds no more rows.
    return sorted({max(least, _rounded(-(-most // passes))) for passes in range(1, 17)}, reverse=True)


def _rounded(tokens: int) -> int:
    return -(-tokens // 128) * 128


def _reasons(
    setup: Setup, machine: TrainingMachine, best: PassChoice, memory: Memory, limits: BudgetLimits
) -> tuple[str, ...]:
    tokens, layers, asked = best.tokens_per_batch, best.recompute_layers, limits.tokens_per_batch
    of = f"of {machine.memory_bytes / GIB:.1f} GiB free"
    if limits.memory_bytes is not None and limits.memory_bytes < machine.memory_bytes:
        of = f"of the {limits.memory_bytes / GIB:.1f} GiB that the recipe allows"
    found = [f"{tokens:,} tokens a pass" + (" as the recipe asks" if asked else f": {memory.total / GIB:.1f} {of}")]
    if asked is not None and asked < setup.longest:
        found[0] = f"{tokens:,} tokens a pass, not {asked:,}: the longest row has {setup.longest:,}"
    if limits.recompute_layers is not None:
        found.append(f"{layers} of {setup.shape.layers} layers are recomputed, as the recipe asks")
    elif layers:
        found.append(f"{layers} of {setup.shape.layers} layers are recomputed: the activations of more would not fit")
    else:
        found.append("no layer is recomputed: all activations fit")
    if setup.fp8:
        found.append("frozen matrices are multiplied in 8 bits, as the recipe asks; LoRA, norms and head are not")
    elif setup.nf4:
        found.append(
            "weights are quantised to NF4 and stay dequantised: the same function, no dequantising at each use"
            if best.resident
            else "weights stay in NF4 and are dequantised at each use: dequantised copies would take the room of tokens"
        )
    return tuple(found)


def _too_large(least: Memory, machine: TrainingMachine, room: int) -> TrainError:
    missing = (least.total - room) / GIB
    parts = ", ".join(f"{k} {v / GIB:.1f}" for k, v in dataclasses.asdict(least).items())
    return TrainError(
        f"training does not fit {machine.name}: {missing:.1f} GiB are missing "
        f"({least.total / GIB:.1f} needed at least, {room / GIB:.1f} usable of {machine.memory_bytes / GIB:.1f} free)",
        "lower data.max_length or lora.lora_r, free the device, raise training.memory, or choose a smaller base",
        f"at the least: {parts} GiB",
    )
