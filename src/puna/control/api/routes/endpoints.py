"""Endpoints: deploy, look, change, roll back, divide their requests, follow their events, delete."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Annotated, Any, Literal, NotRequired, cast

from annotated_types import Ge, Le
from fastapi import Path, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from typing_extensions import TypedDict

from puna import names
from puna.config.settings import masked_env
from puna.control.api import query
from puna.control.api.bodies import Number
from puna.control.api.query import Listed, Paged
from puna.control.api.routes.sources import ModelName, Repository, wanted_model
from puna.control.api.routing import Answer, Deleted, Right, Routes
from puna.control.domain import records
from puna.control.domain.api_keys import owner, restrict, visible
from puna.control.domain.records import WHOLE, Concurrency, Event, concurrency, state_of, view
from puna.control.domain.states import EndpointState, ReplicaState, RevisionState, label
from puna.control.operations import comparison, deploys
from puna.control.operations.comparison import RevisionDiff
from puna.control.operations.context import Control
from puna.control.operations.deploys import Deployed, DeployRequest
from puna.control.telemetry.history import EVERY_S, Point, split_counts

Json = dict[str, Any]
Percent = Annotated[int, Ge(0), Le(100)]
EndpointName = Annotated[str, Path(json_schema_extra={"pattern": names.pattern("endpoint")})]
"""Any other name cannot be found, and is answered with 404."""


class Replica(TypedDict):
    """One process that runs an app, or is about to."""

    id: str
    revision: int
    state: ReplicaState
    tier: str
    pid: int
    since: float
    """When it entered its state, in Unix seconds."""
    in_flight: int
    gpu: str
    """The device's index; empty for none."""
    reason: str


class Revision(TypedDict):
    """One immutable version of an endpoint."""

    number: int
    state: RevisionState
    percent: int
    """The share of the requests that it is to have, or had at last."""
    source: str
    """The source's digest."""
    commit: str | None
    runtime: str | None
    runtime_version: int | None
    environment: str
    bundle: str
    build_id: str | None
    concurrency: Concurrency | None
    """Null as long as the app has not run."""
    created: float
    since: float
    failures: int
    """Replicas that failed in a row."""
    error: str
    hint: str
    detail: str


class Warm(TypedDict):
    """The zygote of an endpoint: a process with its imports done, which replicas are forked from."""

    state: str
    memory_bytes: int
    reason: str


class Share(TypedDict):
    """A revision's share of an endpoint's requests; of two also what each has answered since they share them."""

    revision: int
    percent: int
    wanted: int
    """What it is to have: all, while it is promoted."""
    requests: NotRequired[int]
    errors: NotRequired[int]
    """Replies of 500 and above."""
    p50_ms: NotRequired[float | None]
    p95_ms: NotRequired[float | None]


class Endpoint(TypedDict):
    """A name that serves, with all that belongs to it."""

    name: str
    state: EndpointState
    label: str
    """The state in words."""
    active: bool
    url: str
    """Where it is called."""
    settings: Json
    revision: int | None
    """The revision that serves."""
    traffic: list[Share]
    """The revisions' shares of the requests, the revision that serves first."""
    schema: Json | None
    """The inputs that its app declares."""
    concurrency: Concurrency | None
    """Of the revision that serves."""
    replicas: list[Replica]
    revisions: list[Revision]
    """Newest first."""
    desired_replicas: int
    """How many replicas the autoscaler wants."""
    scaling_reason: str
    """Why it wants as many."""
    wish: Annotated[int, Field(deprecated=True)]
    """`desired_replicas`, as it was called before 0.2."""
    wish_reason: Annotated[str, Field(deprecated=True)]
    """`scaling_reason`, as it was called before 0.2."""
    reason: str
    """Why it cannot serve, or not as much as it should; empty when all is well."""
    created: float
    warm: Warm | None


class PatchedEndpoint(Endpoint):
    """An endpoint after a change of its settings."""

    changed_revision: int | None
    """The revision that the change took; null when it acts at once."""


class Metrics(TypedDict):
    """The last half hour in figures, oldest first: 360 points at most, so it has no pages."""

    interval_s: float
    items: list[Point]


class Traffic(TypedDict):
    """The share that was asked for, and the shares as they are now."""

    endpoint: str
    revision: int
    """Which one is to have another share."""
    percent: int
    traffic: list[Share]


class Deploy(BaseModel, extra="forbid"):
    """The body of `POST /endpoints`: a `source`, a `git` repository, or a `model`."""

    name: str = ""
    """The project's own name when empty, for a repository or a model."""
    source: str | None = None
    """An uploaded source's digest."""
    git: Repository | None = None
    model: ModelName | str | None = None
    """A published model or one on the hub; an app is made for it."""
    runtime: str | None = None
    runtime_version: Number | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    traffic: int = Field(WHOLE, ge=1, le=WHOLE)
    """Percent of the requests that the new revision gets, beside the one that serves."""


class Rollback(BaseModel, extra="forbid"):
    """The body of `POST /endpoints/{name}/rollback`."""

    revision: Number | None = None


class Shares(BaseModel, extra="forbid"):
    """The body of `PUT /endpoints/{name}/traffic`."""

    shares: dict[Number, Percent]
    """Revision -> percent of the requests: of one, or of two of which one serves."""


class Promotion(BaseModel, extra="forbid"):
    """The body of `POST /endpoints/{name}/promote`."""

    revision: Number | None = None
    """The second one of a split when it is not said."""


def routes(control: Control) -> Routes:
    """The handlers."""
    route = Routes("endpoints")
    _looking(route, control)
    _changing(route, control)
    _traffic(route, control)
    return route


def _looking(route: Routes, control: Control) -> None:
    store = control.store

    @route("GET /endpoints", Right.OWN)
    def list_endpoints(request: Request, page: Paged) -> Listed[Endpoint]:
        """Every endpoint, by name."""
        mine = [e for e in store.endpoints() if visible(request.state.key, e.name)]
        revisions, replicas = store.revisions(), store.replicas()  # read once: one by one they are 2 ms an endpoint

        def shown(endpoint: records.Endpoint) -> Endpoint:
            ours = [r for r in revisions if r.endpoint == endpoint.name]
            return _show(control, endpoint, ours, [r for r in replicas if r.endpoint == endpoint.name])

        return page.show(mine, lambda e: (e.name,), shown)

    @route("GET /endpoints/{name}", Right.ENDPOINT)
    def get_endpoint(name: EndpointName) -> Endpoint:
        """One endpoint: state, settings, replicas, revisions."""
        return show(control, store.endpoint(name))

    @route("GET /endpoints/{name}/events", Right.ENDPOINT)
    def list_events(name: EndpointName, page: Paged, order: Literal["oldest", "newest"] = "oldest") -> Listed[Event]:
        """List the events of an endpoint, the oldest or the newest first; `after` is an event's id."""
        store.endpoint(name)
        after = query.number(page.after)
        found = store.events_page(name, after, page.limit + 1, newest_first=order == "newest")
        following = str(found[page.limit - 1].id) if len(found) > page.limit else None
        return {"items": found[: page.limit], "next": following}

    @route("GET /endpoints/{name}/metrics", Right.ENDPOINT)
    def get_metrics(name: EndpointName) -> Metrics:
        """The last half hour in figures: requests, errors, latency, queue, replicas; one point every 5 s."""
        store.endpoint(name)
        return {"interval_s": EVERY_S, "items": control.history.points(name) if control.history else []}


def _changing(route: Routes, control: Control) -> None:
    store = control.store

    @route("POST /endpoints", Right.OWN, Answer(202, refuses=(429,)))
    async def post_endpoint(body: Deploy, request: Request) -> Deployed:
        """Deploy a source, a repository's newest commit or a model; the same as now makes no new revision."""
        restrict(request.state.key, body.name)
        git = body.git.model_dump() if body.git else None
        model = wanted_model(body.model) if body.model is not None else None
        wanted = DeployRequest(body.name, body.source, git, model, body.runtime, body.runtime_version, body.settings)
        wanted = dataclasses.replace(wanted, percent=body.traffic)
        call = partial(deploys.deploy, control, wanted, request.state.key)
        return await _asking(control, request, call, asks=wanted.source is None)

    @route("PATCH /endpoints/{name}", Right.ENDPOINT)
    def patch_endpoint(name: EndpointName, body: dict[str, Any], request: Request) -> PatchedEndpoint:
        """Change settings: those of scaling act at once, the others as a new revision that needs no build."""
        made = deploys.patch(control, name, body, request.state.key)
        return {**show(control, store.endpoint(name)), "changed_revision": made}

    @route("POST /endpoints/{name}/activate", Right.ENDPOINT)
    def post_activate(name: EndpointName) -> Endpoint:
        """Serve again; replicas start when requests come, or at once up to min_replica."""
        return show(control, store.set_active(name, True, control.clock()))

    @route("POST /endpoints/{name}/deactivate", Right.ENDPOINT)
    def post_deactivate(name: EndpointName) -> Endpoint:
        """Stop every replica and refuse requests."""
        return show(control, store.set_active(name, False, control.clock()))

    @route("POST /endpoints/{name}/rebuild", Right.ENDPOINT, Answer(202, refuses=(429,)))
    async def post_rebuild(name: EndpointName, request: Request) -> Deployed:
        """Build again, as a new revision: a repository's newest commit, or the newest revision's source."""
        endpoint = await run_in_threadpool(store.endpoint, name)
        call = partial(deploys.rebuild, control, name, key=request.state.key)
        return await _asking(control, request, call, asks=bool(endpoint.settings.git))

    @route("POST /endpoints/{name}/rollback", Right.ENDPOINT, Answer(202))
    def post_rollback(name: EndpointName, body: Rollback | None = None) -> Deployed:
        """Take a split away; or serve an earlier revision again, rolled out like a new one."""
        revision = store.revision(name, deploys.roll_back(control, name, body.revision if body else None))
        return {"endpoint": name, "revision": revision.number, "build_id": revision.build_id, "unchanged": False}

    @route("DELETE /endpoints/{name}", Right.ENDPOINT)
    def delete_endpoint(name: EndpointName) -> Deleted:
        """Delete an endpoint in whatever state it is; its replicas are stopped and its builds cancelled."""
        store.delete_endpoint(name, control.clock())
        control.wake()
        return {"deleted": name}


def _traffic(route: Routes, control: Control) -> None:
    store = control.store

    def shown(name: str, target: int) -> Traffic:
        endpoint, revisions = store.endpoint(name), store.revisions(name)
        percent = next(r.percent for r in revisions if r.number == target)
        aim = endpoint.shares[target] if target == endpoint.serving else percent
        return {"endpoint": name, "revision": target, "percent": aim, "traffic": divided(endpoint, revisions)}

    @route("PUT /endpoints/{name}/traffic", Right.ENDPOINT, Answer(202))
    def put_traffic(name: EndpointName, body: Shares) -> Traffic:
        """Divide the requests between two revisions, or give one all of them; one without a share is rolled out."""
        return shown(name, deploys.divide(control, name, body.shares))

    @route("POST /endpoints/{name}/promote", Right.ENDPOINT, Answer(202))
    def post_promote(name: EndpointName, body: Promotion | None = None) -> Traffic:
        """Give a revision all requests, once it has the replicas for them; the other one is drained and retired."""
        return shown(name, deploys.promote(control, name, body.revision if body else None))

    @route("GET /endpoints/{name}/revisions/{a}/diff/{b}", Right.ENDPOINT)
    def get_revision_diff(name: EndpointName, a: Number, b: Number) -> RevisionDiff:
        """Compare revision `a` with `b`: settings, packages as installed, files with their lines."""
        return comparison.compare(control, name, a, b)


async def _asking(control: Control, request: Request, call: Callable[[], Deployed], asks: bool) -> Deployed:
    """Do what may ask other machines: then among those that do, else as any handler."""
    if asks:
        return await control.fetches.run(owner(request.state.key), call)
    return await run_in_threadpool(call)


def show(control: Control, endpoint: records.Endpoint) -> Endpoint:
    """One endpoint with all that belongs to it."""
    store, name = control.store, endpoint.name
    return _show(control, endpoint, store.revisions(name), store.replicas(name))


def _show(
    control: Control,
    endpoint: records.Endpoint,
    revisions: Sequence[records.Revision],
    replicas: Sequence[records.Replica],
) -> Endpoint:
    """One endpoint; `revisions` are all of its own, newest first."""
    serving = next((r for r in revisions if r.number == endpoint.serving), None)
    state, now = state_of(endpoint, revisions, replicas), control.steady()
    traffic = divided(endpoint, revisions)
    if endpoint.split is not None:
        for share in traffic:
            share.update(cast(Share, split_counts(control.memories, endpoint.name, share["revision"])))
    desired = sum(endpoint.desired_of(number)[0] for number in endpoint.shares) or endpoint.desired_replicas
    return view(
        Endpoint,
        endpoint,
        state=state,
        label=label(state),
        url=control.url(endpoint.name),
        settings={**endpoint.settings.as_dict(), "env": masked_env(endpoint.settings.env)},
        revision=endpoint.serving,
        traffic=traffic,
        schema=serving.schema if serving else None,
        concurrency=_concurrency(serving) if serving else None,
        replicas=[view(Replica, r, in_flight=control.loads.in_flight(r.id, now)) for r in replicas],
        revisions=[_revision(r) for r in revisions],
        desired_replicas=desired,
        wish=desired,
        wish_reason=endpoint.scaling_reason,
        warm=control.warm(endpoint.name, endpoint.serving),
    )


def divided(endpoint: records.Endpoint, revisions: Collection[records.Revision]) -> list[Share]:
    """The revisions' shares of the requests, the revision that serves first; `wanted` is more while one is promoted."""
    aims = {r.number: r.percent for r in revisions}
    found: list[Share] = []
    for number, percent in endpoint.shares.items():
        wanted = percent if number == endpoint.serving else aims.get(number, percent)
        found.append({"revision": number, "percent": percent, "wanted": wanted})
    if len(found) > 1:
        found[0]["wanted"] = WHOLE - found[1]["wanted"]
    return found


def _revision(revision: records.Revision) -> Revision:
    commit = revision.settings.git.get("commit")
    return view(Revision, revision, commit=commit, concurrency=_concurrency(revision))


def _concurrency(revision: records.Revision) -> Concurrency | None:
    return concurrency(revision.schema, revision.settings.container_concurrency)
