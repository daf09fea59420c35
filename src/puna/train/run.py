"""One QLoRA run, from a recipe to an adapter: read `train` from top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from puna.artifacts import Adapter, Dataset, write_json, write_text
from puna.config.recipe import Recipe
from puna.errors import ConflictError, MachineError
from puna.progress import Progress, Silent
from puna.tokens import TokenRows
from puna.train import checkpoint, trained
from puna.train.checkpoint import Position
from puna.train.device import hold_to
from puna.train.loop import TrainingJob, evaluate, forget_after, log, train_steps
from puna.train.model.llama import Llama
from puna.train.model.loading import Choices, add_fresh_chat_rows, add_fresh_lora, load_llama, write_adapter
from puna.train.optimiser import make_optimiser
from puna.train.planning.plan import TrainingPlan
from puna.train.planning.plan import plan as make_plan
from puna.train.ranks import Ranks
from puna.train.reporting.record import Run
from puna.train.reporting.report import write_report
from puna.train.reporting.trackers import check_trackers, tracking
from puna.train.stopping import StoppedError, StopSignal
from puna.train.trained import TrainedModel


def train(
    recipe: Recipe,
    base_dir: Path,
    dataset: Dataset,
    run_dir: Path,
    progress: Progress = Silent(),
    *,
    resume: bool = False,
    device: str | None = None,
) -> Adapter:
    """Train an adapter; everything that is written down lies in `run_dir`.

    With `resume`, an interrupted run goes on from its last checkpoint, bit by bit as if it had never
    stopped; a finished one returns its adapter. Under torchrun, all processes train it together, and rank 0 writes.

    Raises:
        TrainError: the plan does not fit, the base cannot be trained, or training diverged.
        StoppedError: SIGTERM or SIGINT came; a checkpoint is saved.
        ConflictError: `run_dir` holds another run, or this one and `resume` is not set.
        MachineError: no such device, or the disk is full.
    """
    run, ranks = Run(run_dir), Ranks.here()
    progress = progress if ranks.leads else Silent()
    if resume and (finished := run.adapter) is not None:
        ranks.lead(lambda: _finish_again(run))
        return finished
    check_trackers(recipe.training.report_to)
    ranks.lead(lambda: _claim(run, recipe, dataset, base_dir, resume))
    told = recipe.training.report_to if ranks.leads else ()
    with _recording(run, ranks), tracking(told, run_dir, recipe.as_dict()) as trackers, StopSignal() as stop:
        # ---------------------------------------------------------------- plan
        progress.stage("plan")
        plan = ranks.lead(lambda: _plan(run, recipe, base_dir, dataset, resume, (device, ranks.world)))
        plan = dataclasses.replace(plan, device=ranks.device(plan.device))
        for reason in plan.reasons:
            progress.note(reason)

        # --------------------------------------------------------------- model
        progress.stage("load base")
        hold_to(plan.device, plan.memory_limit_bytes)
        with _same_bits(plan):
            job = _job(run, plan, recipe, base_dir, dataset, progress, ranks)
            job.trackers = trackers
            at = _position(job, dataset, resume)

            # ---------------------------------------------------------- steps
            progress.stage("train")
            at = train_steps(job, at, stop)

            # --------------------------------------------------------- adapter
            progress.stage("write adapter")
            ranks.lead(lambda: _ask(job, dataset, "after"))
            adapter = ranks.lead(lambda: write_adapter(job.model, recipe, dataset, run_dir, _metrics(at, plan)))

    # ------------------------------------------------------------------- report
    progress.stage("report")
    ranks.lead(lambda: write_report(run_dir))
    ranks.leave()
    return adapter


def _finish_again(run: Run) -> None:
    run.end("finished")
    write_report(run.path)


def _claim(run: Run, recipe: Recipe, dataset: Dataset, base_dir: Path, resume: bool) -> None:
    """Make the folder this run's; refuse one that another recipe or dataset began."""
    run.path.mkdir(parents=True, exist_ok=True)
    if run.status.state == "running" and run.status.pid != os.getpid():
        raise ConflictError(f"run {run.name} is being trained by process {run.status.pid}", "wait for it, or stop it")
    if run.checkpoints or run.adapter is not None:
        if not resume:
            raise ConflictError(f"run {run.name} has begun already", f"puna train RECIPE --resume {run.name}")
        if run.recipe != recipe.as_dict():
            raise ConflictError(f"run {run.name} was begun with another recipe", "start a new run")
        if run.dataset != dataset.digest:
            raise ConflictError(f"run {run.name} was begun with another dataset", "start a new run")
    run.write_recipe(recipe)
    write_text(run.path / "dataset", dataset.digest + "\n")
    if not run.base:
        write_text(run.path / "base", f"{base_dir}\n")


@contextlib.contextmanager
def _recording(run: Run, ranks: Ranks) -> Iterator[None]:
    """Write down how the run ends, whatever ends it."""
    try:
        with _recorded(run) if ranks.leads else contextlib.nullcontext():
            yield
    except StoppedError:
        ranks.barrier()  # torchrun kills the others when one has ended: not before rank 0 has written
        raise


@contextlib.contextmanager
def _recorded(run: Run) -> Iterator[None]:
    try:
        yield
    except (StoppedError, KeyboardInterrupt) as error:
        run.end("interrupted", str(error))
        raise
    except BaseException as error:  # the caller sees it too: it is raised again
        with contextlib.suppress(OSError):  # where the disk is full, the error counts more than the status
            run.end("failed", str(error) or type(error).__name__)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            hint = f"free some space, then puna train RECIPE --resume {run.name}"
            raise MachineError(f"no space left on the disk of {run.path}", hint) from error
        raise
    run.end("finished")


def _plan(
    run: Run, recipe: Recipe, base_dir: Path, dataset: Dataset, resume: bool, place: tuple[str | None, int]
) -> TrainingPlan:
    device, world = place
    # A resumed run keeps its plan: another token budget would split the steps, and round the sums, differently.
    kept = run.plan
    if resume and run.checkpoints and kept and device in (None, kept["device"]):
        plan = TrainingPlan.from_dict(kept)
    else:
        plan = make_plan(recipe, base_dir, dataset, device, world)
        write_json(run.path / "plan.json", plan.as_dict())
    run.begin(plan.steps)
    return plan


def _job(
    run: Run, plan: TrainingPlan, recipe: Recipe, base_dir: Path, dataset: Dataset, progress: Progress, ranks: Ranks
) -> TrainingJob:
    model = build_model(plan, recipe, base_dir, dataset, progress)
    masters = model.named_masters()
    return TrainingJob(
        recipe=recipe,
        plan=plan,
        run=run,
        model=model,
        masters=masters,
        optimiser=make_optimiser(masters.values(), recipe.training, plan.device),
        train=TokenRows.load(dataset, "train"),
        test=TokenRows.load(dataset, "test"),
        progress=progress,
        ranks=ranks,
    )


def build_model(plan: TrainingPlan, recipe: Recipe, base_dir: Path, dataset: Dataset, progress: Progress) -> Llama:
    """The base in the form that the plan chose, with fresh LoRA pairs and chat rows."""
    quantization = recipe.quantization
    nf4, double = quantization.load_in_4bit, quantization.bnb_4bit_use_double_quant
    dtype: torch.dtype = getattr(torch, plan.compute_dtype)
    resident = plan.resident_weights and plan.precision != "fp8"  # fp8 makes its own copies, from the codes
    model = load_llama(base_dir, Choices(plan.device, dtype, nf4, double, resident), progress)
    for product in model.products:
        product.is_fp8 = plan.precision == "fp8"
    model.recompute_layers = plan.recompute_layers
    add_fresh_lora(model, recipe)
    if recipe.lora.train_chat_tokens:
        started = add_fresh_chat_rows(model, dataset.manifest.metrics.get("chat_token_ids", {}))
        if started:
            progress.note(f"the base never trained {', '.join(started)}: their rows start at the mean of trained ones")
    return model


def _position(job: TrainingJob, dataset: Dataset, resume: bool) -> Position:
    """Step 0 with its held-out loss and replies, or the last checkpoint."""
    found = job.ranks.broadcast(job.run.checkpoints)
    if resume and found:
        at = checkpoint.load(found[-1], job.masters, job.optimiser)
        job.ranks.lead(lambda: forget_after(job.run, at.step))
        job.progress.note(f"resumed from step {at.step}")
        return at
    at = Position()
    job.ranks.lead(lambda: forget_after(job.run, -1))
    job.ranks.lead(lambda: _ask(job, dataset, "before"))
    if len(job.test):
        at.eval_loss_before = at.eval_loss = evaluate(job)
        log(job, 0, {"eval_loss": at.eval_loss})
    return at


def _ask(job: TrainingJob, dataset: Dataset, key: str) -> None:
    trained.write_samples(job.run.path, dataset, key, trained.ask(TrainedModel(job.model), dataset))


def _metrics(at: Position, plan: TrainingPlan) -> dict[str, Any]:
    return {
        "eval_loss_before": at.eval_loss_before,
        "eval_loss": at.eval_loss,
        "train_loss": at.train_loss,
        "steps": at.step,
        "tokens": at.tokens,
        "seconds": round(at.seconds, 3),
        "tokens_per_s": round(at.tokens / at.seconds, 1) if at.seconds else 0.0,
        "compute_dtype": plan.compute_dtype,
        "device": plan.device_name,
    }


@contextlib.contextmanager
def _same_bits(plan: TrainingPlan) -> Iterator[None]:
    """Ask for kernels and threads that give the same bits each time: without them, resuming is not exact."""
    settings: Any = torch.utils.deterministic
    threads, fill = torch.get_num_threads(), settings.fill_uninitialized_memory
    before = torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(plan.threads)
    if plan.device.startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        settings.fill_uninitialized_memory = False  # it would write NaN into every fresh tensor: slow
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(before)
        settings.fill_uninitialized_memory = fill
