"""The API's part about use: requests and GPU-seconds by endpoint, key, day and hour, as JSON and CSV."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from puna.control.api.moments import moment
from puna.control.domain.api_keys import restrict, visible
from puna.control.domain.records import Key
from puna.control.operations.context import Control
from puna.control.telemetry import usage_report

Json = dict[str, Any]
SINCE = "30d"
EVERYTHING = "hour,endpoint,key"


def routes(control: Control) -> APIRouter:
    """The handlers."""
    router = APIRouter(tags=["usage"])

    def look(key: Key | None, since: str, until: str, by: str, endpoint: str) -> Json:
        words, now = usage_report.grouping(by), control.clock()
        first, last = moment(since or SINCE, now), moment(until, now) if until else now
        if endpoint:
            restrict(key, endpoint)
        control.store.meter(now)
        rows = [row for row in control.store.usage(first, last, endpoint or None) if visible(key, row.endpoint)]
        items = usage_report.add_up(rows, words)
        return {"items": items, "total": usage_report.total(items), "since": first, "until": last, "by": list(words)}

    @router.get("/usage")
    def get_usage(
        request: Request, since: str = SINCE, until: str = "", by: str = "endpoint", endpoint: str = ""
    ) -> Json:
        """Requests, those that failed, seconds of `infer` and GPU-seconds, by whole hours in UTC.

        `by` is one or more of endpoint, key, day and hour, with commas; `since` and `until` are `7d` ago, ISO 8601 or
        Unix seconds. `key` is a key's id: empty are requests without one, and GPU time of hours without requests.
        """
        return look(request.state.key, since, until, by, endpoint)

    @router.get("/usage.csv", response_class=Response, responses={200: {"content": {"text/csv": {}}}})
    def get_usage_csv(
        request: Request, since: str = SINCE, until: str = "", by: str = EVERYTHING, endpoint: str = ""
    ) -> Response:
        """The same as a table for spreadsheets."""
        text = usage_report.as_csv(look(request.state.key, since, until, by, endpoint)["items"])
        headers = {"content-disposition": 'attachment; filename="usage.csv"'}
        return Response(text, media_type="text/csv", headers=headers)

    return router
