"""The API's part about logs: the last lines of endpoints and builds, those that are searched for, those that come."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Le
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from puna.control.api.moments import moment
from puna.control.api.pagination import Paged
from puna.control.domain.api_keys import restrict
from puna.control.domain.states import BuildState
from puna.control.operations.context import Control
from puna.control.telemetry import log_lines
from puna.control.telemetry.log_files import View, build_log, follow, last_lines
from puna.control.telemetry.log_lines import LineFilter, StoredLine

Json = dict[str, Any]
MAX_LINES = 100_000
UNBUFFERED = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
"""Headers of a reply that grows: proxies must hand on each piece as it comes, and not gather them to compress."""
UNENDED = (BuildState.QUEUED, BuildState.RUNNING)
REQUEST = re.compile(r"(?:puna: )?\[([A-Za-z0-9_.:-]{1,64})\] ")
Lines = Annotated[int, Ge(0), Le(MAX_LINES)]
Search = Annotated[str, Query(max_length=1000)]


@dataclass(frozen=True)
class LogQuery:
    """Which lines of an endpoint's logs."""

    replica: str | None = None
    search: Search = ""
    request: Annotated[str, Query(max_length=64)] = ""
    since: str = ""
    until: str = ""


Which = Annotated[LogQuery, Depends()]
TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}}}


def routes(control: Control) -> APIRouter:
    """The handlers."""
    router = APIRouter()
    _endpoints(router, control)
    _builds(router, control)
    return router


def _endpoints(router: APIRouter, control: Control) -> None:
    def view(name: str, asked: LogQuery, times: bool = False) -> View:
        control.store.endpoint(name)
        now = control.clock()
        since, until = (log_lines.iso(moment(text, now)) if text else "" for text in (asked.since, asked.until))
        wanted = LineFilter(asked.search, asked.request, since, until)
        return View(control.home, name, asked.replica, wanted, times)

    @router.get("/endpoints/{name}/logs", tags=["endpoints"], response_class=PlainTextResponse, responses=TEXT)
    def get_logs(name: str, asked: Which, follow: bool = False, lines: Lines = 200, times: bool = False) -> Response:
        """What the app printed: the last lines, and with `follow=1` those that come.

        Of them those with `search` in them, those of the call of id `request`, those written `since` and `until`.
        """
        found = view(name, asked, times)
        if not follow:
            return PlainTextResponse(found.tail(lines))
        return StreamingResponse(found.follow(lines), media_type="text/plain", headers=UNBUFFERED)

    @router.get("/endpoints/{name}/logs/lines", tags=["endpoints"])
    def list_log_lines(name: str, page: Paged, asked: Which) -> Json:
        """The same as items with time, replica, stream and request id, the newest first."""
        found, following = view(name, asked).page(page.limit, page.after)
        return {"items": [_item(line) for line in found], "next": following or None}


def _item(line: StoredLine) -> Json:
    request = REQUEST.match(line.text)
    about = {"at": line.at, "replica": line.source, "stream": line.stream}
    return about | {"request": request[1] if request else None, "text": line.text}


def _builds(router: APIRouter, control: Control) -> None:
    @router.get("/builds/{build_id}/log", tags=["builds"], response_class=PlainTextResponse, responses=TEXT)
    def get_build_log(
        build_id: str, request: Request, follow: bool = False, search: Search = "", lines: Lines = MAX_LINES
    ) -> Response:
        """A build's output; with `follow=1` until the build ends, with `search` the lines that have it in them."""
        build = control.store.build(build_id)
        restrict(request.state.key, build.subject if build.kind == "revision" else "")
        if follow and not search:
            return StreamingResponse(_follow(control, build_id), media_type="text/plain", headers=UNBUFFERED)
        path = build_log(control.home, build_id)
        return PlainTextResponse(last_lines(path, lines, LineFilter(search)))


def _follow(control: Control, build_id: str) -> AsyncIterator[bytes]:
    def ended() -> bool:
        return control.store.build(build_id).state not in UNENDED

    return follow(build_log(control.home, build_id), ended)
