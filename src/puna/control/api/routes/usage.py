"""Use: requests and GPU-seconds by endpoint, key, day and hour, as JSON and CSV."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from puna.control.api.query import moment
from puna.control.api.routing import Answer, Right, Routes
from puna.control.domain.api_keys import restrict, visible
from puna.control.domain.records import Key
from puna.control.operations.context import Control
from puna.control.telemetry import usage_report
from puna.control.telemetry.usage_report import Sums, Used

SINCE = "30d"
EVERYTHING = "hour,endpoint,key"


class Usage(TypedDict):
    """Use, added up; a sum of as many rows as there are groups, so it has no pages."""

    items: list[Used]
    total: Sums
    since: float
    until: float
    by: list[str]


def routes(control: Control) -> Routes:
    """The handlers."""
    route = Routes("usage")

    def look(key: Key | None, since: str, until: str, by: str, endpoint: str) -> Usage:
        words, now = usage_report.grouping(by), control.clock()
        first, last = moment(since or SINCE, now), moment(until, now) if until else now
        if endpoint:
            restrict(key, endpoint)
        control.store.meter(now)
        rows = [row for row in control.store.usage(first, last, endpoint or None) if visible(key, row.endpoint)]
        items = usage_report.add_up(rows, words)
        return {"items": items, "total": usage_report.total(items), "since": first, "until": last, "by": list(words)}

    @route("GET /usage", Right.OWN)
    def get_usage(
        request: Request, since: str = SINCE, until: str = "", by: str = "endpoint", endpoint: str = ""
    ) -> Usage:
        """Requests, those that failed, seconds of `infer` and GPU-seconds, by whole hours in UTC.

        `by` is one or more of endpoint, key, day and hour, with commas; `since` and `until` are `7d` ago, ISO 8601 or
        Unix seconds. `key` is a key's id: empty are requests without one, and GPU time of hours without requests.
        """
        return look(request.state.key, since, until, by, endpoint)

    @route("GET /usage.csv", Right.OWN, Answer(model="text/csv"))
    def get_usage_csv(
        request: Request, since: str = SINCE, until: str = "", by: str = EVERYTHING, endpoint: str = ""
    ) -> Response:
        """The same as a table for spreadsheets."""
        text = usage_report.as_csv(look(request.state.key, since, until, by, endpoint)["items"])
        headers = {"content-disposition": 'attachment; filename="usage.csv"'}
        return Response(text, media_type="text/csv", headers=headers)

    return route
