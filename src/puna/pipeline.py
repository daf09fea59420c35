"""The whole story, step by step: data, train, merge, publish, init, deploy; each step can be run alone."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.artifacts import Adapter, Dataset, Model
from puna.errors import ConflictError, NotFoundError, PublishError
from puna.home import Home
from puna.progress import Progress, Silent
from puna.publish import resolve
from puna.publish.registry import ModelVersion, Registry
from puna.spec import recipe as recipes
from puna.spec.recipe import Recipe
from puna.train import record

if TYPE_CHECKING:
    from puna.client import Client
    from puna.merge.verify import Verification
    from puna.train.plan import Plan


@dataclass(frozen=True)
class Prepared:
    """What training needs: a recipe, its base on this disk and its tokenised rows."""

    recipe: Recipe
    base: resolve.Base
    dataset: Dataset


@dataclass(frozen=True)
class Merged:
    """A model, how it compares with the trained one, and why this base was chosen."""

    model: Model
    verification: Verification
    why: str


@dataclass(frozen=True)
class Shipped:
    """What the whole story made."""

    run: str
    model: ModelVersion
    endpoint: dict[str, Any]


def prepare(recipe: Recipe, home: Home, progress: Progress = Silent()) -> Prepared:
    """Find the base and tokenise the data; both are kept, so that the second time costs nothing."""
    from puna.data.prepare import prepare as tokenise

    base = resolve.resolve_base(recipe.base, recipe.base_revision, home, progress)
    return Prepared(recipe, base, tokenise(recipe, base.path, home, progress))


def plan(prepared: Prepared) -> Plan:
    """What training will take, before weights are loaded."""
    from puna.train.plan import plan as plan_run

    return plan_run(prepared.recipe, prepared.base.path, prepared.dataset)


def train(prepared: Prepared, home: Home, progress: Progress = Silent(), resume: str | None = None) -> str:
    """Train; returns the run's name. `resume` names an interrupted run of the same recipe.

    Raises:
        ConflictError: the run to resume was made by another recipe, or has ended.
    """
    from puna.train.run import train as run

    if resume is None:
        run_dir = record.new_run_dir(home, prepared.recipe)
        (run_dir / "base").write_text(prepared.base.ref + "\n")
    else:
        run_dir = record.find_run(home, resume).path
        before = recipes.parse(record.find_run(home, resume).recipe)
        if before.digest != prepared.recipe.digest:
            raise ConflictError(f"run {resume} was made by another recipe", "start a new run, without --resume")
    run(prepared.recipe, prepared.base.path, prepared.dataset, run_dir, progress, resume=resume is not None)
    return run_dir.name


def merge(run_name: str, home: Home, progress: Progress = Silent(), base_choice: str | None = None) -> Merged:
    """Merge a finished run's adapter into its base, and verify the result against the trained model.

    Raises:
        NotFoundError: there is no such run, or it has not finished.
    """
    from puna.merge.choose import merge_and_verify
    from puna.train.trained import load_trained

    run = record.find_run(home, run_name)
    if not (run.path / "adapter").exists():
        hint = f"puna train RECIPE --resume {run.name}" if run.state == "interrupted" else "puna runs"
        raise NotFoundError(f"run {run.name} has no adapter yet: it is {run.state}", hint)
    recipe = recipes.parse(run.recipe)
    if base_choice is not None:
        recipe = dataclasses.replace(recipe, merge=recipes.MergeRecipe(base=base_choice))  # type: ignore[arg-type]
    adapter = Adapter.open(run.path / "adapter")
    base = resolve.resolve_base(recipe.base, recipe.base_revision, home, progress)
    dataset = Dataset.open(home.datasets / (run.path / "dataset").read_text().strip()[:16])
    trained = load_trained(adapter, base.path, recipe)
    model, verification, why = merge_and_verify(
        adapter, base.path, home, recipe=recipe, base_ref=base.ref, dataset=dataset, trained=trained, progress=progress
    )
    _remember_merge(run.path, model, verification, why)
    return Merged(model, verification, why)


def _remember_merge(run_dir: Path, model: Model, verification: Verification, why: str) -> None:
    from puna.artifacts import write_json

    figures = dataclasses.asdict(verification)
    write_json(run_dir / "merge.json", {"model": model.path.name, "verification": figures, "why": why})


def publish(
    run_name: str, name: str | None, home: Home, *, force: bool = False, aliases: tuple[str, ...] = ("latest",)
) -> ModelVersion:
    """Give a run's merged model a name in the local registry; `name` defaults to what its recipe says.

    Raises:
        PublishError: the model was never merged, or failed verification and `force` is not set.
    """
    import json

    run = record.find_run(home, run_name)
    if not (run.path / "merge.json").exists():
        raise PublishError(f"run {run.name} has not been merged", f"puna merge {run.name}")
    merged = json.loads((run.path / "merge.json").read_text())
    recipe = recipes.parse(run.recipe)
    model = Model.open(home.models / merged["model"])
    chosen = name or recipe.publish.name or f"puna/{recipe.name}"
    return Registry(home).publish(model, chosen, aliases=aliases, verification=merged["verification"], force=force)


def ship(recipe: Recipe, home: Home, client: Client, folder: Path, progress: Progress = Silent()) -> Shipped:
    """The whole story: a recipe becomes an endpoint that answers."""
    run = train(prepare(recipe, home, progress), home, progress)
    merge(run, home, progress)
    model = publish(run, None, home)
    if recipe.publish.hub:
        push(model, recipe.publish.hub, progress)
    endpoint = deploy_model(model, recipe, client, folder, progress)
    return Shipped(run, model, endpoint)


def push(model: ModelVersion, repo_id: str, progress: Progress = Silent(), private: bool = False) -> str:
    """Push a published model to the Hugging Face Hub; returns its address."""
    from puna.publish.hub import push as push_to_hub

    return push_to_hub(model, repo_id, private=private, progress=progress)
