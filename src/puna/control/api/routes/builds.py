"""Builds: look, follow their logs, cancel."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from typing_extensions import TypedDict

from puna.control.api.query import Listed, Paged, cursor
from puna.control.api.routes.logs import MAX_LINES, PLAIN, UNBUFFERED, Lines, Search
from puna.control.api.routing import Right, Routes
from puna.control.domain import records
from puna.control.domain.api_keys import restrict
from puna.control.domain.records import Step, view
from puna.control.domain.states import UNENDED, BuildState
from puna.control.operations.context import Control
from puna.control.telemetry import log_files
from puna.control.telemetry.log_files import LineFilter, build_log, last_lines

Json = dict[str, Any]
BuildId = Annotated[str, Path(json_schema_extra={"pattern": "^[0-9a-f]{12}$"})]


class Build(TypedDict):
    """One run of the builder."""

    id: str
    kind: str
    """`revision`, `runtime`, `merge` or `publish`."""
    subject: str
    """The endpoint's, the runtime's or the training run's name."""
    number: int
    """The revision's number or the runtime's version; 0 for a run."""
    status: BuildState
    created: float
    steps: list[Step]
    error: str
    hint: str
    detail: str
    arguments: Json
    """What a merge or a publishing was told."""


def routes(control: Control) -> Routes:
    """The handlers."""
    route, store = Routes("builds"), control.store

    def found(build_id: str, request: Request) -> records.Build:
        build = store.build(build_id)
        restrict(request.state.key, build.subject if build.kind == "revision" else "")
        return build

    @route("GET /builds", Right.OWN)
    def list_builds(request: Request, page: Paged) -> Listed[Build]:
        """Every build, newest first."""
        key, position = request.state.key, page.position(float, str) if page.after else ()
        before = (float(position[0]), str(position[1])) if position else None
        builds = store.builds_page(before, page.limit + 1, None if key is None else key.endpoints)
        last = builds[page.limit - 1] if len(builds) > page.limit else None
        following = cursor(last.created, last.id) if last else None
        return {"items": [build_view(b) for b in builds[: page.limit]], "next": following}

    @route("GET /builds/{build_id}", Right.OWN)
    def get_build(build_id: BuildId, request: Request) -> Build:
        """One build: status, steps with seconds, and the error with the failing line."""
        return build_view(found(build_id, request))

    @route("POST /builds/{build_id}/cancel", Right.OWN)
    def post_cancel(build_id: BuildId, request: Request) -> Build:
        """Cancel a build: a queued one ends at once, a running one within seconds."""
        found(build_id, request)
        cancelled = store.cancel_build(build_id, control.clock())
        control.wake()
        return build_view(cancelled)

    @route("GET /builds/{build_id}/log", Right.OWN, PLAIN)
    def get_build_log(
        build_id: BuildId, request: Request, follow: bool = False, search: Search = "", lines: Lines = MAX_LINES
    ) -> Response:
        """A build's output; with `follow=1` until the build ends, with `search` the lines that have it in them."""
        found(build_id, request)
        path = build_log(control.home, build_id)
        if follow and not search:
            lines_to_come = log_files.follow(path, lambda: store.build(build_id).state not in UNENDED)
            return StreamingResponse(lines_to_come, media_type="text/plain", headers=UNBUFFERED)
        return PlainTextResponse(last_lines(path, lines, LineFilter(search)))

    return route


def build_view(build: records.Build) -> Build:
    """One build."""
    return view(Build, build, status=build.state)
