"""The training loop: one function a step, one for held-out loss, one that goes through them all."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from puna.errors import TrainError
from puna.progress import Progress
from puna.spec.recipe import Recipe
from puna.train import checkpoint
from puna.train.batches import batches
from puna.train.checkpoint import Position
from puna.train.llama import Llama
from puna.train.lora import Dropout
from puna.train.machine import memory_used
from puna.train.optimiser import clip, learning_rate
from puna.train.plan import Plan
from puna.train.record import Run, figures, read_metrics
from puna.train.rows import Row, Rows, count_labelled, step_rows
from puna.train.stopping import Stop, StoppedError
from puna.train.trackers import Tracker

FP16_LOSS_SCALE = 1024.0
"""float16 gradients under 6e-8 vanish; LoRA's are around 1e-6 a token. Divided out again in float32."""
STATUS_S = 1.0
"""status.json is written at most this often: it is fsynced."""


@dataclass
class Job:
    """Everything that the loop works with."""

    recipe: Recipe
    plan: Plan
    run: Run
    model: Llama
    masters: dict[str, nn.Parameter]
    optimiser: torch.optim.Optimizer
    train: Rows
    test: Rows
    progress: Progress
    trackers: Sequence[Tracker] = ()
    status_at: float = field(default=0.0)


def train_steps(job: Job, at: Position, stop: Stop) -> Position:
    """From `at` to the last step, with log lines, held-out losses and checkpoints on the way.

    Raises:
        TrainError: the loss or a gradient is not finite.
        StoppedError: a signal came; a checkpoint of that moment is saved.
        MachineError: the disk is full.
    """
    training, steps = job.recipe.training, job.plan.steps
    window = Position()  # since the last log line, of this process
    while at.step < steps:
        if stop.signal_name:
            raise _stopped(job, at, stop)
        started = time.perf_counter()
        line = one_step(job, at)
        at.seconds += (seconds := time.perf_counter() - started)
        window.seconds += seconds
        window.tokens += int(line.pop("tokens"))
        job.progress.advance(at.step, steps, **line, tokens_per_s=window.tokens / window.seconds)
        last, record = at.step == steps, {}
        if last or at.step % training.logging_steps == 0:
            at.train_loss = at.loss_sum / max(1, at.loss_count)
            record = line | {"loss": at.train_loss, "tokens_per_s": round(window.tokens / window.seconds, 1)}
            at.loss_sum, at.loss_count, window = 0.0, 0, Position()
        if len(job.test) and (last or at.step % training.eval_steps == 0):
            at.eval_loss = evaluate(job)
            record["eval_loss"] = at.eval_loss
        if record:
            log(job, at.step, record | {"memory_bytes": memory_used(job.plan.device)})
        if last or at.step % training.save_steps == 0:
            save(job, at)
        _tell(job, at, now=time.monotonic(), force=bool(record))
    return at


def one_step(job: Job, at: Position) -> dict[str, float]:
    """One optimiser step on exactly the recipe's rows; returns loss, lr, grad_norm, tokens.

    The loss is the mean over all labelled tokens of the step, however the rows are split into passes.
    """
    training, step = job.recipe.training, at.step
    rows = [job.train[int(i)] for i in step_rows(len(job.train), job.plan.rows_per_step, step, training.seed)]
    lr = learning_rate(training, step, job.plan.steps)
    loss = accumulate(job, rows, step)
    norm = clip(job.masters.values(), training.max_grad_norm)
    at.step += 1
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise TrainError(
            f"step {at.step}: loss {loss}, gradient norm {norm}: training has diverged",
            "lower training.learning_rate or raise warmup_steps, then start a new run",
        )
    for group in job.optimiser.param_groups:
        group["lr"] = lr
    job.optimiser.step()
    job.optimiser.zero_grad(set_to_none=True)
    tokens = sum(len(ids) for ids, _ in rows)
    at.tokens += tokens
    at.loss_sum, at.loss_count = at.loss_sum + loss, at.loss_count + 1
    return {"loss": loss, "lr": lr, "grad_norm": norm, "tokens": tokens}


def accumulate(job: Job, rows: Sequence[Row], step: int) -> float:
    """Add the gradients of the rows' mean loss to the masters, a token budget at a time; returns the loss."""
    labelled, training = max(1, count_labelled(rows)), job.recipe.training
    scale = FP16_LOSS_SCALE if job.plan.compute_dtype == "float16" else 1.0
    total = torch.zeros((), device=job.model.device)
    for index, batch in enumerate(batches(rows, job.plan.tokens_per_batch, job.model.device)):
        dropout = Dropout(job.recipe.lora.lora_dropout, training.seed, step, index)
        loss = job.model.loss(batch, dropout)
        (loss * (scale / labelled)).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    if scale != 1.0:
        for master in job.masters.values():
            if master.grad is not None:
                master.grad.div_(scale)
    return float(total) / labelled


@torch.no_grad()
def evaluate(job: Job) -> float:
    """Mean loss over every labelled token of the held-out rows, without dropout."""
    rows = [job.test[i] for i in range(len(job.test))]
    total = torch.zeros((), device=job.model.device)
    for batch in batches(rows, job.plan.tokens_per_batch, job.model.device):
        total += job.model.loss(batch)
    return float(total) / max(1, count_labelled(rows))


def log(job: Job, step: int, values: dict[str, float]) -> None:
    """One line of metrics.jsonl, and the same to every tracker."""
    line = {"step": step, **values, "time": round(time.time(), 3)}
    with (job.run.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    for tracker in job.trackers:
        tracker.log(step, figures(line))


def forget_after(run: Run, step: int) -> None:
    """Drop the metrics of steps that a resumed run will do again."""
    path = run.path / "metrics.jsonl"
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


def save(job: Job, at: Position) -> None:
    """A checkpoint of this moment."""
    limit = job.recipe.training.save_total_limit
    checkpoint.save(job.run.path / "checkpoints", job.masters, job.optimiser, at, limit)


def _stopped(job: Job, at: Position, stop: Stop) -> StoppedError:
    save(job, at)
    _tell(job, at, now=time.monotonic(), force=True)
    return StoppedError(
        f"stopped by {stop.signal_name} after step {at.step} of {job.plan.steps}; a checkpoint is saved",
        f"puna train RECIPE --resume {job.run.name}",
    )


def _tell(job: Job, at: Position, now: float, force: bool) -> None:
    if force or now - job.status_at >= STATUS_S:
        job.status_at = now
        job.run.write_status(step=at.step)
