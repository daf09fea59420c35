"""The plan of a run: rows, tokens, steps, memory and time, worked out before any weight is loaded."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from puna.artifacts import Dataset
from puna.config.recipe import Recipe
from puna.errors import TrainError
from puna.tokens import TokenRows
from puna.train.device import TrainingMachine, compute_dtype, look
from puna.train.model.attention import kernel
from puna.train.model.shape import ModelShape, Weights, read_shape
from puna.train.planning.budget import BudgetLimits, choose
from puna.train.planning.cost import GIB, Memory, PassChoice, Setup, evaluation_s, measure, parse_bytes
from puna.train.rows import Longs, pack, share, step_rows


@dataclass(frozen=True)
class Steps:
    """The rows' lengths of every step's share of every process; order and shares are drawn from the seed."""

    shares: tuple[tuple[int, ...], ...]

    @classmethod
    def foresee(cls, lengths: Longs, rows_per_step: int, steps: int, seed: int, world: int = 1) -> Steps:
        """The loop's steps over rows of these lengths."""
        found = []
        for step in range(steps):
            chosen = lengths[step_rows(len(lengths), rows_per_step, step, seed)]
            parts = share(chosen, world) if world > 1 else [range(len(chosen))]
            found += [tuple(int(chosen[i]) for i in part) for part in parts]
        return cls(tuple(found))

    @property
    def mean_tokens(self) -> float:
        """Of one process in one step."""
        return sum(map(sum, self.shares)) / len(self.shares)

    @property
    def most_tokens(self) -> int:
        """Of one process in its longest step."""
        return max(map(sum, self.shares))

    def largest_pass(self, tokens_per_batch: int) -> int:
        """Tokens of the largest pass of any step: what memory must be there for."""
        largest = 0
        for lengths in self.shares:
            if sum(lengths) <= tokens_per_batch:
                largest = max(largest, sum(lengths))
            elif largest < tokens_per_batch:
                largest = max(largest, *(sum(lengths[i] for i in one) for one in pack(lengths, tokens_per_batch)))
        return largest


SAVE_S = 1.5
"""A checkpoint of 42 M masters and their states, to a disk of 400 MB/s."""
START_S = 60.0
"""Loading and quantising 8 B weights, compiling kernels, replies before and after: what is no step."""


@dataclass(frozen=True)
class TrainingPlan:
    """A run's plan: steps, memory, time; `reasons` says why, a sentence each."""

    device: str
    device_name: str
    compute_dtype: str
    threads: int
    """CPU threads of torch; a resumed run keeps them, since sums are split, and rounded, by thread."""
    base_parameters: int
    trainable_parameters: int
    rows_train: int
    rows_test: int
    tokens_train: int
    tokens_test: int
    rows_per_step: int
    steps: int
    epochs: float
    tokens_per_batch: int
    recompute_layers: int
    resident_weights: bool
    """The base's matrices stay dequantised: four times the memory, no dequantising at each use."""
    precision: str
    attention: str
    """Which attention kernel runs."""
    optimiser: str
    memory: Memory
    memory_limit_bytes: int | None
    """The recipe's limit; the run is held to it."""
    memory_available_bytes: int
    flops_per_token: float
    tokens_per_s: float
    """Of steps alone; an estimate from arithmetic and memory traffic, the run's own figures replace it."""
    step_s: float
    seconds: float
    """Of the whole run: steps, evaluations and checkpoints."""
    reasons: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, `memory` with its total."""
        return dataclasses.asdict(self) | {"memory": self.memory.as_dict(), "reasons": list(self.reasons)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingPlan:
        """The plan that `as_dict` wrote down."""
        known = {f.name: values[f.name] for f in dataclasses.fields(cls)}
        sizes = {f.name: values["memory"][f.name] for f in dataclasses.fields(Memory)}
        return cls(**(known | {"memory": Memory(**sizes), "reasons": tuple(values["reasons"])}))


Base = tuple[ModelShape, str, TrainingMachine]
"""(shape, compute dtype, machine)."""


def plan(recipe: Recipe, base_dir: Path, dataset: Dataset, device: str | None = None, world: int = 1) -> TrainingPlan:
    """Plan a run of `world` processes from config.json, safetensors headers and the dataset's offsets.

    Raises:
        TrainError: it does not fit the machine, by how much; or base or dataset cannot be trained.
        MachineError: there is no such device.
    """
    machine, shape = look(device), read_shape(base_dir)
    train, test = TokenRows.load(dataset, "train"), TokenRows.load(dataset, "test")
    _check(shape, train, test)
    dtype, why_dtype = compute_dtype(machine, recipe.quantization.bnb_4bit_compute_dtype)
    steps_per_epoch = math.ceil(len(train) / recipe.rows_per_step)
    steps = recipe.training.max_steps or math.ceil(recipe.training.num_train_epochs * steps_per_epoch)
    training = recipe.training
    foreseen = Steps.foresee(train.lengths, recipe.rows_per_step, steps, training.seed, world)
    setup = _setup(recipe, (shape, dtype, machine), dataset, train, foreseen)
    allowed = parse_bytes(training.memory) if training.memory else None
    limits = BudgetLimits(training.tokens_per_batch, training.recompute_layers, allowed)
    budget = choose(setup, machine, limits)
    # Now that the budget is known, so is the largest pass: the memory that will really be used.
    chosen = budget.choice
    largest = foreseen.largest_pass(chosen.tokens_per_batch)
    memory = measure(setup, largest, chosen.recompute_layers, chosen.resident)
    seconds = steps * budget.step_s + _beside_s(recipe, setup, machine, chosen, len(test.input_ids), steps)
    return TrainingPlan(
        device=machine.device,
        device_name=machine.name,
        compute_dtype=dtype,
        threads=machine.threads,
        base_parameters=sum(elements for _, elements in Weights(base_dir).headers.values()),
        trainable_parameters=setup.trainable,
        rows_train=len(train),
        rows_test=len(test),
        tokens_train=len(train.input_ids),
        tokens_test=len(test.input_ids),
        rows_per_step=recipe.rows_per_step,
        steps=steps,
        epochs=steps / steps_per_epoch,
        tokens_per_batch=chosen.tokens_per_batch,
        recompute_layers=chosen.recompute_layers,
        resident_weights=chosen.resident,
        precision=training.precision,
        attention=setup.attention,
        optimiser=training.optim,
        memory=memory,
        memory_limit_bytes=limits.memory_bytes,
        memory_available_bytes=machine.memory_bytes,
        flops_per_token=budget.flops_per_token,
        tokens_per_s=setup.mean_tokens_per_step / budget.step_s,
        step_s=budget.step_s,
        seconds=seconds,
        reasons=(why_dtype, *budget.reasons, *_attention(setup), *_warnings(recipe, machine)),
    )


def _check(shape: ModelShape, train: TokenRows, test: TokenRows) -> None:
    if not len(train) or not train.labelled:
        raise TrainError("the dataset holds no token to learn", "look at `puna train RECIPE --dry-run`'s preview")
    longest = int(max(train.lengths.max(), test.lengths.max(initial=0)))
    if shape.window and longest > shape.window:
        short = f"set data.max_length to {shape.window}"
        raise TrainError(f"the base sees {shape.window} tokens at a time, a row has {longest}", short)
    top = int(max(train.input_ids.max(), test.input_ids.max(initial=0)))
    if top >= shape.vocab:
        raise TrainError(f"the dataset has token {top}, the base knows {shape.vocab}", "prepare it with this base")


def _beside_s(
    recipe: Recipe, setup: Setup, machine: TrainingMachine, choice: PassChoice, tokens_test: int, steps: int
) -> float:
    """Seconds of all that is not a step: held-out rows before, every eval_steps and at the end; checkpoints."""
    training = recipe.training
    evaluations = 1 + math.ceil(steps / training.eval_steps)
    found = evaluations * evaluation_s(setup, machine, choice, tokens_test)
    share = setup.trainable / 42e6  # of Llama-3-8B's, rank 16
    return found + share * (math.ceil(steps / training.save_steps) * SAVE_S + START_S)


def _setup(recipe: Recipe, base: Base, dataset: Dataset, train: TokenRows, steps: Steps) -> Setup:
    shape, dtype, machine = base
    chat = dataset.manifest.metrics.get("chat_token_ids", {}) if recipe.lora.train_chat_tokens else {}
    chat_parameters = len(set(chat.values())) * shape.hidden * (1 if shape.tied else 2)
    trainable = shape.lora_parameters(recipe.lora.lora_r, recipe.lora.target_modules) + chat_parameters
    lengths = train.lengths
    return Setup(
        shape=shape,
        element_bytes=4 if dtype == "float32" else 2,
        nf4=recipe.quantization.load_in_4bit,
        double=recipe.quantization.bnb_4bit_use_double_quant,
        rank=recipe.lora.lora_r,
        targets=recipe.lora.target_modules,
        dropout=recipe.lora.lora_dropout > 0,
        trainable=trainable,
        optimiser_bytes=8 if recipe.training.optim == "adamw" else 2,
        longest=int(lengths.max()),
        # A row's mean attention length, weighted by tokens.
        mean_length=float(np.square(lengths.astype(np.float64)).sum() / lengths.sum()),
        labelled_share=train.labelled / len(train.input_ids),
        tokens_per_step=steps.most_tokens,
        mean_tokens_per_step=steps.mean_tokens,
        attention=kernel(torch.device(machine.device), getattr(torch, dtype), shape.head_dim),
        fp8=recipe.training.precision == "fp8",
        gpu=machine.is_gpu,
    )


def _attention(setup: Setup) -> list[str]:
    if not setup.gpu:
        return []
    names = {"flash-attn-4": "FlashAttention 4", "varlen": "torch's variable-length FlashAttention 2"}
    found = [f"attention by {names.get(setup.attention, 'torch, documents of like length padded together')}"]
    if setup.attention == "varlen":
        found[0] += "; on a Hopper GPU, `pip install flash-attn-4` makes it twice as fast"
    return found


def _warnings(recipe: Recipe, machine: TrainingMachine) -> list[str]:
    found = []
    if recipe.training.precision == "fp8" and not machine.fp8:
        found.append("fp8 is imitated: this device has no 8-bit products, so it is slower than bf16, not faster")
    if recipe.training.learning_rate < 5e-5:
        rate = f"learning_rate {recipe.training.learning_rate:g}"
        found.append(f"{rate} is about a tenth of what LoRA wants (1e-4 to 2e-4): kept as asked")
    if recipe.training.optim == "paged_adamw_8bit" and not machine.is_gpu:
        found.append("paged_adamw_8bit runs as adamw_8bit: a CPU has nothing to page")
    return found


def _weights(made: TrainingPlan) -> str:
    if made.precision == "fp8":
        return ", frozen products in fp8"
    return ", weights dequantised once" if made.resident_weights else ", weights dequantised at each use"


def _sizes(memory: Memory) -> str:
    # One unit for all: that in which the total is a number of two digits or more.
    unit, name = (GIB, "GiB") if memory.total >= GIB * 10 else (2**20, "MiB")
    digits = 1 if name == "GiB" else 0
    parts = [f"{part.replace('_', ' ')} {size / unit:,.{digits}f}" for part, size in dataclasses.asdict(memory).items()]
    return f"{memory.total / unit:,.{digits}f} {name}: {', '.join(parts)}"


def describe(made: TrainingPlan) -> list[tuple[str, str]]:
    """The plan as (name, text) lines for people."""
    minutes = made.seconds / 60
    return [
        ("device", f"{made.device_name} ({made.device}), {made.memory_available_bytes / GIB:.1f} GiB free"),
        ("base", f"{made.base_parameters / 1e6:,.1f} M parameters"),
        ("trained", f"{made.trainable_parameters / 1e6:,.2f} M parameters, {made.optimiser}"),
        ("rows", f"{made.rows_train:,} to learn from, {made.rows_test:,} held out"),
        ("tokens", f"{made.tokens_train:,} an epoch, {made.tokens_test:,} held out"),
        ("steps", f"{made.steps:,} of {made.rows_per_step} rows ({made.epochs:.2f} epochs)"),
        ("batch", f"{made.tokens_per_batch:,} tokens a pass, {made.recompute_layers} layers recomputed"),
        ("compute", made.compute_dtype + _weights(made) + f", attention: {made.attention}"),
        ("memory", _sizes(made.memory)),
        ("time", f"about {made.seconds:.0f} s" if minutes < 2 else f"about {minutes:.0f} min"),
    ]
