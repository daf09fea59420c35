"""Calls that come again are answered, not done again: an ASGI layer between access and the handlers.

A client that lost the connection cannot know whether its call was done. It asks again with the same `Idempotency-Key`:
for a day the same caller, route and body get the first reply. What is in flight is known in memory only: one process
serves the API, and a call that it was answering when it died is done anew. Replies are kept sealed, because some hold
a key's text, and requests as a keyed fingerprint, because some hold secrets.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import logging
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from cryptography.exceptions import InvalidTag
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puna.control.api.routing import SAFE
from puna.control.operations.context import Control
from puna.control.store.replies import KeptReply
from puna.errors import InFlightError, KeyReusedError, MachineError, PunaError, TooLargeError, UsageError

LOG = logging.getLogger("puna.idempotency")
HEADER, REPLAYED = "idempotency-key", "idempotent-replayed"
ADMINISTRATOR = "administrator"
"""Who has no key; the ids of keys are hex digits."""
LIVES_S = 24 * 3600.0
SHAPE = re.compile(r"[\x21-\x7e]{1,255}")
MOST_BYTES = 1 << 20
"""A longer reply is passed on and not kept; none of a call that changes something is as long."""
REST_BYTES = 1 << 20
"""So much of a body that the handler has not read is read for its fingerprint."""


@dataclass
class _Body:
    """A request's body on its way to the handler: what was read of it, as a digest."""

    receive: Receive
    ended: bool
    digest: Any = field(default_factory=hashlib.sha256)
    left: bool = False
    """The client has gone before the end."""

    async def __call__(self) -> Message:
        message = await self.receive()
        if message["type"] == "http.disconnect":
            self.left = self.left or not self.ended
        elif not self.ended:
            self.digest.update(message.get("body", b""))
            self.ended = not message.get("more_body", False)
        return message

    async def finish(self, limit_bytes: float) -> bool:
        """Read what is left, up to a limit; whether all of it was seen."""
        read = 0
        while not self.ended and not self.left and read <= limit_bytes:
            read += len((await self()).get("body", b""))
        return self.ended


class Idempotency:
    """Answers a call that was answered before with the first reply."""

    def __init__(self, app: ASGIApp, control: Control) -> None:
        self.app = app
        self.control = control
        self._seal = control.secrets.seal
        self._in_flight: set[str] = set()
        control.store.prune_replies(control.clock() - LIVES_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Look at calls that change something and bring a key; everything else passes."""
        text = _key_of(scope)
        if text is None:
            await self.app(scope, receive, send)
            return
        try:
            await self._once(text, scope, receive, send)
        except PunaError as error:
            headers = {"retry-after": "1"} if isinstance(error, InFlightError) else None
            await JSONResponse(error.as_json(), error.http_status, headers)(scope, receive, send)

    async def _once(self, text: str, scope: Scope, receive: Receive, send: Send) -> None:
        if not SHAPE.fullmatch(text):
            raise UsageError("the Idempotency-Key is no key", "1 to 255 visible ASCII characters, e.g. a UUID")
        reply_id = self._seal.fingerprint(_caller(scope).encode(), text.encode())
        if reply_id in self._in_flight:
            raise InFlightError(f"the call with Idempotency-Key {text} is being answered", "ask again in a second")
        self._in_flight.add(reply_id)
        try:
            expired = self.control.clock() - LIVES_S
            kept = await run_in_threadpool(self.control.store.kept_reply, reply_id, expired)
            body = _Body(receive, ended=_is_empty(scope))
            if kept is None:
                await self._answer(reply_id, scope, body, send)
            else:
                await self._repeat(text, kept, scope, body, send)
        finally:
            self._in_flight.discard(reply_id)

    async def _answer(self, reply_id: str, scope: Scope, body: _Body, send: Send) -> None:
        """Let the handler answer; its reply is kept before it is sent, so that whoever has it may rely on it."""
        held: list[Message] = []
        is_held = True

        async def hold(message: Message) -> None:
            nonlocal is_held
            if not is_held:
                await send(message)
                return
            held.append(message)
            is_whole = message["type"] == "http.response.body" and not message.get("more_body", False)
            size = sum(len(part.get("body", b"")) for part in held)
            if is_whole or size > MOST_BYTES:
                is_held = False
                if size <= MOST_BYTES and held[0]["status"] < 500:
                    with contextlib.suppress(HTTPException):  # the rest is over the limit of access: not kept
                        if await body.finish(REST_BYTES):
                            await self._keep(reply_id, scope, body, held)
                for part in held:
                    await send(part)

        await self.app(scope, body, hold)

    async def _keep(self, reply_id: str, scope: Scope, body: _Body, held: list[Message]) -> None:
        start, content = held[0], b"".join(part.get("body", b"") for part in held[1:])
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in start.get("headers", [])]
        shown = {"status": start["status"], "headers": headers, "body": base64.b64encode(content).decode()}
        sealed = self._seal.close(json.dumps(shown).encode(), reply_id)
        now = self.control.clock()
        reply = KeptReply(reply_id, self._fingerprint(scope, body), _route(scope), sealed, now)
        try:
            await run_in_threadpool(self.control.store.keep_reply, reply, now - LIVES_S)
        except SQLAlchemyError:
            LOG.exception("the reply to %s is not kept", _route(scope))  # what was asked for is done: say so

    async def _repeat(self, text: str, kept: KeptReply, scope: Scope, body: _Body, send: Send) -> None:
        try:
            if not await body.finish(float("inf")):
                return  # the client has gone
        except HTTPException as error:  # the limit of access
            raise TooLargeError(str(error.detail)) from None
        if self._fingerprint(scope, body) != kept.fingerprint:
            what = "with another body" if kept.route == _route(scope) else f"for {kept.route}"
            raise KeyReusedError(f"Idempotency-Key {text} was used before, {what}", "take a new key for a new call")
        try:
            shown = json.loads(self._seal.open(kept.sealed, kept.id))
        except InvalidTag:
            raise MachineError("the first reply cannot be opened: the key file has changed", "take a new key") from None
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in shown["headers"]]
        headers.append((REPLAYED.encode(), b"true"))
        await send({"type": "http.response.start", "status": shown["status"], "headers": headers})
        await send({"type": "http.response.body", "body": base64.b64decode(shown["body"])})

    def _fingerprint(self, scope: Scope, body: _Body) -> str:
        return self._seal.fingerprint(_route(scope).encode(), scope["query_string"], body.digest.digest())


def _key_of(scope: Scope) -> str | None:
    """The idempotency key of a call that changes something; whoever needs no key is nobody one knows."""
    if scope["type"] != "http" or scope["method"] in SAFE or not scope["path"].startswith("/api/v1/"):
        return None
    return Headers(scope=scope).get(HEADER) if _caller(scope) != "" else None


def _caller(scope: Scope) -> str:
    """Whose call it is, as access has found: a key's id, or the local administrator's word."""
    key = scope["state"]["key"]
    return ADMINISTRATOR if key is None else str(key.id)


def _is_empty(scope: Scope) -> bool:
    """Tell a request without a body: servers send no message for it unless the handler asks."""
    headers = Headers(scope=scope)
    return "transfer-encoding" not in headers and headers.get("content-length", "0") == "0"


def _route(scope: Scope) -> str:
    return f"{scope['method']} {quote(scope['path'])}"
