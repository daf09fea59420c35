"""Bodies of requests: read whole up to a limit, and refused where there are texts in them that are none.

JSON can spell half of a surrogate pair, which is no character, and NUL, which PostgreSQL does not keep. One of them in
a setting would make every later look at its endpoint fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from annotated_types import Ge, Le
from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puna.control.api.routing import SAFE
from puna.errors import DeadlineError, NotFoundError, PunaError, TooLargeError, UnavailableError, UsageError

SUSPECT = re.compile(rb"\\u(d[89a-f]|0000)", re.IGNORECASE)
NO_TEXT = re.compile("[\0\ud800-\udfff]")
Number = Annotated[int, Ge(1), Le(2**31 - 1)]
"""The number of a revision, a version or a delivery."""


async def read(request: Request, limit_bytes: int, what: str, hint: str) -> bytes:
    """All of it; `what` is named in the error.

    Raises:
        TooLargeError: it is over `limit_bytes`; no more of it is read.
    """
    parts, size = [], 0
    async for chunk in request.stream():
        parts.append(chunk)
        size += len(chunk)
        if size > limit_bytes:
            raise TooLargeError(f"the {what} is over {limit_bytes >> 20} MiB", hint)
    return b"".join(parts)


class BodyBudget:
    """The memory that bodies of unauthenticated requests take together, from their first byte to their answer."""

    def __init__(self, most_bytes: int, limit_s: float) -> None:
        """Each has `limit_s` to arrive in."""
        self.most_bytes, self.limit_s = most_bytes, limit_s
        self.bytes = 0

    @contextlib.asynccontextmanager
    async def body(self, request: Request, limit_bytes: int, what: str, hint: str) -> AsyncIterator[bytes]:
        """As `read`, until the end of the block.

        Raises:
            TooLargeError: it is over `limit_bytes`.
            UnavailableError: too much is here already.
            DeadlineError: it took too long.
        """
        stated = request.headers.get("content-length", "")
        size = min(int(stated), limit_bytes) if stated.isdigit() else limit_bytes
        if self.bytes + size > self.most_bytes:
            raise UnavailableError(f"too many bodies like this {what} are here at one time", "try again in a second")
        self.bytes += size
        try:
            try:
                body = await asyncio.wait_for(read(request, limit_bytes, what, hint), self.limit_s)
            except TimeoutError:
                late = f"the {what} took longer than {self.limit_s:g} s to arrive"
                raise DeadlineError(late, "send it again") from None
            yield body
        finally:
            self.bytes -= size


class Texts:
    """An ASGI layer that passes on what can be kept, and answers the rest with the error.

    Bodies that a route reads by itself are files, not JSON: those are not looked into.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Look at path, query and body."""
        try:
            if scope["type"] == "http":
                receive = await self._checked(scope, receive)
        except PunaError as error:
            await JSONResponse(error.as_json(), error.http_status)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    async def _checked(self, scope: Scope, receive: Receive) -> Receive:
        """`receive` again, with the body that was read.

        Raises:
            UsageError: there is a text in it that is none.
        """
        if "\0" in scope["path"]:
            raise NotFoundError("there is nothing at this address")
        if b"%00" in scope["query_string"]:
            raise UsageError("there is a NUL in the query", "leave it out")
        if scope["method"] in SAFE or reads_itself(scope):
            return receive
        messages: list[Message] = []
        body = b""
        while not messages or messages[-1].get("more_body", False):
            try:
                messages.append(await receive())
            except HTTPException as error:  # the limit of auth.py
                raise TooLargeError(str(error.detail)) from None
            body += messages[-1].get("body", b"")
        if SUSPECT.search(body) and not _is_text(body):
            raise UsageError("the body has a NUL or half of a surrogate pair in it", "send UTF-8 text")
        waiting = iter(messages)

        async def again() -> Message:
            return next(waiting, None) or await receive()

        return again


def reads_itself(scope: Scope) -> bool:
    """Tell a request whose route reads the body by itself."""
    route = scope["state"]["route"]
    return route is not None and route.own_body is not None


def _is_text(body: bytes) -> bool:
    """Tell a JSON body in which every string is text; what is no JSON is for the handler to refuse."""
    try:
        left: list[Any] = [json.loads(body)]
    except (ValueError, RecursionError):
        return True
    while left:
        value = left.pop()
        if isinstance(value, str) and NO_TEXT.search(value):
            return False
        if isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value
    return True
