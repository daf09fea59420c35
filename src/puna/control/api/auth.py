"""Authorization: an ASGI layer that asks, before any handler, for the key that the request's route declares.

The control socket is 0600: whoever opens it is the local administrator and needs no key. Requests that the gateway
passes on carry `x-puna-forwarded: 1`; they need a key as `routing.Right` says, one for all endpoints where no route
is found, and bring no body that would fill the memory. A browser page of another origin cannot change anything,
whichever way it comes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puna.control.api.bodies import reads_itself
from puna.control.api.routing import SAFE, Right, Route, find
from puna.control.domain import api_keys
from puna.control.domain.records import Key
from puna.control.operations.context import Control
from puna.errors import ForbiddenError, NotFoundError, PunaError, TooLargeError

FORWARDED = "x-puna-forwarded"
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
MAX_BODY_BYTES = 4 << 20
PLATFORM = re.compile(r"/rest(/|$)")
"""The Inferless platform's own calls, which send the key alone and have their own errors."""
EVERYWHERE = {"0.0.0.0", "::"}
NOBODY = Key("", "", "", (), (), None, "nobody", 0.0)
"""The caller of a request that needs no key: not the local administrator, whose requests have None."""


def foreign(origin: str | None, base_url: str, host: str = "") -> bool:
    """Tell an `Origin` header of another site than `base_url`; a loopback address has three names.

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


class Authorization:
    """Lets a request through, or answers it with the error."""

    def __init__(self, app: ASGIApp, control: Control, routes: Collection[Route]) -> None:
        self.app = app
        self.control = control
        self._routes = routes
        self._keys: tuple[int, dict[str, Key]] = (-1, {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check HTTP requests; lifespan passes, and there are no websockets."""
        if scope["type"] == "http":
            try:
                route, names = find(self._routes, scope)
                key = self._check(scope, Right.ALL if route is None else route.needs, names)
                scope["state"] = {**scope.get("state", {}), "key": key, "route": route}
                if FORWARDED in Headers(scope=scope) and not reads_itself(scope):
                    receive = _limited(scope, receive)
            except PunaError as error:
                await error_response(scope["path"], error.as_json(), error.http_status)(scope, receive, send)
                return
        elif scope["type"] == "websocket":
            return
        await self.app(scope, receive, send)

    def _check(self, scope: Scope, needs: Right, names: Mapping[str, Any]) -> Key | None:
        """The key that a forwarded request came with; None for the local administrator, NOBODY where none is needed.

        Raises:
            PunaError: its caller has no right to what it asks for.
        """
        headers = Headers(scope=scope)
        forwarded = FORWARDED in headers
        if forwarded and needs is Right.INTERNAL:
            raise NotFoundError("there is nothing at this address")
        if scope["method"] not in SAFE:
            for origin in headers.getlist("origin"):
                if foreign(origin, self.control.base_url, headers.get("host", "")):
                    raise ForbiddenError(f"a page of {origin} may not change anything here")
        if not forwarded:
            return None
        if needs is Right.OPEN:
            return NOBODY
        given = headers.get("authorization")
        text = api_keys.bearer(given) or (given if PLATFORM.match(scope["path"]) else None)
        key = api_keys.identify(text, self._current_keys(), self.control.clock())
        endpoint = names.get("name") if needs is Right.ENDPOINT else None
        api_keys.require(key, needs.scope, endpoint)
        if needs is Right.LOCAL:
            raise ForbiddenError("only this machine's own user may make links", "run `puna console` there")
        if key.endpoints is not None and needs not in (Right.OWN, Right.ENDPOINT):
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


def error_response(path: str, error: Mapping[str, object], status: int) -> JSONResponse:
    """An error as callers of `path` read it: the platform's find it in `details`."""
    if not PLATFORM.match(path):
        return JSONResponse(error, status)
    problem = error["error"]
    assert isinstance(problem, Mapping)  # errors.PunaError.as_json
    text = f"{problem['message']} ({problem['hint']})" if problem.get("hint") else problem["message"]
    return JSONResponse({"status": "error", "details": text}, status)
