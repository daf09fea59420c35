"""The training loop: one function a step, one for held-out loss, one that goes through them all.

A step leaves its loss and its gradient norm on the device, so that a GPU always has the next step queued; they are
read when somebody needs them.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from puna.config.recipe import Recipe
from puna.errors import TrainError
from puna.progress import Progress
from puna.tokens import TokenRows, Tokens
from puna.train import checkpoint
from puna.train.batches import batches
from puna.train.checkpoint import Position
from puna.train.device import memory_used
from puna.train.model.llama import Llama
from puna.train.model.lora import Dropout
from puna.train.optimiser import clip, learning_rate
from puna.train.planning.plan import TrainingPlan
from puna.train.ranks import Ranks
from puna.train.reporting.record import Run, figures, read_metrics
from puna.train.reporting.trackers import Tracker
from puna.train.rows import count_labelled, share, step_rows
from puna.train.stopping import StoppedError, StopSignal

FP16_LOSS_SCALE = 1024.0
"""float16 gradients under 6e-8 vanish; LoRA's are around 1e-6 a token. Divided out again in float32."""
STATUS_S = 1.0
"""status.json is written at most this often: it is fsynced."""


@dataclass
class TrainingJob:
    """Everything that the loop works with."""

    recipe: Recipe
    plan: TrainingPlan
    run: Run
    model: Llama
    masters: dict[str, nn.Parameter]
    optimiser: torch.optim.Optimizer
    train: TokenRows
    test: TokenRows
    progress: Progress
    trackers: Sequence[Tracker] = ()
    ranks: Ranks = Ranks()
    status_at: float = 0.0


@dataclass(frozen=True)
class Stepped:
    """One optimiser step's figures."""

    step: int
    tokens: int
    labelled: int
    lr: float
    loss_and_norm: torch.Tensor
    """Its sum of losses and its gradient norm, float32 [2], perhaps not computed yet."""


@dataclass
class Meter:
    """Steps that are not read yet, and how long steps took: from one reading to the next, and nothing else."""

    unread: list[Stepped] = field(default_factory=list)
    known: dict[str, float] = field(default_factory=dict)
    """Figures of the last step that was read."""
    tokens: int = 0
    """Since the last log line, of this process."""
    seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def read(self, at: Position) -> None:
        """Wait for the steps so far and take their figures, in one transfer.

        Raises:
            TrainError: a loss or a gradient is not finite.
        """
        if not self.unread:
            return
        pairs = torch.stack([stepped.loss_and_norm for stepped in self.unread]).tolist()
        seconds = time.perf_counter() - self.started
        at.seconds, self.seconds = at.seconds + seconds, self.seconds + seconds
        for stepped, (total, norm) in zip(self.unread, pairs, strict=True):
            loss = total / stepped.labelled
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise TrainError(
                    f"step {stepped.step}: loss {loss}, gradient norm {norm}: training has diverged",
                    "lower training.learning_rate or raise warmup_steps, then start a new run",
                )
            at.loss_sum, at.loss_count = at.loss_sum + loss, at.loss_count + 1
            self.tokens += stepped.tokens
            self.known = {"loss": loss, "lr": stepped.lr, "grad_norm": norm}
        self.known["tokens_per_s"] = self.tokens / self.seconds
        self.unread.clear()
        self.start()

    def line(self, at: Position) -> dict[str, float]:
        """The figures of a log line: the mean loss and the speed since the last one."""
        at.train_loss = at.loss_sum / max(1, at.loss_count)
        found = self.known | {"loss": at.train_loss, "tokens_per_s": round(self.known["tokens_per_s"], 1)}
        at.loss_sum, at.loss_count, self.tokens, self.seconds = 0.0, 0, 0, 0.0
        return found

    def start(self) -> None:
        """Begin to count time: what was done since the last reading was no step."""
        self.started = time.perf_counter()


def train_steps(job: TrainingJob, at: Position, stop: StopSignal) -> Position:
    """From `at` to the last step, with log lines, held-out losses and checkpoints on the way.

    Raises:
        TrainError: the loss or a gradient is not finite.
        StoppedError: a signal came; a checkpoint of that moment is saved.
        MachineError: the disk is full.
    """
    training, steps, meter = job.recipe.training, job.plan.steps, Meter()
    while at.step < steps:
        if asked := job.ranks.largest(stop.signal):
            meter.read(at)
            raise _stopped(job, at, asked)
        meter.unread.append(one_step(job, at))
        last = at.step == steps
        logs = last or at.step % training.logging_steps == 0
        evaluates = len(job.test) > 0 and (last or at.step % training.eval_steps == 0)
        saves = last or at.step % training.save_steps == 0
        if logs or evaluates or saves or reading_is_free(job.model.device):
            meter.read(at)
        job.progress.advance(at.step, steps, **meter.known)
        record = meter.line(at) if logs else {}
        if evaluates:
            record["eval_loss"] = at.eval_loss = evaluate(job)
        if record:
            log(job, at.step, record | {"memory_bytes": memory_used(job.plan.device)})
        if saves:
            save(job, at)
        _tell(job, at, now=time.monotonic(), force=bool(record))
        if not meter.unread:
            meter.start()
    return at


def reading_is_free(device: torch.device) -> bool:
    """True where a step's figures are there as soon as the step returns."""
    return device.type == "cpu"


def one_step(job: TrainingJob, at: Position) -> Stepped:
    """One optimiser step on exactly the recipe's rows, of which each rank takes its share.

    The loss is the mean over all labelled tokens of the step, however the rows are split into passes and ranks.
    Nothing in here waits for a GPU.
    """
    training, step = job.recipe.training, at.step
    rows = [job.train[int(i)] for i in step_rows(len(job.train), job.plan.rows_per_step, step, training.seed)]
    total = accumulate(job, rows, step)
    norm = clip(job.masters.values(), training.max_grad_norm)
    lr = learning_rate(training, step, job.plan.steps)
    for group in job.optimiser.param_groups:
        group["lr"] = lr
    job.optimiser.step()
    job.optimiser.zero_grad(set_to_none=True)
    tokens = sum(len(ids) for ids, _ in rows)
    at.step, at.tokens = step + 1, at.tokens + tokens
    return Stepped(at.step, tokens, _divisor(rows), lr, torch.stack((total, norm.to(total.dtype))))


def accumulate(job: TrainingJob, rows: Sequence[Tokens], step: int) -> torch.Tensor:
    """Put the gradients of the rows' mean loss into the masters, a token budget at a time; returns the summed loss."""
    training, ranks = job.recipe.training, job.ranks
    scale = FP16_LOSS_SCALE if job.plan.compute_dtype == "float16" else 1.0
    total, labelled = torch.zeros((), device=job.model.device), _divisor(rows)
    for index, batch in enumerate(batches(_share(job, rows), job.plan.tokens_per_batch, job.model.device)):
        number, noise = index * ranks.world + ranks.rank, training.neftune_noise_alpha or 0.0
        dropout = Dropout(job.recipe.lora.lora_dropout, training.seed, step, number, noise)
        loss = job.model.loss(batch, dropout)
        (loss * (scale / labelled)).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    _add_up(job, total)
    if scale != 1.0:
        for master in job.masters.values():
            if master.grad is not None:
                master.grad.div_(scale)
    return total


def _add_up(job: TrainingJob, total: torch.Tensor) -> None:
    """Gradients and loss of all ranks together. One that had no rows adds zeros."""
    if job.ranks.world == 1:
        return
    gradients = []
    for master in job.masters.values():
        if master.grad is None:
            master.grad = torch.zeros_like(master)
        gradients.append(master.grad)
    job.ranks.sum([*gradients, total])


@torch.no_grad()
def evaluate(job: TrainingJob) -> float:
    """Mean loss over every labelled token of the held-out rows, without dropout."""
    rows = [job.test[i] for i in range(len(job.test))]
    total = torch.zeros((), device=job.model.device)
    for batch in batches(_share(job, rows), job.plan.tokens_per_batch, job.model.device):
        total += job.model.loss(batch)
    job.ranks.sum([total])
    return float(total) / _divisor(rows)


def _share(job: TrainingJob, rows: Sequence[Tokens]) -> list[Tokens]:
    """The rows that this rank takes: each row is one rank's, and ranks have nearly the same number of tokens."""
    return [rows[i] for i in share([len(ids) for ids, _ in rows], job.ranks.world)[job.ranks.rank]]


def _divisor(rows: Sequence[Tokens]) -> int:
    return max(1, count_labelled(rows))


def log(job: TrainingJob, step: int, values: dict[str, float]) -> None:
    """One line of metrics.jsonl, and the same to every tracker."""
    if not job.ranks.leads:
        return
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


def save(job: TrainingJob, at: Position) -> None:
    """A checkpoint of this moment."""
    folder, limit = job.run.path / "checkpoints", job.recipe.training.save_total_limit
    job.ranks.lead(lambda: checkpoint.save(folder, job.masters, job.optimiser, at, limit))


def _stopped(job: TrainingJob, at: Position, asked: int) -> StoppedError:
    save(job, at)
    _tell(job, at, now=time.monotonic(), force=True)
    return StoppedError(
        f"stopped by {signal.Signals(asked).name} after step {at.step} of {job.plan.steps}; a checkpoint is saved",
        f"puna train RECIPE --resume {job.run.name}",
    )


def _tell(job: TrainingJob, at: Position, now: float, force: bool) -> None:
    if job.ranks.leads and (force or now - job.status_at >= STATUS_S):
        job.status_at = now
        job.run.write_status(step=at.step)
