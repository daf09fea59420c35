"""The API's part about training runs: how they go, and merging and publishing what they made, as builds."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from puna import names
from puna.control import views
from puna.control.api.pagination import Paged
from puna.control.domain.records import Build
from puna.control.domain.states import BuildState
from puna.control.operations.context import Control
from puna.control.resources import models
from puna.errors import ConflictError, UsageError
from puna.publish.registry import Registry
from puna.train.reporting.record import Run, compare, find_run, list_runs

Json = dict[str, Any]
BASES = ("original", "dequantised", "auto")
MOST_LINES = 5000


class Merge(BaseModel):
    """What `POST /runs/{name}/merge` takes."""

    model_config = ConfigDict(extra="forbid")
    base: str | None = None
    """One of `original`, `dequantised` and `auto`; the recipe's when not given."""


class Publish(BaseModel):
    """What `POST /runs/{name}/publish` takes."""

    model_config = ConfigDict(extra="forbid")
    name: str | None = None
    """`owner/name`; the recipe's when not given."""
    aliases: list[str] = []
    """Beside `latest`."""
    adapter: bool = False
    """The adapter itself, unmerged."""
    force: bool = False
    """Although it failed its verification."""
    hub: str | None = None
    """Also push to this `owner/name` on the Hugging Face Hub, with the token in the environment of `puna up`."""
    private: bool = False


def routes(control: Control) -> APIRouter:
    """The handlers."""
    router = APIRouter(tags=["runs"])
    asking = threading.Lock()

    @router.get("/runs", name="list_runs")
    def get_runs(page: Paged) -> Json:
        """Every training run, oldest first, with its newest figures and what it was published as."""
        known = models.published(Registry(control.home).list(), models.trained(control.home))
        return page.show(list_runs(control.home), _begun, lambda run: _short(run) | _results(run, known))

    @router.get("/runs/{name}")
    def get_run(name: str, after: int = -1) -> Json:
        """One training run: recipe, plan, figures (those of steps after `after`), samples, and what became of it."""
        run = find_run(control.home, name)
        known = models.published(Registry(control.home).list(), models.trained(control.home))
        compared = [{**figure.__dict__, "error": figure.error} for figure in compare(run)]
        more = {
            "recipe": run.recipe,
            "plan": run.plan,
            "base": run.base,
            "dataset": run.dataset,
            "data": models.dataset_of(control.home, run),
            "metrics": [line for line in run.metrics() if line.get("step", 0) > after][-MOST_LINES:],
            "samples": run.samples,
            "compared": compared,
            "builds": [views.build_view(build) for build in _builds(control, run.name)],
        }
        values: Json = _plain(more)
        return _short(run) | _results(run, known) | values

    @router.post("/runs/{name}/merge", status_code=202)
    def post_merge(name: str, body: Merge | None = None) -> Json:
        """Merge a finished run's adapter into its base and verify the result, as a build."""
        run, body = _finished(control, name), body or Merge()
        if body.base is not None and body.base not in BASES:
            raise UsageError(f"`base` is {body.base!r}", f"one of {', '.join(BASES)}")
        with asking:
            return _queue(control, "merge", run, body.model_dump(exclude_none=True))

    @router.post("/runs/{name}/publish", status_code=202)
    def post_publish(name: str, body: Publish | None = None) -> Json:
        """Give a run's merged model, or its adapter, a name and a version, as a build."""
        run, body = _finished(control, name), body or Publish()
        _check(run, body)
        with asking:
            return _queue(control, "publish", run, body.model_dump(exclude_defaults=True))

    return router


def _begun(run: Run) -> tuple[int, str]:
    return (run.path / "recipe.json").stat().st_mtime_ns, run.name


def _check(run: Run, body: Publish) -> None:
    for name in filter(None, (body.name, body.hub)):
        names.check("model", name)
    for alias in body.aliases:
        names.check("alias", alias)
    if body.adapter and body.hub:
        raise UsageError("`hub` pushes whole models, `adapter` publishes none", "leave one of them out")
    if not body.adapter and not (run.path / "merge.json").exists():
        raise ConflictError(f"run {run.name} has not been merged", f"puna merge {run.name}")


def _finished(control: Control, name: str) -> Run:
    run = find_run(control.home, name)
    if not (run.path / "adapter").exists():
        hint = f"puna train RECIPE --resume {run.name}" if run.state == "interrupted" else "wait until it has finished"
        raise ConflictError(f"run {run.name} has no adapter: it is {run.state}", hint)
    return run


def _queue(control: Control, kind: str, run: Run, arguments: Mapping[str, Any]) -> Json:
    """A new build, or the same one when it waits or runs already."""
    for build in _builds(control, run.name):
        if (build.kind, dict(build.arguments)) == (kind, dict(arguments)) and build.state in (
            BuildState.QUEUED,
            BuildState.RUNNING,
        ):
            return views.build_view(build) | {"build_id": build.id}
    made = control.store.add_build(kind, run.name, 0, control.clock(), arguments)
    control.wake()
    return views.build_view(made) | {"build_id": made.id}


def _builds(control: Control, run: str) -> list[Build]:
    """The latest merges and publishings of a run, oldest first."""
    return [b for b in control.store.builds(limit=1000) if b.subject == run and b.kind in ("merge", "publish")]


def _short(run: Run) -> Json:
    status, last = run.status, run.last
    view = {"name": run.name, "path": str(run.path), "state": status.state, "step": status.step, "steps": status.steps}
    view |= {"started": status.started, "ended": status.ended, "error": status.error}
    view |= {"seconds": run.seconds(), "seconds_left": run.seconds_left()}
    values: Json = _plain(view | {"last": last})
    return values


def _results(run: Run, known: Mapping[str, Any]) -> Json:
    """Whether it can be merged, how the merge went, and which versions came of it."""
    merged = run.path / "merge.json"
    found = json.loads(merged.read_text()) if merged.exists() else None
    versions = [{"name": v.name, "version": v.version, "kind": v.kind} for v in known.get(run.name, ())]
    values: Json = _plain({"adapter": models.adapter_digest(run), "merge": found, "published": versions})
    return values


def _plain(value: Any) -> Any:
    """JSON values; what JSON does not know becomes text."""
    return json.loads(json.dumps(value, default=str))
