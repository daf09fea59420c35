"""`puna train`, `merge` and `publish`: from a recipe to a named model; `puna ship`: to an endpoint in one go."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from puna.cli import output
from puna.cli.options import AsJson, RunName
from puna.errors import PunaError
from puna.home import Home


def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe's YAML file.", show_default=False)],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show rows, tokens, memory and time; train nothing.")
    ] = False,
    resume: Annotated[str | None, typer.Option(help="Continue this interrupted run.", show_default=False)] = None,
    json: AsJson = False,
) -> None:
    """Fine-tune as a recipe says: QLoRA, with a progress bar, resumable."""
    from puna import pipeline
    from puna.config import recipe as recipes
    from puna.train.ranks import Ranks

    home, ranks = Home.default(), Ranks.here()  # torchrun starts several of us: one speaks and writes
    watch = output.ProgressDisplay(quiet=json or not ranks.leads)
    prepared = ranks.lead(lambda: pipeline.prepare(recipes.load(recipe), home, watch))
    if dry_run and ranks.leads:
        from puna.cli.dry_run import show_plan

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
    from puna import pipeline
    from puna.errors import MergeError, UsageError

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
        reasons = "; ".join(merged.verification.reasons)
        raise MergeError(
            f"the merged model differs from the trained one: {reasons}", "puna publish --force takes it all the same"
        )
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
    from puna import pipeline
    from puna.errors import UsageError

    if adapter and hub:
        raise UsageError("--hub pushes whole models, --adapter publishes none", "leave one of them out")
    aliases = tuple(dict.fromkeys(("latest", *(alias or ()))))
    watch = output.ProgressDisplay(quiet=json)
    if adapter:
        version = pipeline.publish_adapter(run, name, Home.default(), aliases=aliases, progress=watch)
    else:
        version = pipeline.publish(run, name, Home.default(), force=force, aliases=aliases)
    url = pipeline.push(version, hub, watch, private) if hub else None
    watch.close()
    if json:
        output.data({"name": version.name, "version": version.version, "digest": version.digest, "hub": url})
        return
    output.line(f"{version.name} version {version.version} ({', '.join(version.aliases)}) is {version.digest[:16]}")
    if url:
        output.line(f"pushed to {url}")
    output.line(f"next: puna init {version.name} my-app")


def ship(
    recipe: Annotated[Path, typer.Argument(help="The recipe's YAML file.", show_default=False)],
    folder: Annotated[Path | None, typer.Option(help="Where the app's four files go; ./NAME when not given.")] = None,
    json: AsJson = False,
) -> None:
    """Train, merge, verify, publish, init, build and deploy; `puna up` is started when it is not running."""
    from puna import pipeline
    from puna.cli.address import show_endpoint
    from puna.cli.running import ensure_up
    from puna.client import Client
    from puna.config import recipe as recipes

    home, read, watch = Home.default(), recipes.load(recipe), output.ProgressDisplay(quiet=json)
    ensure_up(home)
    with Client(home=home) as client:
        shipped = pipeline.ship(read, home, client, folder or Path(read.name), watch)
        watch.close()
        if not json:
            output.line(f"run {shipped.run} became {shipped.model.name} version {shipped.model.version}")
        show_endpoint(client, shipped.endpoint, json)
