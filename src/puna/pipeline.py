"""The whole story, step by step: data, train, merge, publish, init, deploy; each step can be run alone."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.artifacts import SHORT, Adapter, Dataset, Model, write_json
from puna.config import project, runtime
from puna.config import recipe as recipes
from puna.config.recipe import Recipe
from puna.errors import BuildError, ConflictError, MergeError, NotFoundError, PublishError
from puna.home import Home
from puna.packaging import template
from puna.progress import Progress, Silent
from puna.publish import hub, resolve
from puna.publish.registry import RegisteredVersion, Registry, seal
from puna.train.reporting import record

if TYPE_CHECKING:
    from puna.client import Client
    from puna.merge.verify import Verification
    from puna.packaging.validation import Validation
    from puna.train.planning.plan import TrainingPlan


@dataclass(frozen=True)
class Prepared:
    """Inputs of training: a recipe, its base on this disk and its tokenised rows."""

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
    """Results of the whole story."""

    run: str
    model: RegisteredVersion
    endpoint: dict[str, Any]


def prepare(recipe: Recipe, home: Home, progress: Progress = Silent()) -> Prepared:
    """Find the base and tokenise the data; both are kept, so that the second time costs nothing."""
    from puna.data.prepare import prepare as tokenise

    base = resolve.resolve_base(recipe.base, recipe.base_revision, home, progress)
    return Prepared(recipe, base, tokenise(recipe, base.path, home, progress))


def plan(prepared: Prepared, world: int = 1) -> TrainingPlan:
    """The plan of what training will take on each of `world` processes, before weights are loaded."""
    from puna.train.planning.plan import plan as plan_run

    return plan_run(prepared.recipe, prepared.base.path, prepared.dataset, world=world)


def train(prepared: Prepared, home: Home, progress: Progress = Silent(), resume: str | None = None) -> str:
    """Train; returns the run's name. `resume` names an interrupted run of the same recipe.

    Raises:
        ConflictError: the run to resume was made by another recipe, or has ended.
    """
    from puna.train.ranks import Ranks
    from puna.train.run import train as run

    if resume is None:
        run_dir = Ranks.here().lead(lambda: record.new_run_dir(home, prepared.recipe))
    else:
        found = find_run(home, resume)
        run_dir, before = found.path, recipes.parse(found.recipe)
        if before.digest != prepared.recipe.digest:
            raise ConflictError(f"run {resume} was made by another recipe", "start a new run, without --resume")
    run(prepared.recipe, prepared.base.path, prepared.dataset, run_dir, progress, resume=resume is not None)
    return run_dir.name


def find_run(home: Home, name: str) -> record.Run:
    """A run by its name or its recipe's; `last` is the newest of all.

    Raises:
        NotFoundError: there is none.
    """
    runs = record.list_runs(home)
    return runs[-1] if name == "last" and runs else record.find_run(home, name)


def _finished(home: Home, name: str) -> record.Run:
    run = find_run(home, name)
    if not (run.path / "adapter").exists():
        state = run.state
        hint = f"puna train RECIPE --resume {run.name}" if state == "interrupted" else "puna runs"
        raise NotFoundError(f"run {run.name} has no adapter: it is {state}", hint)
    return run


def merge(run_name: str, home: Home, progress: Progress = Silent(), base_choice: str | None = None) -> Merged:
    """Merge a finished run's adapter into its base, and verify the result against the trained model.

    Raises:
        NotFoundError: there is no such run, or it has not finished.
    """
    from puna.merge.choose import merge_and_verify
    from puna.train.trained import load_trained

    run = _finished(home, run_name)
    recipe = recipes.parse(run.recipe)
    if base_choice is not None:
        recipe = dataclasses.replace(recipe, merge=recipes.MergeRecipe(base=base_choice))  # type: ignore[arg-type]
    adapter = Adapter.open(run.path / "adapter")
    base = resolve.resolve_base(recipe.base, recipe.base_revision, home, progress)
    dataset = Dataset.open(home.datasets / run.dataset[:SHORT])
    trained = load_trained(adapter, base.path, recipe)
    model, verification, why = merge_and_verify(
        adapter, base.path, home, recipe=recipe, base_ref=base.ref, dataset=dataset, trained=trained, progress=progress
    )
    remembered = {"model": model.path.name, "verification": dataclasses.asdict(verification), "why": why}
    write_json(run.path / "merge.json", remembered)
    return Merged(model, verification, why)


def publish(
    run_name: str, name: str | None, home: Home, *, force: bool = False, aliases: tuple[str, ...] = ("latest",)
) -> RegisteredVersion:
    """Give a run's merged model a name in the local registry; `name` defaults to what its recipe says.

    Raises:
        PublishError: the model was never merged, or failed verification and `force` is not set.
    """
    run = find_run(home, run_name)
    if not (run.path / "merge.json").exists():
        raise PublishError(f"run {run.name} has not been merged", f"puna merge {run.name}")
    merged = json.loads((run.path / "merge.json").read_text())
    recipe = recipes.parse(run.recipe)
    model = Model.open(home.models / merged["model"])
    chosen = name or recipe.model
    return Registry(home).publish(model, chosen, aliases=aliases, verification=merged["verification"], force=force)


def publish_adapter(
    run_name: str,
    name: str | None,
    home: Home,
    *,
    aliases: tuple[str, ...] = ("latest",),
    progress: Progress = Silent(),
) -> RegisteredVersion:
    """Give a run's adapter a name without merging it, and make the base that it is served on, unless that is there.

    Raises:
        NotFoundError: there is no such run, or it has not finished.
        MergeError: the adapter is more than plain LoRA and chat rows.
    """
    from puna.merge.stream import serving_base

    run = _finished(home, run_name)
    recipe = recipes.parse(run.recipe)
    adapter = Adapter.open(run.path / "adapter")
    base = resolve.resolve_base(recipe.base, recipe.base_revision, home, progress)
    under = serving_base(adapter, base.path, home, base_ref=base.ref, recipe=recipe, progress=progress)
    chosen = name or f"{recipe.model}-adapter"
    return Registry(home).publish(seal(adapter, under, home), chosen, aliases=aliases)


def upload_runtime(
    client: Client, file: Path, name: str, progress: Progress = Silent(), wait: bool = True
) -> dict[str, Any]:
    """Upload a runtime file and, unless `wait` is off, follow its build to the end; returns the runtime's version.

    Raises:
        RuntimeSpecError: the file is wrong; nothing was uploaded.
        BuildError: the build failed.
    """
    runtime.load(file)
    made = client.upload_runtime(name, file.read_text(encoding="utf-8"))
    if wait and made.get("build_id"):
        follow(client, made["build_id"], progress)
        return client.runtime(name)
    return made


def follow(client: Client, build_id: str, progress: Progress) -> None:
    """Pass a build's log on as it comes.

    Raises:
        BuildError: the build failed; its failing line, hint and last lines.
    """
    for text in client.build_log(build_id):
        progress.note(text)
    try:
        client.wait_for_build(build_id)
    except BuildError as error:
        if not getattr(progress, "quiet", True):
            error.detail = ""  # who watched has read it, line by line
        raise


def deploy(
    client: Client,
    folder: Path,
    name: str,
    *,
    runtime: str | None,
    settings: Mapping[str, Any],
    progress: Progress = Silent(),
    runtime_version: int | None = None,
) -> dict[str, Any]:
    """Deploy a folder and follow it until the new revision serves; returns the endpoint.

    Raises:
        ProjectError: the folder is no project.
        BuildError: the build failed.
        DeployError: the revision did not start; what served before still does.
    """
    made = client.deploy(folder, name, runtime=runtime, settings=settings, runtime_version=runtime_version)
    return follow_deploy(client, made, progress)


def follow_deploy(client: Client, made: Mapping[str, Any], progress: Progress = Silent()) -> dict[str, Any]:
    """Follow what a deploy queued until the new revision serves; returns the endpoint.

    Raises:
        BuildError: the build failed.
        DeployError: the revision did not start; what served before still does.
    """
    if made.get("build_id") and not made.get("unchanged"):
        follow(client, made["build_id"], progress)
    return client.wait_for_endpoint(str(made["endpoint"]), made["revision"])


def deploy_model(
    model: RegisteredVersion, recipe: Recipe, client: Client, folder: Path, progress: Progress = Silent()
) -> dict[str, Any]:
    """Write an app for a published model as the recipe says, build its runtime, and deploy it."""
    # The version stands in the project, so that another one is another source, and is deployed.
    if (folder / "app.py").exists():
        template.update(folder, model.name, model.ref)
    else:
        engine = template.chosen(recipe.serve.engine)
        template.init(folder, model.name, name=recipe.endpoint, engine=engine, published=model.ref)
    runtime_file = folder / (project.load(folder).runtime_file or "inferless-runtime-config.yaml")
    settings, name = recipe.serve.settings, recipe.endpoint
    client.check_settings(name, settings)  # before an environment is built for them
    upload_runtime(client, runtime_file, name, progress)
    return deploy(client, folder, name, runtime=name, settings=settings, progress=progress)


def try_app(folder: Path, home: Home, progress: Progress = Silent(), timeout_s: float = 900) -> Validation:
    """Run a folder's app once in its own environment, on its schema's examples, with no server.

    Raises:
        BuildError: its environment cannot be built.
        AppError: the app failed; with the line and the traceback.
    """
    from puna.backends import local, workspace
    from puna.backends.base import Launch
    from puna.control.builds.builder import BuildTools
    from puna.control.reconcile.launch import volume_env
    from puna.control.resources.volumes import Volumes
    from puna.packaging import bundle as bundles
    from puna.packaging import environment, source, validation

    wanted = project.load(folder)
    spec = runtime.load(folder / wanted.runtime_file) if wanted.runtime_file else runtime.default()
    source.check(folder)
    mounted = Volumes(home).mounted(wanted.settings["volumes"])
    workspace.check_volumes(mounted)
    snapshot = source.snapshot(folder, home)
    built = environment.build(spec, home, progress.note, cancelled=lambda: False)
    bundle = BuildTools().bundle(snapshot, built, home, progress.note)
    run = f"dev-{os.getpid()}"
    try:
        with tempfile.TemporaryDirectory() as scratch:
            report, log = Path(scratch) / "report.json", Path(scratch) / "app.log"
            env = bundles.app_env(bundle, extra=volume_env(wanted.settings["volumes"]) | wanted.settings["env"])
            app, private = workspace.prepare(bundle, run, home), workspace.place_volumes(mounted)
            launch = Launch(run, built.python, app, home.replica_socket(run), log, env, mounts=private)
            local.validate(launch, home, report, timeout_s)
            for line in log.read_text(errors="replace").splitlines() if log.exists() else ():
                progress.note(line)
            return validation.read(report, log)
    finally:
        workspace.remove(run, home)


def ship(recipe: Recipe, home: Home, client: Client, folder: Path, progress: Progress = Silent()) -> Shipped:
    """The whole story: a recipe becomes an endpoint that answers.

    Raises:
        UsageError, ConflictError: its endpoint's settings or its folder would be refused; nothing has been trained.
    """
    # What can be known now is said now, and not after hours of training.
    client.check_settings(recipe.endpoint, recipe.serve.settings)
    if (folder / "app.py").exists():
        template.check_update(folder, recipe.model)
    run = train(prepare(recipe, home, progress), home, progress)
    merged = merge(run, home, progress)
    if not merged.verification.passed:
        raise MergeError(f"run {run} is not shipped: {'; '.join(merged.verification.reasons)}", f"puna merge {run}")
    model = publish(run, None, home)
    if recipe.publish.hub:
        hub.push(model, recipe.publish.hub, progress=progress)
    endpoint = deploy_model(model, recipe, client, folder, progress)
    return Shipped(run, model, endpoint)
