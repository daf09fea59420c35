"""The API's part about sources, runtimes and builds."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool

from puna import names
from puna.config import runtime
from puna.control import views
from puna.control.api import bodies
from puna.control.api.pagination import Paged, cursor
from puna.control.domain.api_keys import restrict
from puna.control.domain.records import Build
from puna.control.operations.context import Control
from puna.packaging import source

Json = dict[str, Any]
MAX_SOURCE_BYTES = 512 * 1024 * 1024


class RuntimeUpload(BaseModel):
    """What `POST /runtimes` takes."""

    model_config = ConfigDict(extra="forbid")
    name: str
    yaml: str


def routes(control: Control) -> APIRouter:
    """The handlers."""
    router = APIRouter()
    _sources(router, control)
    _runtimes(router, control)
    _builds(router, control)
    return router


def _sources(router: APIRouter, control: Control) -> None:
    @router.put("/sources", tags=["sources"])
    async def put_source(request: Request) -> Json:
        """Upload a project folder as tar.gz; the reply's digest is what a deploy names."""
        body = await bodies.read(request, MAX_SOURCE_BYTES, "source", "weights belong in `puna publish`")
        unpacked = await run_in_threadpool(source.unpack, body, control.home)
        return {"digest": unpacked.digest}


def _runtimes(router: APIRouter, control: Control) -> None:
    store = control.store

    @router.post("/runtimes", status_code=202, tags=["runtimes"])
    def post_runtime(body: RuntimeUpload) -> Json:
        """Upload a runtime file; the same content as the newest version makes no new one."""
        names.check("runtime", body.name)
        digest = runtime.parse_text(body.yaml).digest
        made = store.add_runtime(body.name, digest, body.yaml, control.clock())
        control.wake()
        return views.runtime_view(made)

    @router.get("/runtimes", tags=["runtimes"])
    def list_runtimes(page: Paged) -> Json:
        """Every version of every runtime, by name and newest first."""
        return page.show(store.runtimes(), lambda r: (r.name, -r.version), views.runtime_view)


def _builds(router: APIRouter, control: Control) -> None:
    store = control.store

    def _build(build_id: str, request: Request) -> Build:
        build = store.build(build_id)
        restrict(request.state.key, build.subject if build.kind == "revision" else "")
        return build

    @router.get("/builds", tags=["builds"])
    def list_builds(request: Request, page: Paged) -> Json:
        """Every build, newest first."""
        key, position = request.state.key, page.position(float, str) if page.after else ()
        before = (float(position[0]), str(position[1])) if position else None
        mine = None if key is None else key.endpoints
        found = store.builds_page(before, page.limit + 1, mine)
        last = found[page.limit - 1] if len(found) > page.limit else None
        following = cursor(last.created, last.id) if last else None
        return {"items": [views.build_view(b) for b in found[: page.limit]], "next": following}

    @router.get("/builds/{build_id}", tags=["builds"])
    def get_build(build_id: str, request: Request) -> Json:
        """One build: status, steps with seconds, and the error with the failing line."""
        return views.build_view(_build(build_id, request))

    @router.post("/builds/{build_id}/cancel", tags=["builds"])
    def post_cancel(build_id: str, request: Request) -> Json:
        """Cancel a build: a queued one ends at once, a running one within seconds."""
        _build(build_id, request)
        cancelled = store.cancel_build(build_id, control.clock())
        control.wake()
        return views.build_view(cancelled)
