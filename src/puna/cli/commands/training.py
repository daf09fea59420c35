"""`puna data`, `train`, `merge`, `publish` and `ship`: from a recipe to a model or an endpoint; its runs and models."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from puna import pipeline
from puna.cli import output
from puna.cli.options import AsJson, RunName
from puna.config import recipe as recipes
from puna.errors import MergeError, PunaError, UsageError
from puna.home import Home
from puna.publish.hub import push
from puna.publish.registry import Registry
from puna.train.ranks import Ranks
from puna.train.reporting import record
from puna.train.reporting.record import compare, duration

if TYPE_CHECKING:
    from puna.artifacts import Dataset
    from puna.tokens import Histogram, PreviewToken
    from puna.train.planning.plan import TrainingPlan


data_app = typer.Typer(no_args_is_help=True, add_completion=False)
RecipeFile = Annotated[Path, typer.Argument(help="The recipe's YAML file.", show_default=False)]


@data_app.command()
def prepare(recipe: RecipeFile, json: AsJson = False) -> None:
    """Load, sample, split and tokenise; kept, so that training starts at once."""
    watch = output.ProgressDisplay(quiet=json)
    prepared = pipeline.prepare(recipes.load(recipe), Home.default(), watch)
    watch.close()
    figures = dict(prepared.dataset.manifest.metrics)
    if json:
        output.data({"dataset": str(prepared.dataset.path), **figures})
    else:
        output.pairs({"dataset": prepared.dataset.path, **figures})


@data_app.command()
def preview(
    recipe: RecipeFile,
    row: Annotated[int, typer.Option(help="Which row.")] = 0,
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    json: AsJson = False,
) -> None:
    """Show one row as the model sees it: learnt tokens are marked, the others only read."""
    from puna.tokens import preview as tokens_of

    watch = output.ProgressDisplay(quiet=json)
    prepared = pipeline.prepare(recipes.load(recipe), Home.default(), watch)
    watch.close()
    if split not in ("train", "test"):
        raise UsageError(f"--split is {split!r}", "train or test")
    tokens = tokens_of(prepared.dataset, row, split)  # type: ignore[arg-type]
    if json:
        output.data([{"text": t.text, "id": t.token_id, "learnt": t.label} for t in tokens])
        return
    output.tokens((t.text, t.label) for t in tokens)
    learnt = sum(t.label for t in tokens)
    output.line(f"\nrow {row} of {split}: {len(tokens)} tokens, {learnt} learnt (green, or in [brackets])")


SAID_ABOVE = ("rows", "tokens", "time")
"""Lines of the plan's description that the sections on data and time have already."""


def show_plan(recipe: recipes.Recipe, recipe_file: Path, dataset: Dataset, plan: TrainingPlan, as_json: bool) -> None:
    """The dataset, the plan and one row, for a person or as data; nothing is trained."""
    from puna.tokens import length_histogram, preview
    from puna.train.planning.plan import describe

    figures, row, lengths = dataset.manifest.metrics, preview(dataset), length_histogram(dataset)
    if as_json:
        figures = {**figures, "length_histogram": lengths.__dict__}
        learnt = [{"text": t.text, "id": t.token_id, "learnt": t.label} for t in row]
        output.data({"data": figures, "plan": plan.as_dict(), "preview": learnt})
        return
    output.line(f"{recipe.name}: {recipe.base} learns from {recipe.data.dataset}; this is the plan, nothing is trained")
    _heading("Data")
    output.pairs(dict(data_lines(figures, recipe.data.max_length)))
    output.line("\ntokens a row, and how many rows have them")
    output.bars(bars(lengths))
    _heading("One row: what is learnt is " + ("green" if sys.stdout.isatty() else "in [brackets]"))
    _plan_row(row)
    _heading("Plan")
    output.pairs({name: text for name, text in describe(plan) if name not in SAID_ABOVE})
    output.line()
    for reason in plan.reasons:
        output.line(f"- {reason}")
    _heading("Time")
    output.line(time_line(plan))
    output.line(f"\nnext: puna train {shlex.quote(str(recipe_file))}")


def data_lines(figures: Mapping[str, Any], max_length: int) -> list[tuple[str, str]]:
    """A dataset's figures as (name, text) lines."""
    lengths, cut = figures["lengths"], figures.get("truncated_rows", 0)
    share = f"{cut:,} rows ({figures.get('truncated_share', 0.0):.1%})" if cut else "no row"
    lines = [
        ("rows", f"{figures['rows_train']:,} to learn from, {figures['rows_test']:,} held out"),
        ("tokens", f"{figures['tokens_train']:,} an epoch, {figures['tokens_test']:,} held out"),
        ("learnt", f"{figures['labelled_share']:.0%} of the tokens; the others are only read"),
        ("row length", f"{lengths['p50']:,} tokens at 50%, {lengths['p90']:,} at 90%, {lengths['p99']:,} at 99%, "
                       f"{lengths['max']:,} at most"),
        ("cut", f"{share} at {max_length:,} tokens"),
    ]  # fmt: skip
    if left_out := figures.get("unlearnable_rows", 0):
        lines.append(("left out", f"{left_out:,} rows: their first reply begins after the cut"))
    if skipped := figures.get("skipped_rows", 0):
        lines.append(("skipped", f"{skipped:,} malformed rows"))
    return lines


def bars(lengths: Histogram) -> list[tuple[str, float]]:
    """Ranges of row lengths and their rows, from the first that has any."""
    width = lengths.width
    first = next((i for i, count in enumerate(lengths.rows) if count), 0)
    return [(f"{i * width + 1:,}-{(i + 1) * width:,}", n) for i, n in enumerate(lengths.rows) if i >= first]


def time_line(plan: TrainingPlan) -> str:
    """How long, for how many steps, at what speed."""
    steps = f"{plan.steps:,} steps ({plan.epochs:.2f} epochs) at {plan.tokens_per_s:,.0f} tokens/s"
    return f"about {duration(plan.seconds)}: {steps}, held-out rows included; the run tells its own"


def _plan_row(row: Sequence[PreviewToken]) -> None:
    from puna.tokens import excerpt

    start, end = excerpt(row)
    if start:
        output.line(f"... {start:,} tokens before")
    shown = [(token.text, token.label) for token in row[start:end]]
    output.tokens([*shown[:-1], (shown[-1][0].rstrip(), shown[-1][1])])
    if end < len(row):
        output.line(f"... {len(row) - end:,} tokens more")


def _heading(text: str) -> None:
    output.line(f"\n{text}", style="bold")


def train(
    recipe: RecipeFile,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show rows, tokens, memory and time; train nothing.")
    ] = False,
    resume: Annotated[str | None, typer.Option(help="Continue this interrupted run.", show_default=False)] = None,
    json: AsJson = False,
) -> None:
    """Fine-tune as a recipe says: QLoRA, with a progress bar, resumable."""
    home, ranks = Home.default(), Ranks.here()  # torchrun starts several of us: one speaks and writes
    watch = output.ProgressDisplay(quiet=json or not ranks.leads)
    prepared = ranks.lead(lambda: pipeline.prepare(recipes.load(recipe), home, watch))
    if dry_run and ranks.leads:
        watch.close()
        show_plan(prepared.recipe, recipe, prepared.dataset, pipeline.plan(prepared, ranks.world), json)
    if dry_run:
        return
    try:
        name = pipeline.train(prepared, home, watch, resume)
    except PunaError as error:
        error.hint = error.hint.replace("RECIPE", shlex.quote(str(recipe)))  # a line to paste
        raise
    finally:
        watch.close()
    if not ranks.leads:
        return
    run = pipeline.find_run(home, name)
    if json:
        output.data({"run": name, "path": str(run.path), "metrics": run.last})
        return
    output.line(f"run {name} has finished: {run.path}")
    output.line(f"report: {run.path / 'report.html'}")
    output.line(f"next: puna merge {name}")


def merge(
    run: RunName,
    base: Annotated[
        str | None, typer.Option(help="original, dequantised or auto; the recipe's when not given.", show_default=False)
    ] = None,
    json: AsJson = False,
) -> None:
    """Adapter and base become one model, verified against the trained one; exits non-zero when it differs."""
    if base not in (None, "original", "dequantised", "auto"):
        raise UsageError(f"--base is {base!r}", "one of original, dequantised, auto")
    watch = output.ProgressDisplay(quiet=json)
    merged = pipeline.merge(run, Home.default(), watch, base)
    watch.close()
    figures = merged.verification.__dict__
    if json:
        output.data({"model": merged.model.path.name, "why": merged.why, "verification": figures})
    else:
        output.pairs({"model": merged.model.path, "base": merged.why, **figures})
    if not merged.verification.passed:
        what = f"the merged model differs from the trained one: {'; '.join(merged.verification.reasons)}"
        raise MergeError(what, "puna publish --force takes it all the same")
    if not json:
        output.line(f"next: puna publish {run} owner/name")


def publish(
    run: RunName,
    name: Annotated[
        str | None, typer.Argument(help="owner/name; the recipe's when not given.", show_default=False)
    ] = None,
    alias: Annotated[list[str] | None, typer.Option(help="An alias beside `latest`; may be repeated.")] = None,
    hub: Annotated[
        str | None, typer.Option(help="Also push to this owner/name on the Hugging Face Hub.", show_default=False)
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the hub repository private.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Publish a model that failed verification.")] = False,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Publish the adapter itself, unmerged: many share one engine.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Give a merged model, or an adapter, a name and a version."""
    if adapter and hub:
        raise UsageError("--hub pushes whole models, --adapter publishes none", "leave one of them out")
    aliases = tuple(dict.fromkeys(("latest", *(alias or ()))))
    watch = output.ProgressDisplay(quiet=json)
    if adapter:
        version = pipeline.publish_adapter(run, name, Home.default(), aliases=aliases, progress=watch)
    else:
        version = pipeline.publish(run, name, Home.default(), force=force, aliases=aliases)
    url = push(version, hub, private=private, progress=watch) if hub else None
    watch.close()
    if json:
        output.data({"name": version.name, "version": version.version, "digest": version.digest, "hub": url})
        return
    output.line(f"{version.name} version {version.version} ({', '.join(version.aliases)}) is {version.digest[:16]}")
    if url:
        output.line(f"pushed to {url}")
    output.line(f"next: puna init {version.name} my-app")


def ship(
    recipe: RecipeFile,
    folder: Annotated[Path | None, typer.Option(help="Where the app's four files go; ./NAME when not given.")] = None,
    json: AsJson = False,
) -> None:
    """Train, merge, verify, publish, init, build and deploy; `puna up` is started when it is not running."""
    from puna.cli.credentials import show_endpoint
    from puna.cli.running import ensure_up
    from puna.client import Client

    home, read, watch = Home.default(), recipes.load(recipe), output.ProgressDisplay(quiet=json)
    ensure_up(home)
    with Client(home=home) as client:
        shipped = pipeline.ship(read, home, client, folder or Path(read.name), watch)
        watch.close()
        if not json:
            output.line(f"run {shipped.run} became {shipped.model.name} version {shipped.model.version}")
        show_endpoint(client, shipped.endpoint, json)


run_app = typer.Typer(no_args_is_help=True, add_completion=False)


@run_app.command("list")
def runs(json: AsJson = False) -> None:
    """List training runs, newest last."""
    found = [_run_row(run) for run in record.list_runs(Home.default())]
    headings = ("run", "state", "step", "loss", "held-out loss", "tokens/s", "time")
    rows = [
        (r["name"], r["state"], f"{r['step']:,}/{r['steps']:,}", _loss(r.get("loss")), _loss(r.get("eval_loss")),
         f"{r['tokens_per_s']:,.0f}" if r.get("tokens_per_s") else "", _time(r))
        for r in found
    ]  # fmt: skip
    output.listing(found, json, headings, rows, empty="no runs yet: puna train RECIPE")


@run_app.command("show")
def show_run(
    run: RunName,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write loss.png and report.html again.")] = True,
    json: AsJson = False,
) -> None:
    """Draw a run's loss curve here, and write its PNG and HTML report."""
    found = pipeline.find_run(Home.default(), run)
    metrics = found.metrics()
    compared = [{**c.__dict__, "error": c.error} for c in compare(found)]
    if json:
        output.data({**_run_row(found), "plan_against_measured": compared, "recipe": found.recipe, "metrics": metrics})
        return
    output.pairs(dict(_lines(found, metrics)))
    for key, title in (("loss", "training loss"), ("eval_loss", "held-out loss")):
        if points := _points(metrics, key):
            output.line(f"\n{title} over steps")
            output.curve(points, height=9)
    output.line()
    if report and metrics:
        from puna.train.reporting.report import write_report

        write_report(found.path)
        output.line(f"report: {found.path / 'report.html'}")
    if following := _next(found):
        output.line(f"next: {following}")


def _run_row(run: record.Run) -> dict[str, Any]:
    status = run.status
    told = {"name": run.name, "state": status.state, "steps": status.steps, **run.last, "step": status.step}
    told |= {"started": status.started, "ended": status.ended, "error": status.error}
    return told | {"seconds": run.seconds(), "seconds_left": run.seconds_left()}


def _lines(run: record.Run, metrics: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    row = _run_row(run)
    done = f" ({row['step'] / row['steps']:.0%})" if row["steps"] else ""
    lines = [("run", row["name"]), ("state", row["state"] + (f": {row['error']}" if row["error"] else ""))]
    lines += [("step", f"{row['step']:,} of {row['steps']:,}{done}")]
    if time := _time(row):
        lines.append(("time", f"{time}, began {row['started'][:16].replace('T', ' ')} UTC"))
    for key, name in (("loss", "training loss"), ("eval_loss", "held-out loss")):
        if points := _points(metrics, key):
            (first, was), (_, now) = points[0], points[-1]
            lines.append((name, f"{now:.4f}" + (f", from {was:.4f} at step {first}" if len(points) > 1 else "")))
    if row.get("lr") is not None:
        lines.append(("learning rate", f"{row['lr']:.3g}"))
    if row.get("grad_norm") is not None:
        lines.append(("gradient norm", f"{row['grad_norm']:.3g}"))
    for c in compare(run):
        digits = ",.0f" if c.measured >= 1000 else "#.3g"
        held = f"planned {c.planned:{digits}}, {c.error:+.0%}" if abs(c.error) >= 0.005 else "as planned"
        lines.append((c.name, f"{c.measured:{digits}} {c.unit} ({held})"))
    return lines


def _time(row: dict[str, Any]) -> str:
    if row["seconds_left"] is not None:
        return f"{duration(row['seconds_left'])} left"
    if row["seconds"] is None:
        return ""
    return f"{'runs for' if row['state'] == 'running' else 'took'} {duration(row['seconds'])}"


def _next(run: record.Run) -> str:
    state = run.state
    if state == "finished":
        return f"puna merge {run.name}"
    if state == "running":
        return f"puna run show {run.name}"
    return f"puna train RECIPE --resume {run.name}" if run.checkpoints else ""


def _points(metrics: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(m["step"], m[key]) for m in metrics if m.get(key) is not None]


def _loss(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else ""


model_app = typer.Typer(no_args_is_help=True, add_completion=False)
Ref = Annotated[str, typer.Argument(help="owner/name, owner/name:version or owner/name@alias.", show_default=False)]


@model_app.command("list")
def list_models(json: AsJson = False) -> None:
    """List published models and their versions."""
    found = Registry(Home.default()).list()
    rows = [(v.name, v.version, v.kind, ", ".join(v.aliases), v.digest[:16], v.created[:19]) for v in found]
    headings = ("model", "version", "kind", "aliases", "digest", "published")
    plain = [{**v.__dict__, "path": str(v.path)} for v in found]
    output.listing(plain, json, headings, rows, empty="no models yet: puna publish RUN owner/name")


@model_app.command("show")
def show_model(ref: Ref, json: AsJson = False) -> None:
    """Show one version: where it is and what it was made from."""
    version = Registry(Home.default()).resolve(ref)
    values = {**version.__dict__, "path": str(version.path)}
    output.data(values) if json else output.pairs(values)


@model_app.command()
def alias(ref: Ref, name: Annotated[str, typer.Argument(help="The alias, e.g. champion.")]) -> None:
    """Let an alias point to a version."""
    Registry(Home.default()).alias(ref, name)
    output.line(f"{name} is now {ref}")


@model_app.command()
def unalias(ref: Annotated[str, typer.Argument(help="owner/name@alias.", show_default=False)]) -> None:
    """Remove an alias; the version that it meant stays."""
    Registry(Home.default()).unalias(ref)
    output.line(f"{ref} is removed")


@model_app.command("delete")
def delete_version(
    ref: Ref, force: Annotated[bool, typer.Option("--force", help="Even when an alias points to it.")] = False
) -> None:
    """Delete a version."""
    Registry(Home.default()).delete(ref, force=force)
    output.line(f"{ref} is deleted")
