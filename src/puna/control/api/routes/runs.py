"""Training runs: how they go, and merging and publishing what they made, as builds."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from typing_extensions import TypedDict

from puna import names
from puna.control.api.query import Listed, Paged
from puna.control.api.routes.builds import Build, build_view
from puna.control.api.routing import Answer, Right, Routes
from puna.control.domain import records
from puna.control.domain.records import view
from puna.control.domain.states import UNENDED
from puna.control.operations.context import Control
from puna.control.resources import models
from puna.errors import ConflictError, UsageError
from puna.publish.registry import RegisteredVersion, Registry
from puna.train.reporting import record
from puna.train.reporting.record import compare, find_run

Json = dict[str, Any]
BASES = ("original", "dequantised", "auto")
MOST_LINES = 5000


class PublishedAs(TypedDict):
    """A version that came of a run."""

    name: str
    version: int
    kind: str


class Compared(TypedDict):
    """One figure that was planned and has been measured."""

    name: str
    unit: str
    planned: float
    measured: float
    error: float
    """How far off, as a share of the planned one."""


class ListedRun(TypedDict):
    """A training run in short."""

    name: str
    path: str
    state: str
    """`running`, `finished`, `failed` or `interrupted`."""
    step: int
    steps: int
    started: str
    ended: str
    error: str
    seconds: float | None
    seconds_left: float | None
    last: Json
    """The newest value of every figure."""
    adapter: str
    """The digest of what it made; empty before it has finished."""
    merge: Json | None
    published: list[PublishedAs]


class Run(ListedRun):
    """A training run with its recipe, plan and figures."""

    recipe: Json
    plan: Json
    base: str
    dataset: str
    data: Json
    metrics: list[Json]
    """One line a logged step."""
    samples: list[dict[str, str]]
    """Replies before and after training."""
    compared: list[Compared]
    builds: list[Build]
    """Its merges and publishings, oldest first."""


class QueuedBuild(Build):
    """A build that was asked for."""

    build_id: str


class Merge(BaseModel, extra="forbid"):
    """The body of `POST /runs/{name}/merge`."""

    base: str | None = None
    """One of `original`, `dequantised` and `auto`; the recipe's when not given."""


class Publish(BaseModel, extra="forbid"):
    """The body of `POST /runs/{name}/publish`."""

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


def routes(control: Control) -> Routes:
    """The handlers."""
    route = Routes("runs")
    asking = threading.Lock()

    @route("GET /runs", Right.ALL)
    def list_runs(page: Paged) -> Listed[ListedRun]:
        """Every training run, oldest first, with its newest figures and what it was published as."""
        known = models.published(Registry(control.home).list(), models.trained(control.home))
        return page.show(record.list_runs(control.home), _begun, lambda run: _listed(run, known))

    @route("GET /runs/{name}", Right.ALL)
    def get_run(name: str, after: int = -1) -> Run:
        """One training run: recipe, plan, figures (those of steps after `after`), samples, and what became of it."""
        run = find_run(control.home, name)
        known = models.published(Registry(control.home).list(), models.trained(control.home))
        return view(
            Run,
            run,
            **_listed(run, known),
            data=models.dataset_of(control.home, run),
            metrics=[line for line in run.metrics() if line.get("step", 0) > after][-MOST_LINES:],
            compared=[view(Compared, figure) for figure in compare(run)],
            builds=[build_view(build) for build in _builds(control, run.name)],
        )

    @route("POST /runs/{name}/merge", Right.ALL, Answer(202))
    def post_merge(name: str, body: Merge | None = None) -> QueuedBuild:
        """Merge a finished run's adapter into its base and verify the result, as a build."""
        run, body = _finished(control, name), body or Merge()
        if body.base is not None and body.base not in BASES:
            raise UsageError(f"`base` is {body.base!r}", f"one of {', '.join(BASES)}")
        with asking:
            return _queue(control, "merge", run, body.model_dump(exclude_none=True))

    @route("POST /runs/{name}/publish", Right.ALL, Answer(202))
    def post_publish(name: str, body: Publish | None = None) -> QueuedBuild:
        """Give a run's merged model, or its adapter, a name and a version, as a build."""
        run, body = _finished(control, name), body or Publish()
        _check(run, body)
        with asking:
            return _queue(control, "publish", run, body.model_dump(exclude_defaults=True))

    return route


def _begun(run: record.Run) -> tuple[int, str]:
    return (run.path / "recipe.json").stat().st_mtime_ns, run.name


def _check(run: record.Run, body: Publish) -> None:
    for name in filter(None, (body.name, body.hub)):
        names.check("model", name)
    for alias in body.aliases:
        names.check("alias", alias)
    if body.adapter and body.hub:
        raise UsageError("`hub` pushes whole models, `adapter` publishes none", "leave one of them out")
    if not body.adapter and not (run.path / "merge.json").exists():
        raise ConflictError(f"run {run.name} has not been merged", f"puna merge {run.name}")


def _finished(control: Control, name: str) -> record.Run:
    run = find_run(control.home, name)
    if not (run.path / "adapter").exists():
        hint = f"puna train RECIPE --resume {run.name}" if run.state == "interrupted" else "wait until it has finished"
        raise ConflictError(f"run {run.name} has no adapter: it is {run.state}", hint)
    return run


def _queue(control: Control, kind: str, run: record.Run, arguments: Mapping[str, Any]) -> QueuedBuild:
    """A new build, or the same one when it waits or runs already."""
    for build in _builds(control, run.name):
        if (build.kind, dict(build.arguments)) == (kind, dict(arguments)) and build.state in UNENDED:
            return {**build_view(build), "build_id": build.id}
    made = control.store.add_build(kind, run.name, 0, control.clock(), arguments)
    control.wake()
    return {**build_view(made), "build_id": made.id}


def _builds(control: Control, run: str) -> list[records.Build]:
    """The latest merges and publishings of a run, oldest first."""
    return [b for b in control.store.builds(limit=1000) if b.subject == run and b.kind in ("merge", "publish")]


def _listed(run: record.Run, known: Mapping[str, list[RegisteredVersion]]) -> ListedRun:
    """A run in short, with how its merge went and which versions came of it."""
    merged = run.path / "merge.json"
    return view(
        ListedRun,
        run.status,
        name=run.name,
        path=str(run.path),
        seconds=run.seconds(),
        seconds_left=run.seconds_left(),
        last=run.last,
        adapter=models.adapter_digest(run),
        merge=json.loads(merged.read_text()) if merged.exists() else None,
        published=[view(PublishedAs, version) for version in known.get(run.name, ())],
    )
