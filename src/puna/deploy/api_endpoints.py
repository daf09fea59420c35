"""The API's part about endpoints: deploy, look, change, roll back, read logs, delete."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from puna.backends import mounts
from puna.deploy import settings as reading
from puna.deploy import sources, views
from puna.deploy.control import Control
from puna.deploy.keys import restrict, visible
from puna.deploy.logs import follow_replicas, tail_replicas
from puna.deploy.records import Endpoint, Order, Revision, Settings
from puna.deploy.settings import check_name
from puna.deploy.states import PENDING, BuildState, RevisionState
from puna.deploy.volumes import Volumes
from puna.errors import ConflictError, NotFoundError

Json = dict[str, Any]


class Deploy(BaseModel):
    """What `POST /endpoints` takes."""

    model_config = ConfigDict(extra="forbid")
    name: str
    source: str
    runtime: str | None = None
    runtime_version: int | None = None
    settings: dict[str, Any] = Field(default_factory=dict)


class Rollback(BaseModel):
    """What `POST /endpoints/{name}/rollback` takes."""

    model_config = ConfigDict(extra="forbid")
    revision: int | None = None


def routes(control: Control) -> APIRouter:
    """The handlers."""
    router = APIRouter(tags=["endpoints"])
    _looking(router, control)
    _changing(router, control)
    return router


def _looking(router: APIRouter, control: Control) -> None:
    store = control.store

    @router.get("/endpoints")
    def list_endpoints(request: Request) -> Json:
        """Every endpoint."""
        return {"items": [show(control, e) for e in store.endpoints() if visible(request.state.key, e.name)]}

    @router.get("/endpoints/{name}")
    def get_endpoint(name: str) -> Json:
        """One endpoint: state, settings, replicas, revisions."""
        return show(control, store.endpoint(name))

    @router.get("/endpoints/{name}/events")
    def get_events(name: str, after: int = 0, limit: int = 500) -> Json:
        """What happened to an endpoint, oldest first; `after` an event's id."""
        store.endpoint(name)
        return {"items": [views.event_view(e) for e in store.events(name, after, min(max(limit, 1), 5000))]}

    @router.get("/endpoints/{name}/logs")
    def get_logs(name: str, follow: bool = False, lines: int = 200, replica: str | None = None) -> Response:
        """What the app printed: the last lines, and with `follow=1` those that come."""
        store.endpoint(name)
        lines = min(max(lines, 0), 100_000)
        text = tail_replicas(control.home, name, replica, lines)
        if not follow:
            return PlainTextResponse(text)
        return StreamingResponse(follow_replicas(control.home, name, replica, lines), media_type="text/plain")


def _changing(router: APIRouter, control: Control) -> None:
    store = control.store

    @router.post("/endpoints", status_code=202)
    def post_endpoint(body: Deploy, request: Request) -> Json:
        """Deploy a source; the same source, runtime and settings as now make no new revision."""
        restrict(request.state.key, body.name)
        return deploy(control, body)

    @router.patch("/endpoints/{name}")
    def patch_endpoint(name: str, body: dict[str, Any]) -> Json:
        """Change settings: those of scaling act at once, the others as a new revision that needs no build."""
        return patch(control, name, body)

    @router.post("/endpoints/{name}/activate")
    def post_activate(name: str) -> Json:
        """Serve again; replicas start when requests come, or at once up to min_replica."""
        return show(control, store.set_active(name, True, control.clock()))

    @router.post("/endpoints/{name}/deactivate")
    def post_deactivate(name: str) -> Json:
        """Stop every replica and refuse requests."""
        return show(control, store.set_active(name, False, control.clock()))

    @router.post("/endpoints/{name}/rebuild", status_code=202)
    def post_rebuild(name: str) -> Json:
        """Build the newest revision's source again, as a new revision."""
        endpoint = store.endpoint(name)
        newest = next(iter(store.revisions(name)), None)
        if newest is None:
            raise ConflictError(f"`{name}` has nothing to rebuild", "`puna deploy FOLDER`")
        order = Order(newest.source, newest.runtime, newest.runtime_version, endpoint.settings)
        return _build(control, name, order)

    @router.post("/endpoints/{name}/rollback", status_code=202)
    def post_rollback(name: str, body: Rollback | None = None) -> Json:
        """Serve an earlier revision again, rolled out like a new one."""
        revision = store.roll_back(name, body.revision if body else None, control.clock())
        return {"endpoint": name, "revision": revision.number, "build_id": revision.build_id, "unchanged": False}

    @router.delete("/endpoints/{name}")
    def delete_endpoint(name: str) -> Json:
        """Delete an endpoint in whatever state it is; its replicas are stopped and its builds cancelled."""
        store.cancel_builds_of(name, control.clock())
        control.wake()
        store.delete_endpoint(name, control.clock())
        return {"deleted": name}


def show(control: Control, endpoint: Endpoint) -> Json:
    """One endpoint with all that belongs to it."""
    store, now = control.store, control.clock()
    replicas = store.replicas(endpoint.name)
    in_flight = {r.id: control.loads.in_flight(r.id, now) for r in replicas}
    view = views.endpoint_view(
        endpoint, store.revisions(endpoint.name), replicas, control.url(endpoint.name), in_flight
    )
    return view | {"warm": control.warm(endpoint.name, endpoint.serving)}


def deploy(control: Control, body: Deploy) -> Json:
    """Queue a new revision, or find that the newest is the same.

    Raises:
        UsageError: a name or setting that makes no sense.
        NotFoundError: no such source, runtime, secret or volume.
        MachineError: a volume cannot be mounted where it should.
        ConflictError: the runtime's environment could not be built.
    """
    store, now = control.store, control.clock()
    check_name(body.name, "endpoint")
    source = sources.find(control.home, body.source).digest
    before = next((e for e in store.endpoints() if e.name == body.name), None)
    kept = dataclasses.replace(before.settings, replace=False) if before else None
    settings = reading.parse(body.settings, kept)
    _check_parts(control, settings)
    version = _runtime_version(control, body)
    order = Order(source, body.runtime, version, settings)
    same = store.unchanged(body.name, order)
    store.save_endpoint(body.name, settings, now)
    if same is not None:
        return {"endpoint": body.name, "revision": same.number, "build_id": same.build_id, "unchanged": True}
    return _build(control, body.name, order)


def _build(control: Control, name: str, order: Order) -> Json:
    now = control.clock()
    revision = control.store.add_revision(name, order, now)
    build = control.store.add_build("revision", name, revision.number, now)
    control.wake()
    return {"endpoint": name, "revision": revision.number, "build_id": build.id, "unchanged": False}


def _runtime_version(control: Control, body: Deploy) -> int | None:
    if body.runtime is None:
        return None
    runtime = control.store.runtime(body.runtime, body.runtime_version)
    if runtime.state in (BuildState.FAILED, BuildState.CANCELLED):
        raise ConflictError(
            f"runtime `{runtime.name}` version {runtime.version}: its build {runtime.state}",
            f"`puna runtime upload FILE --name {runtime.name}` builds it again",
        )
    return runtime.version


def _check_parts(control: Control, settings: Settings) -> None:
    """What the app needs must be there before anything is built or started for it."""
    mounts.check(Volumes(control.home).mounted(settings.volumes))
    known = control.store.secrets()
    for name in settings.secrets:
        if name not in known:
            raise NotFoundError(f"there is no secret `{name}`", f"`puna secret set {name} KEY=VALUE`")


def patch(control: Control, name: str, values: Json) -> Json:
    """Change settings of an endpoint; the reply is the endpoint, with `changed_revision` when one was made.

    Raises:
        UsageError: a setting that makes no sense.
    """
    store, now = control.store, control.clock()
    endpoint = store.endpoint(name)
    settings = reading.parse(values, endpoint.settings)
    _check_parts(control, settings)
    store.save_endpoint(name, settings, now, active=None)
    made = None
    if settings.launch != endpoint.settings.launch:
        made = _revise(control, name, settings)
    return show(control, store.endpoint(name)) | {"changed_revision": made}


def _revise(control: Control, name: str, settings: Settings) -> int | None:
    """A revision as the newest one that is alive, with other settings; what has been built is not built again."""
    alive = [r for r in control.store.revisions(name) if r.state in PENDING or r.state is RevisionState.SERVING]
    base: Revision | None = max(alive, key=lambda r: r.asked, default=None)
    if base is None:
        return None
    order = Order(base.source, base.runtime, base.runtime_version, settings)
    if not base.bundle:
        return int(_build(control, name, order)["revision"])
    return control.store.add_revision(name, order, control.clock(), copy_of=base).number
