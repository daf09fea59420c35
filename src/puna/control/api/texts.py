"""Texts that no database and no reply can hold are refused before a handler sees them: an ASGI layer.

JSON can spell half of a surrogate pair, which is no character, and NUL, which PostgreSQL does not keep. One of them in
a setting would make every later look at its endpoint fail.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puna.errors import NotFoundError, PunaError, TooLargeError, UsageError

SUSPECT = re.compile(rb"\\u(d[89a-f]|0000)", re.IGNORECASE)
NO_TEXT = re.compile("[\0\ud800-\udfff]")


class Texts:
    """Passes on what can be kept, and answers the rest with the error."""

    def __init__(self, app: ASGIApp, streams: Callable[[str], bool]) -> None:
        """`streams` says which paths take bodies that are files, not JSON: those are not looked into."""
        self.app = app
        self._streams = streams

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
        if scope["method"] in ("GET", "HEAD", "OPTIONS") or self._streams(scope["path"]):
            return receive
        messages: list[Message] = []
        body = b""
        while not messages or messages[-1].get("more_body", False):
            try:
                messages.append(await receive())
            except HTTPException as error:  # the limit of access
                raise TooLargeError(str(error.detail)) from None
            body += messages[-1].get("body", b"")
        if SUSPECT.search(body) and not _is_text(body):
            raise UsageError("the body has a NUL or half of a surrogate pair in it", "send UTF-8 text")
        waiting = iter(messages)

        async def again() -> Message:
            return next(waiting, None) or await receive()

        return again


def _is_text(body: bytes) -> bool:
    """Whether every string in a JSON body is text; what is no JSON is for the handler to refuse."""
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
