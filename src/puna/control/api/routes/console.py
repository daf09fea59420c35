"""The console: one-time links, each of which becomes a key that ends by itself, what it asks, and its page."""

from __future__ import annotations

import hashlib
import secrets
import threading
from typing import Any, NotRequired

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from puna.config import runtime
from puna.console.assets import Assets
from puna.control.api.routes.keys import MadeKey, key_view
from puna.control.api.routing import Answer, Right, Routes
from puna.control.domain import api_keys
from puna.control.domain.api_keys import restrict
from puna.control.operations import deploys
from puna.control.operations.context import Control
from puna.errors import UnauthorizedError

LINK_LIVES_S = 15 * 60.0
SESSION_LIVES_S = 12 * 3600.0
MOST_LINKS = 64


class Caller(TypedDict):
    """The rights of a request's key."""

    scope: list[str]
    endpoints: list[str] | None
    expires: float | None
    id: NotRequired[str]
    """Missing for this machine's own user."""


class Link(TypedDict):
    """A link that opens the console once."""

    url: str
    expires_s: float


class Judged(TypedDict):
    """A deploy that would be taken."""

    name: str
    is_new: bool
    """There is no endpoint of that name yet."""


class Linted(TypedDict):
    """A runtime file that can be read."""

    digest: str
    python_version: str | None
    packages: list[str]


class NewSession(BaseModel, extra="forbid", hide_input_in_errors=True):
    """The body of `POST /console/sessions`; the token never stands in a URL that is sent."""

    token: str


class RuntimeText(BaseModel, extra="forbid"):
    """The body of `POST /lint/runtime`."""

    yaml: str


class PlannedDeploy(BaseModel, extra="forbid"):
    """The body of `POST /lint/settings`."""

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
        """Redeem a token; true when it was good, which it never is again."""
        with self._lock:
            return self._expires.pop(_digest(token), 0.0) > now


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def routes(control: Control) -> Routes:
    """The handlers under /api/v1."""
    route, links = Routes("console"), Links()

    @route("POST /console/links", Right.LOCAL, Answer(201))
    def post_link() -> Link:
        """A link that opens the console once, within a quarter of an hour; for the local administrator only."""
        token = links.make(control.steady())
        return {"url": f"{control.base_url.rstrip('/')}/#/open/{token}", "expires_s": LINK_LIVES_S}

    @route("POST /console/sessions", Right.OPEN, Answer(201))
    def post_session(body: NewSession) -> MadeKey:
        """Turn a link's token into an administrator's key of twelve hours."""
        now = control.clock()
        if not links.use(body.token, control.steady()):
            raise UnauthorizedError("this link was used already, or is too old", "`puna console` prints another")
        key, text = api_keys.make("console", ["admin"], None, SESSION_LIVES_S, now)
        control.store.add_key(key)
        return {**key_view(key), "key": text}

    @route("GET /whoami", Right.OWN)
    def get_whoami(request: Request) -> Caller:
        """Say what the key of this request opens."""
        key = request.state.key
        if key is None:
            return {"scope": ["admin"], "endpoints": None, "expires": None}
        return {"scope": list(key.scope), "endpoints": key.endpoints, "expires": key.expires, "id": key.id}

    @route("POST /lint/runtime", Right.OWN)
    def post_lint(body: RuntimeText) -> Linted:
        """Read a runtime file without building it; what is wrong is the error."""
        spec = runtime.parse_text(body.yaml)
        return {"digest": spec.digest, "python_version": spec.python_version, "packages": list(spec.python_packages)}

    @route("POST /lint/settings", Right.OWN)
    def post_lint_settings(body: PlannedDeploy, request: Request) -> Judged:
        """Judge a deploy's name and settings as the deploy will be, before anything is uploaded or built for it."""
        restrict(request.state.key, body.name)
        is_there = deploys.judge(control, body.name, body.settings, request.state.key)
        return {"name": body.name, "is_new": not is_there}

    return route


def pages(control: Control) -> Routes:
    """The console's page at `/` and its files; what they show they ask for with a key."""
    route, assets = Routes(prefix=""), Assets()

    @route("GET /", Right.OPEN)
    async def get_page(request: Request) -> Response:
        return assets.page(request.headers.get("if-none-match", ""))

    @route("GET /console/{digest}/{name:path}", Right.OPEN)
    async def get_asset(digest: str, name: str) -> Response:
        return assets.file(digest, name)

    return route
