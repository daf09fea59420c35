"""The control plane's JSON API: one FastAPI application; its routes stand by noun in `routes/`."""

from __future__ import annotations

import html
import logging
import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute
from typing_extensions import TypedDict

import puna
from puna.control.api import openapi
from puna.control.api.auth import Authorization, error_response
from puna.control.api.bodies import Texts
from puna.control.api.idempotency import Idempotency
from puna.control.api.routes import (
    builds,
    console,
    endpoints,
    internal,
    keys,
    live,
    logs,
    machine,
    models,
    platform,
    runs,
    runtimes,
    sources,
    usage,
    volumes,
    webhooks,
)
from puna.control.api.routing import Answer, Json, Methods, Right, Routes, declared
from puna.control.operations.context import Control
from puna.control.telemetry.vitals import OK
from puna.errors import PunaError, QueueFullError, UsageError

LOG = logging.getLogger("puna.api")


def create_app(control: Control) -> FastAPI:
    """The application over a control plane's parts."""
    routes: list[BaseRoute] = [route for part in PARTS for route in part(control)]
    # On the application itself: FastAPI builds the routes of an included router twice. Without a URL for its pages:
    # Swagger's loads its scripts from other machines, and /api/docs is our own.
    app = FastAPI(
        title="Puna", version=puna.__version__, docs_url=None, redoc_url=None, openapi_url=None, routes=routes
    )
    app.state.control = control
    _about(app, control)
    app.add_exception_handler(PunaError, _puna_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)
    found = declared(app.routes)
    app.add_middleware(Texts)
    app.add_middleware(Idempotency, control=control)  # what is added last is asked first
    app.add_middleware(Authorization, control=control, routes=found)
    app.add_middleware(Methods, routes=found)
    openapi.complete(app)
    return app


PARTS = (
    *(endpoints.routes, sources.routes, webhooks.routes, builds.routes, keys.routes, volumes.routes, models.routes),
    *(runtimes.routes, runs.routes, live.routes, usage.routes, logs.routes, machine.routes, console.routes),
    *(platform.routes, internal.routes, console.pages),
)


class Health(TypedDict):
    """The health of this Puna, its version and address."""

    status: str
    """`ok`, or `failing` with HTTP status 503."""
    parts: dict[str, str]
    """`ok`, or what is wrong with it: database, loops, handlers, gateways, sockets, replicas."""
    version: str
    url: str
    """Where the gateway is called."""


def _about(app: FastAPI, control: Control) -> None:
    """Addresses about the API itself."""
    route, page = Routes("health"), Routes(prefix="/api")

    @route("GET /health", Right.OPEN, Answer(model=Health))
    async def health() -> Json:
        """Say which parts work, the version and the gateway's address; 503 when a part does not work."""
        parts = control.vitals.parts(time.monotonic()) if control.vitals else {}
        status = "ok" if all(state == OK for state in parts.values()) else "failing"
        shown: Health = {"status": status, "version": puna.__version__, "url": control.base_url, "parts": dict(parts)}
        return Json(shown, 200 if status == "ok" else 503)

    @page("GET /docs", Right.OPEN)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_docs(app.openapi()))

    @page("GET /openapi.json", Right.OPEN)
    async def document() -> dict[str, Any]:
        return app.openapi()

    app.router.routes += [*route, *page]


async def _puna_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PunaError)  # registered for no other
    reply = error_response(request.url.path, error.as_json(), error.http_status)
    if isinstance(error, QueueFullError):
        reply.headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    return reply


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # registered for no other
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    problem = UsageError(f"`{where or 'body'}`: {first['msg']}", "see /api/docs")
    return error_response(request.url.path, problem.as_json(), problem.http_status)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # registered for no other
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http")
    body = {"error": {"code": code, "message": str(error.detail), "hint": "see /api/docs"}}
    return JSONResponse(body, error.status_code, headers=dict(error.headers or {}))


async def _unexpected(request: Request, error: Exception) -> Response:
    LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    body = {"error": {"code": "internal", "message": f"{type(error).__name__}: {error}", "hint": "see `puna logs`"}}
    return error_response(request.url.path, body, 500)


def _docs(schema: dict[str, Any]) -> str:
    """One plain page that lists the routes: nothing is loaded from anywhere."""
    rows = []
    for path, method, operation in openapi.operations(schema):
        cells = (method.upper(), path, operation.get("description") or operation.get("summary", ""))
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    return (
        "<!doctype html><meta charset=utf-8><title>Puna API</title>"
        "<style>body{font:15px system-ui;margin:2rem}td{padding:.2rem .8rem;vertical-align:top}"
        "td:nth-child(-n+2){font-family:monospace}</style>"
        '<h1>Puna API</h1><p>The same as OpenAPI: <a href="/api/openapi.json">/api/openapi.json</a>. '
        "Send <code>Authorization: Bearer puna_...</code>.</p><table>" + "".join(rows) + "</table>"
    )
