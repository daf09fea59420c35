"""The API's part about endpoints: deploy, look, change, roll back, read logs, delete."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from puna.control import views
from puna.control.api import pagination
from puna.control.api.bodies import Number
from puna.control.api.pagination import Paged
from puna.control.api.routes.sources import ModelName, Repository, wanted_model
from puna.control.domain.api_keys import owner, restrict, visible
from puna.control.domain.records import WHOLE, Endpoint, Replica, Revision
from puna.control.operations import deploys
from puna.control.operations import deploys as traffic
from puna.control.operations.context import Control
from puna.control.operations.deploys import DeployRequest
from puna.control.telemetry import shares

Json = dict[str, Any]


class Deploy(BaseModel):
    """What `POST /endpoints` takes: a `source`, a `git` repository, or a `model`."""

    model_config = ConfigDict(extra="forbid")
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


class Rollback(BaseModel):
    """What `POST /endpoints/{name}/rollback` takes."""

    model_config = ConfigDict(extra="forbid")
    revision: Number | None = None


def routes(control: Control) -> APIRouter:
    """The handlers."""
    router = APIRouter(tags=["endpoints"])
    _looking(router, control)
    _changing(router, control)
    return router


def _looking(router: APIRouter, control: Control) -> None:
    store = control.store

    @router.get("/endpoints")
    def list_endpoints(request: Request, page: Paged) -> Json:
        """Every endpoint, by name."""
        mine = [e for e in store.endpoints() if visible(request.state.key, e.name)]
        revisions, replicas = store.revisions(), store.replicas()  # read once: one by one they are 2 ms an endpoint

        def shown(endpoint: Endpoint) -> Json:
            ours = [r for r in revisions if r.endpoint == endpoint.name]
            return _show(control, endpoint, ours, [r for r in replicas if r.endpoint == endpoint.name])

        return page.show(mine, lambda e: (e.name,), shown)

    @router.get("/endpoints/{name}")
    def get_endpoint(name: str) -> Json:
        """One endpoint: state, settings, replicas, revisions."""
        return show(control, store.endpoint(name))

    @router.get("/endpoints/{name}/events")
    def list_events(name: str, page: Paged, order: Literal["oldest", "newest"] = "oldest") -> Json:
        """What happened to an endpoint, the oldest or the newest first; `after` is an event's id."""
        store.endpoint(name)
        after = pagination.number(page.after)
        found = store.events_page(name, after, page.limit + 1, newest_first=order == "newest")
        following = str(found[page.limit - 1].id) if len(found) > page.limit else None
        return {"items": [views.event_view(e) for e in found[: page.limit]], "next": following}


def _changing(router: APIRouter, control: Control) -> None:
    store = control.store

    @router.post("/endpoints", status_code=202)
    async def post_endpoint(body: Deploy, request: Request) -> Json:
        """Deploy a source, a repository's newest commit or a model; the same as now makes no new revision."""
        restrict(request.state.key, body.name)
        git = body.git.model_dump() if body.git else None
        model = wanted_model(body.model) if body.model is not None else None
        wanted = DeployRequest(body.name, body.source, git, model, body.runtime, body.runtime_version, body.settings)
        wanted = dataclasses.replace(wanted, percent=body.traffic)
        call = partial(deploys.deploy, control, wanted, request.state.key)
        return await _asking(control, request, call, asks=wanted.source is None)

    @router.patch("/endpoints/{name}")
    def patch_endpoint(name: str, body: dict[str, Any], request: Request) -> Json:
        """Change settings: those of scaling act at once, the others as a new revision that needs no build."""
        made = deploys.patch(control, name, body, request.state.key)
        return show(control, store.endpoint(name)) | {"changed_revision": made}

    @router.post("/endpoints/{name}/activate")
    def post_activate(name: str) -> Json:
        """Serve again; replicas start when requests come, or at once up to min_replica."""
        return show(control, store.set_active(name, True, control.clock()))

    @router.post("/endpoints/{name}/deactivate")
    def post_deactivate(name: str) -> Json:
        """Stop every replica and refuse requests."""
        return show(control, store.set_active(name, False, control.clock()))

    @router.post("/endpoints/{name}/rebuild", status_code=202)
    async def post_rebuild(name: str, request: Request) -> Json:
        """Build again, as a new revision: a repository's newest commit, or the newest revision's source."""
        endpoint = await run_in_threadpool(store.endpoint, name)
        call = partial(deploys.rebuild, control, name, key=request.state.key)
        return await _asking(control, request, call, asks=bool(endpoint.settings.git))

    @router.post("/endpoints/{name}/rollback", status_code=202)
    def post_rollback(name: str, body: Rollback | None = None) -> Json:
        """Take a split away; or serve an earlier revision again, rolled out like a new one."""
        revision = store.revision(name, traffic.roll_back(control, name, body.revision if body else None))
        return {"endpoint": name, "revision": revision.number, "build_id": revision.build_id, "unchanged": False}

    @router.delete("/endpoints/{name}")
    def delete_endpoint(name: str) -> Json:
        """Delete an endpoint in whatever state it is; its replicas are stopped and its builds cancelled."""
        store.delete_endpoint(name, control.clock())
        control.wake()
        return {"deleted": name}


async def _asking(control: Control, request: Request, call: Callable[[], Json], asks: bool) -> Json:
    """Do what may ask other machines: then among those that do, else as any handler."""
    if asks:
        return await control.fetches.run(owner(request.state.key), call)
    return await run_in_threadpool(call)


def show(control: Control, endpoint: Endpoint) -> Json:
    """One endpoint with all that belongs to it."""
    store, name = control.store, endpoint.name
    return _show(control, endpoint, store.revisions(name), store.replicas(name))


def _show(control: Control, endpoint: Endpoint, revisions: list[Revision], replicas: list[Replica]) -> Json:
    now = control.steady()
    in_flight = {r.id: control.loads.in_flight(r.id, now) for r in replicas}
    view = views.endpoint_view(endpoint, revisions, replicas, control.url(endpoint.name), in_flight)
    if endpoint.split is not None:
        for one in view["traffic"]:
            one |= shares.figures(control.memories, endpoint.name, one["revision"])
    return view | {"warm": control.warm(endpoint.name, endpoint.serving)}
