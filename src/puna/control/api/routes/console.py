"""The API's part that lets a browser in: one-time links, each of which becomes a key that ends by itself."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
import threading
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from puna.config import runtime, schema
from puna.console.assets import Answer, Assets
from puna.control import views
from puna.control.domain import api_keys
from puna.control.domain.api_keys import restrict
from puna.control.operations import deploys
from puna.control.operations.context import Control
from puna.control.resources import revision_files
from puna.errors import ForbiddenError, PunaError, UnauthorizedError
from puna.packaging import source

Json = dict[str, Any]
LINK_LIVES_S = 15 * 60.0
SESSION_LIVES_S = 12 * 3600.0
MOST_LINKS = 64


class NewSession(BaseModel):
    """What `POST /console/sessions` takes; the token never stands in a URL that is sent."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)
    token: str


class RuntimeText(BaseModel):
    """What `POST /lint/runtime` takes."""

    model_config = ConfigDict(extra="forbid")
    yaml: str


class PlannedDeploy(BaseModel):
    """What `POST /lint/settings` takes."""

    model_config = ConfigDict(extra="forbid")
    name: str
    settings: dict[str, Any] = Field(default_factory=dict)


class Links:
    """One-time tokens, as digests, in memory only: a restart forgets them. Times are of the monotonic clock."""

    def __init__(self) -> None:
        """None yet."""
        self._lock = threading.Lock()
        self._expires: dict[str, float] = {}

    def make(self, now: float) -> str:
        """A new token."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            alive = [(digest, expires) for digest, expires in self._expires.items() if expires > now]
            self._expires = dict(alive[-MOST_LINKS + 1 :]) | {_digest(token): now + LINK_LIVES_S}
        return token

    def use(self, token: str, now: float) -> bool:
        """Whether the token was good; it never is again."""
        with self._lock:
            return self._expires.pop(_digest(token), 0.0) > now


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def routes(control: Control) -> APIRouter:
    """The handlers under /api/v1."""
    router = APIRouter(tags=["console"])
    links = Links()

    @router.post("/console/links", status_code=201)
    def post_link(request: Request) -> Json:
        """A link that opens the console once, within a quarter of an hour; for the local administrator only."""
        if request.state.key is not None:
            raise ForbiddenError("only this machine's own user may make links", "run `puna console` there")
        token = links.make(control.steady())
        return {"url": f"{control.base_url.rstrip('/')}/#/open/{token}", "expires_s": LINK_LIVES_S}

    @router.post("/console/sessions", status_code=201)
    def post_session(body: NewSession) -> Json:
        """Turn a link's token into an administrator's key of twelve hours."""
        now = control.clock()
        if not links.use(body.token, control.steady()):
            raise UnauthorizedError("this link was used already, or is too old", "`puna console` prints another")
        key, text = api_keys.make("console", ["admin"], None, SESSION_LIVES_S, now)
        control.store.add_key(key)
        return views.key_view(key) | {"key": text}

    @router.get("/whoami")
    def get_whoami(request: Request) -> Json:
        """What the key of this request opens."""
        key = request.state.key
        if key is None:
            return {"scope": ["admin"], "endpoints": None, "expires": None}
        return {"scope": list(key.scope), "endpoints": key.endpoints, "expires": key.expires, "id": key.id}

    _wizard(router, control)
    return router


def _wizard(router: APIRouter, control: Control) -> None:
    @router.get("/sources/{digest}")
    def get_source(digest: str) -> Json:
        """An uploaded source: its files, the inputs it declares, its runtime file, and what is wrong with it."""
        folder = revision_files.find_source(control.home, digest).path / "files"
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        shown: Json = {"digest": digest, "files": names[:500], "schema": None, "project": None, "runtime": None}
        try:
            settings = source.check(folder)
            declared = schema.read_literal(folder / "input_schema.py")
            shown["schema"] = None if declared is None else declared.describe().splitlines()
            shown["project"] = json.loads(json.dumps(dataclasses.asdict(settings), default=str))
            if settings.runtime_file:
                shown["runtime"] = (folder / settings.runtime_file).read_text(errors="replace")
        except PunaError as error:
            return shown | error.as_json()
        return shown | {"error": None}

    @router.post("/lint/runtime")
    def post_lint(body: RuntimeText) -> Json:
        """Read a runtime file without building it; what is wrong is the error."""
        spec = runtime.parse_text(body.yaml)
        return {"digest": spec.digest, "python_version": spec.python_version, "packages": spec.requirements()}

    @router.post("/lint/settings")
    def post_lint_settings(body: PlannedDeploy, request: Request) -> Json:
        """Judge a deploy's name and settings as the deploy will be, before anything is uploaded or built for it."""
        restrict(request.state.key, body.name)
        is_there = deploys.judge(control, body.name, body.settings, request.state.key)
        return {"name": body.name, "is_new": not is_there}


def pages() -> APIRouter:
    """The console's page at `/` and its files."""
    router = APIRouter(include_in_schema=False)
    assets = Assets()

    @router.get("/")
    async def get_page(request: Request) -> Response:
        return _reply(assets.page(request.headers.get("if-none-match", "")))

    @router.get("/console/{digest}/{name:path}")
    async def get_file(digest: str, name: str) -> Response:
        return _reply(assets.file(digest, name))

    return router


def _reply(answer: Answer) -> Response:
    return Response(answer.body, answer.status, answer.headers)
