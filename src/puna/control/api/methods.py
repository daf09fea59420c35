"""HEAD and OPTIONS for every address of the API: the head of what GET answers, and the methods that there are."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Methods:
    """Answers both before any handler is asked; OPTIONS needs no key, for it says nothing of what is here."""

    def __init__(self, app: ASGIApp, document: Callable[[], Mapping[str, Any]]) -> None:
        """`document` makes the API's OpenAPI document."""
        self.app, self.document = app, document

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything else on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["method"] == "HEAD":
            await self._head(scope, receive, send)
        elif scope["method"] == "OPTIONS" and (allowed := self._allowed(scope["path"])):
            await Response(status_code=204, headers={"allow": allowed})(scope, receive, send)
        else:
            await self.app(scope, receive, self._told_in_full(scope, send))

    @cached_property
    def _paths(self) -> list[tuple[re.Pattern[str], str]]:
        """Each path as a pattern, with the methods that it takes."""
        found = []
        for path, operations in self.document()["paths"].items():
            methods = {method.upper() for method in operations} | {"OPTIONS"}
            methods |= {"HEAD"} if "GET" in methods else set()
            pattern = re.sub(r"\\{[^}]*\\}", "[^/]+", re.escape(path))
            found.append((re.compile(pattern), ", ".join(sorted(methods))))
        return found

    def _allowed(self, path: str) -> str:
        return next((methods for pattern, methods in self._paths if pattern.fullmatch(path)), "")

    def _told_in_full(self, scope: Scope, send: Send) -> Send:
        """`send`, with all methods in a 405: a handler's refusal names its own only."""

        async def corrected(message: Message) -> None:
            is_refusal = message["type"] == "http.response.start" and message["status"] == 405
            if is_refusal and (allowed := self._allowed(scope["path"])):
                MutableHeaders(scope=message)["allow"] = allowed
            await send(message)

        return corrected

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask as GET, and stop at the head: a stream of events would never end."""
        begun = asyncio.Event()

        async def first(message: Message) -> None:
            if message["type"] == "http.response.start" and not begun.is_set():
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                begun.set()

        asked = asyncio.ensure_future(self.app({**scope, "method": "GET"}, receive, first))
        waiting = asyncio.ensure_future(begun.wait())
        await asyncio.wait({asked, waiting}, return_when=asyncio.FIRST_COMPLETED)
        for task in (waiting, asked):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asked
