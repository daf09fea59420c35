"""The control plane's JSON API: one FastAPI application; handlers stand by noun in `api_*.py`."""

from __future__ import annotations

import html
import logging
import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response

import puna
from puna.control.api import openapi
from puna.control.api.auth import Authorization, is_open, is_upload, told
from puna.control.api.idempotency import Idempotency
from puna.control.api.methods import Methods
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
    traffic,
    usage,
    volumes,
    webhooks,
)
from puna.control.api.texts import Texts
from puna.control.operations.context import Control, _nothing
from puna.control.resources.secrets import Secrets
from puna.control.store.store import Store
from puna.control.telemetry.load import Loads
from puna.control.telemetry.vitals import OK
from puna.errors import PunaError, QueueFullError, UsageError
from puna.home import Home

LOG = logging.getLogger("puna.api")


def create_app(
    store: Store,
    home: Home,
    *,
    loads: Loads | None = None,
    base_url: str = "http://127.0.0.1:8000",
    wake: Callable[[], None] = _nothing,
    control: Control | None = None,
) -> FastAPI:
    """The application. `wake` is called when a build was queued; `control`, when given, stands for all the others."""
    if control is None:
        control = Control(store, home, loads or Loads(), Secrets(store, home.key), base_url, wake)
    app = FastAPI(
        title="Puna",
        version=puna.__version__,
        docs_url=None,  # Swagger's page loads its scripts from other machines; /api/docs is our own
        redoc_url=None,
        openapi_url="/api/openapi.json",
        generate_unique_id_function=openapi.operation_id,
    )
    app.state.control = control
    for part in (
        endpoints,
        traffic,
        sources,
        webhooks,
        builds,
        keys,
        volumes,
        models,
        runtimes,
        runs,
        live,
        usage,
        logs,
        machine,
        console,
    ):
        app.include_router(part.routes(control), prefix="/api/v1")
    app.include_router(platform.routes(control), prefix=platform.PREFIX, include_in_schema=False)
    app.include_router(internal.routes(control), prefix="/internal", include_in_schema=False)
    app.include_router(console.pages())
    app.add_exception_handler(PunaError, _puna_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)
    app.add_middleware(Texts, streams=is_upload)
    app.add_middleware(Idempotency, control=control)  # what is added last is asked first
    app.add_middleware(Authorization, control=control)
    app.add_middleware(Methods, document=app.openapi)
    _about(app, control)
    openapi.complete(app, is_open)
    return app


def _about(app: FastAPI, control: Control) -> None:
    """Addresses about the API itself."""

    @app.get("/api/v1/health", tags=["health"])
    async def health() -> JSONResponse:
        """What of it works, which version it is, and where the gateway is called; 503 when a part does not work."""
        parts = control.vitals.parts(time.monotonic()) if control.vitals else {}
        is_well = all(state == OK for state in parts.values())
        told = {"status": OK if is_well else "failing", "version": puna.__version__, "url": control.base_url}
        return JSONResponse({**told, "parts": parts}, 200 if is_well else 503)

    @app.get("/api/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_docs(app.openapi()))


async def _puna_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PunaError)  # registered for no other
    reply = told(request.url.path, error.as_json(), error.http_status)
    if isinstance(error, QueueFullError):
        reply.headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    return reply


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # registered for no other
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    problem = UsageError(f"`{where or 'body'}`: {first['msg']}", "see /api/docs")
    return told(request.url.path, problem.as_json(), problem.http_status)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # registered for no other
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http")
    body = {"error": {"code": code, "message": str(error.detail), "hint": "see /api/docs"}}
    return JSONResponse(body, error.status_code, headers=dict(error.headers or {}))


async def _unexpected(request: Request, error: Exception) -> Response:
    LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    body = {"error": {"code": "internal", "message": f"{type(error).__name__}: {error}", "hint": "see `puna logs`"}}
    return told(request.url.path, body, 500)


def _docs(schema: dict[str, Any]) -> str:
    """One plain page that lists the routes: nothing is loaded from anywhere."""
    rows = []
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            cells = (method.upper(), path, route.get("description") or route.get("summary", ""))
            rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    return (
        "<!doctype html><meta charset=utf-8><title>Puna API</title>"
        "<style>body{font:15px system-ui;margin:2rem}td{padding:.2rem .8rem;vertical-align:top}"
        "td:nth-child(-n+2){font-family:monospace}</style>"
        '<h1>Puna API</h1><p>The same as OpenAPI: <a href="/api/openapi.json">/api/openapi.json</a>. '
        "Send <code>Authorization: Bearer puna_...</code>.</p><table>" + "".join(rows) + "</table>"
    )
