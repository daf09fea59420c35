"""Logs of endpoints: the last lines, those that are searched for, those that come."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le
from fastapi import Depends, Query
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from typing_extensions import TypedDict

from puna.control.api.query import Listed, Paged, moment
from puna.control.api.routes.endpoints import EndpointName
from puna.control.api.routing import Answer, Right, Routes
from puna.control.domain.records import view
from puna.control.operations.context import Control
from puna.control.telemetry.log_files import LineFilter, StoredLine, View, iso

MAX_LINES = 100_000
UNBUFFERED = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
"""Headers of a reply that grows: proxies must hand on each piece as it comes, and not gather them to compress."""
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
PLAIN = Answer(model="text/plain")


class LogLine(TypedDict):
    """A line that an app, or Puna beside it, has printed."""

    at: str
    """ISO 8601 in UTC."""
    replica: str
    stream: str
    """`stdout` or `stderr`."""
    request: str | None
    """The id of the call during which it was printed."""
    text: str


def routes(control: Control) -> Routes:
    """The handlers."""
    route = Routes("endpoints")

    def view(name: str, asked: LogQuery, times: bool = False) -> View:
        control.store.endpoint(name)
        now = control.clock()
        since, until = (iso(moment(text, now)) if text else "" for text in (asked.since, asked.until))
        wanted = LineFilter(asked.search, asked.request, since, until)
        return View(control.home, name, asked.replica, wanted, times)

    @route("GET /endpoints/{name}/logs", Right.ENDPOINT, PLAIN)
    def get_logs(
        name: EndpointName, asked: Which, follow: bool = False, lines: Lines = 200, times: bool = False
    ) -> Response:
        """The last lines that the app printed, and with `follow=1` those that come.

        Of them those with `search` in them, those of the call of id `request`, those written `since` and `until`.
        """
        found = view(name, asked, times)
        if not follow:
            return PlainTextResponse(found.tail(lines))
        return StreamingResponse(found.follow(lines), media_type="text/plain", headers=UNBUFFERED)

    @route("GET /endpoints/{name}/logs/lines", Right.ENDPOINT)
    def list_log_lines(name: EndpointName, page: Paged, asked: Which) -> Listed[LogLine]:
        """The same as items with time, replica, stream and request id, the newest first."""
        found, following = view(name, asked).page(page.limit, page.after)
        return {"items": [_shown(line) for line in found], "next": following or None}

    return route


def _shown(line: StoredLine) -> LogLine:
    of = REQUEST.match(line.text)
    return view(LogLine, line, replica=line.source, request=of[1] if of else None)
