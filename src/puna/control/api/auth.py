"""Who may call the control plane's API: an ASGI layer in front of every handler, in one place.

The control socket is 0600: whoever opens it is the local administrator and needs no key. Requests that the gateway
passes on carry `x-puna-forwarded: 1`; they never reach /internal, need a bearer key of the right scope wherever
nothing else is said here, and bring no body that would fill the memory. A browser page of another origin cannot
change anything, whichever way it comes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puna.control.domain import api_keys
from puna.control.domain.records import Key
from puna.control.operations.context import Control
from puna.errors import ForbiddenError, NotFoundError, PunaError, TooLargeError

FORWARDED = "x-puna-forwarded"
SAFE = {"GET", "HEAD", "OPTIONS"}
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
OPEN = {"/api/v1/health", "/api/v1/console/sessions", "/api/docs", "/api/openapi.json"}
HOOK = re.compile(r"/api/v1/hooks/[^/]+$")
"""Webhooks come without a key: what they send is signed, or has their endpoint's secret beside it."""
PAGES = re.compile(r"/(console/.*)?")
"""The console's own page and files, for reading; what they show they ask for with a key."""
UPLOADS = re.compile(r"/api/v1/(sources|volumes/[^/]+/files/.*|hooks/[^/]+)", re.DOTALL)
"""What takes long bodies has limits of its own."""
MAX_BODY_BYTES = 4 << 20
ADMIN = re.compile(r"/api/v1/(keys|secrets)(/|$)")
PLATFORM = re.compile(r"/rest(/|$)")
"""The Inferless platform's own calls, which have its own errors."""
ENDPOINT = re.compile(r"/api/v1/endpoints/([^/]+)")
FOR_SOME = re.compile(r"/api/v1/(endpoints|sources|builds|usage|whoami|machine|lint|events/stream)(?=[/.]|$)")
"""Where a key for some endpoints only may ask: each handler there sees to it that it concerns them."""
CATALOGUE = re.compile(r"/api/v1/(models|runtimes)/?")
"""What belongs to all, and may be looked at by all; anything else of that kind is not for such a key."""
EVERYWHERE = {"0.0.0.0", "::"}
NOBODY = Key("", "nobody", "", "", (), (), None, 0.0)
"""Whom a request comes from that needs no key: not the local administrator, whose requests have None."""


def foreign(origin: str | None, base_url: str, host: str = "") -> bool:
    """Whether an `Origin` header is of another site than `base_url`; a loopback address has three names.

    Who listens on every address has none of their own: the page's must be the one that its browser asks, its `Host`.
    """
    if origin is None:
        return False
    if host and urlsplit(base_url).hostname in EVERYWHERE:
        base_url = f"{urlsplit(base_url).scheme}://{host}"
    try:
        mine, theirs = urlsplit(base_url), urlsplit(origin)
        same_port = _port(mine.scheme, mine.port) == _port(theirs.scheme, theirs.port)
    except ValueError:  # a port that is no number, half an IPv6 address
        return True
    same_host = theirs.hostname == mine.hostname or {theirs.hostname, mine.hostname} <= LOOPBACK
    return theirs.scheme != mine.scheme or not (same_host and same_port)


def _port(scheme: str, port: int | None) -> int:
    return port or (443 if scheme == "https" else 80)


def scope_of(path: str) -> str:
    """The scope that a path under /api/v1 or /rest needs."""
    return "admin" if ADMIN.match(path) else "deploy"


def is_open(path: str) -> bool:
    """Whether a path of the API needs no key."""
    return path in OPEN or HOOK.match(path) is not None


def is_upload(path: str) -> bool:
    """Whether a path takes files, as long as they like."""
    return UPLOADS.fullmatch(path) is not None


class Authorization:
    """Lets a request through, or answers it with the error."""

    def __init__(self, app: ASGIApp, control: Control) -> None:
        self.app = app
        self.control = control
        self._keys: tuple[int, dict[str, Key]] = (-1, {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check HTTP requests; everything else passes."""
        if scope["type"] == "http":
            try:
                scope["state"] = {**scope.get("state", {}), "key": self._check(scope)}
                if FORWARDED in Headers(scope=scope) and not UPLOADS.fullmatch(scope["path"]):
                    receive = _limited(scope, receive)
            except PunaError as error:
                await told(scope["path"], error.as_json(), error.http_status)(scope, receive, send)
                return
        elif scope["type"] == "websocket":
            return
        await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> Key | None:
        """The key that a forwarded request came with; None for the local administrator, NOBODY for open paths."""
        headers, path = Headers(scope=scope), scope["path"]
        forwarded = FORWARDED in headers
        if forwarded and re.match(r"/+internal(/|$)", path, re.IGNORECASE):
            raise NotFoundError("there is nothing at this address")
        if scope["method"] not in SAFE:
            for origin in headers.getlist("origin"):
                if foreign(origin, self.control.base_url, headers.get("host", "")):
                    raise ForbiddenError(f"a page of {origin} may not change anything here")
        if not forwarded:
            return None
        if is_open(path) or (PAGES.fullmatch(path) and scope["method"] in SAFE):
            return NOBODY
        given, is_platform = headers.get("authorization"), PLATFORM.match(path) is not None
        # The platform's callers send the key alone; which endpoint they mean stands in the body.
        text = api_keys.bearer(given) or (given if is_platform else None)
        key = api_keys.identify(text, self._current_keys(), self.control.clock())
        api_keys.require(key, scope_of(path), endpoint_in(path))
        reads = scope["method"] in SAFE
        is_for_some = is_platform or FOR_SOME.match(path) or (reads and CATALOGUE.fullmatch(path))
        if key.endpoints is not None and not is_for_some:
            raise ForbiddenError(
                f"key {key.id} opens some endpoints only, and this belongs to all", "`puna key create`"
            )
        return key

    def _current_keys(self) -> dict[str, Key]:
        version = self.control.store.version
        if self._keys[0] != version:
            self._keys = (version, {key.id: key for key in self.control.store.keys()})
        return self._keys[1]


def _limited(scope: Scope, receive: Receive) -> Receive:
    """`receive`, up to a limit: handlers read a body whole before they look at it.

    Raises:
        TooLargeError: the body is said to be longer.
    """
    length, read = Headers(scope=scope).get("content-length", ""), 0
    if length.isdigit() and int(length) > MAX_BODY_BYTES:
        raise TooLargeError(f"the body is over {MAX_BODY_BYTES >> 20} MiB", "files go to /api/v1/sources or a volume")

    async def counted() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > MAX_BODY_BYTES:
            raise HTTPException(413, f"the body is over {MAX_BODY_BYTES >> 20} MiB")
        return message

    return counted


def endpoint_in(path: str) -> str | None:
    """The endpoint that a path names."""
    match = ENDPOINT.match(path)
    return match[1] if match else None


def told(path: str, error: Mapping[str, object], status: int) -> JSONResponse:
    """An error as whoever asks at `path` reads it: the platform's callers find it in `details`."""
    if not PLATFORM.match(path):
        return JSONResponse(error, status)
    said = error["error"]
    assert isinstance(said, Mapping)  # errors.PunaError.as_json
    text = f"{said['message']} ({said['hint']})" if said.get("hint") else said["message"]
    return JSONResponse({"status": "error", "details": text}, status)
