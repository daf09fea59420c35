"""Everything that is not inference goes to the control plane over its Unix socket, streaming both ways.

What comes without a known key is read whole first, within limits of its own: whoever sends drop by drop, or very much,
occupies a client's place here and nothing of the control plane. While that is being replaced, requests which it has not
seen wait here, with bodies unread or within those limits, and so do those that it may see twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import posixpath
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import orjson

from puna.control import wire
from puna.control.domain import api_keys
from puna.control.wire import RouteTable
from puna.errors import NotFoundError, NotYetError, PunaError, TooLargeError, UnauthorizedError
from puna.serve.http.asgi import (
    CLIENT_GONE,
    JSON,
    ClientGone,
    Header,
    Receive,
    Scope,
    Send,
    advice,
    discard,
    disconnected,
    header,
    pieces,
    reply,
    too_large,
)

FORWARDED: Header = (b"x-puna-forwarded", b"1")
# Of one connection, not of the message (RFC 9110, 7.6.1); the transfer's own framing is made anew on each side.
HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te")
    + (b"trailer", b"transfer-encoding", b"upgrade", b"expect")
)
INTERNAL_TIMEOUT_S = 30.0
HEALTH_TIMEOUT_S = 3.0
HEALTH = "/api/v1/health"
RESTART_S = 15.0
"""A control plane that was killed, or hung, is there again within; nobody waits when it has been away for longer."""
DOWN_RETRY_AFTER_S = 5
STRANGER_BYTES = 5 << 20
"""The longest body of a request without a known key: a webhook's delivery."""
ALL_STRANGERS_BYTES = 32 << 20
"""Of such bodies, together, until they are answered."""
MOST_OPEN = 512
TABLE_S = 0.5
"""A key may be some milliseconds older than the table that names it."""
BUSY = NotYetError("too many requests are here at one time", "try again in a second")


Fetch = Callable[[str, str, bytes], Awaitable[bytes]]
"""`await fetch(method, path, body)`: the body of the control plane's reply; raises OSError when it is not there."""
LONG_POLL_S = 20.0
RETRY_S = 0.1


class ControlPlane:
    """The gateway's way to the control plane."""

    def __init__(self, socket: Path, knows: Callable[[str], bool], most_open: int = MOST_OPEN) -> None:
        """`knows` tells whether an `Authorization` header holds a good key; `most_open` requests are out at a time."""
        self._knows, self.most_open = knows, most_open
        self.waiting = 0
        """Requests that wait for the control plane's successor."""
        self._open = self._held_bytes = 0
        # No connection is kept: one over a Unix socket costs 50 us, and a kept one may belong to a control plane
        # that has died meanwhile.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._transport = httpx.AsyncHTTPTransport(uds=str(socket), limits=limits, verify=False)
        self._stopping = asyncio.Event()
        self._up = asyncio.Event()
        self._silent_since: float | None = None
        """When it was first found not to answer, on the loop's clock; None: it does."""

    def wind_down(self) -> None:
        """End the replies that may never end by themselves (logs, events): the gateway is about to stop."""
        self._stopping.set()

    async def close(self) -> None:
        """Hang up."""
        await self._transport.aclose()

    async def fetch(self, method: str, path: str, body: bytes = b"") -> bytes:
        """One internal request.

        Raises:
            OSError: the control plane is not there, or answers with an error.
        """
        status, content = await self._ask(method, path, body, INTERNAL_TIMEOUT_S)
        if status != 200:
            raise ConnectionError(f"{path} answered {status}")
        return content

    async def health(self) -> tuple[int, bytes]:
        """Status and body of what the control plane says of itself.

        Raises:
            OSError: it does not answer.
        """
        return await self._ask("GET", HEALTH, b"", HEALTH_TIMEOUT_S)

    async def _ask(self, method: str, path: str, body: bytes, timeout_s: float) -> tuple[int, bytes]:
        request = httpx.Request(
            method,
            f"http://control{path}",
            content=body,
            headers={"content-type": "application/json"},
            extensions={"timeout": httpx.Timeout(timeout_s).as_dict()},
        )
        try:
            response = await self._transport.handle_async_request(request)
            try:
                content = await response.aread()
            finally:
                await response.aclose()
        except httpx.TransportError as error:
            self._missed()
            raise ConnectionError(str(error)) from None
        self._silent_since = None
        self._up.set()
        return response.status_code, content

    def _missed(self) -> None:
        """Note that it did not answer; the poll for the route table, which never rests, finds out when it does."""
        self._up.clear()
        if self._silent_since is None:
            self._silent_since = asyncio.get_running_loop().time()

    async def forward(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Pass a client's request on and its reply back; returns the status."""
        if is_internal(scope["path"]):
            error = NotFoundError(f"{scope['path']} is not here")
            await reply(send, 404, orjson.dumps(error.as_json()))
            return 404
        try:
            if await self._is_known(scope):
                body = pieces(scope, receive, math.inf) if _has_body(scope) else b""
                return await self._out(_request(scope, body), receive, send, self.most_open)
            async with self._whole(scope, receive) as held:
                return await self._out(_request(scope, held), receive, send, self.most_open // 2)
        except ClientGone:
            return CLIENT_GONE
        except PunaError as error:
            await reply(send, error.http_status, orjson.dumps(error.as_json()), [JSON, *advice(error)])
            return error.http_status

    async def _out(self, request: httpx.Request, receive: Receive, send: Send, most: int) -> int:
        if self._open >= most:
            raise BUSY
        self._open += 1
        try:
            response = await self._answer(request, receive)
            try:
                await self._pass_back(response, receive, send)
            finally:
                await response.aclose()
            return response.status_code
        finally:
            self._open -= 1

    async def _answer(self, request: httpx.Request, receive: Receive) -> httpx.Response:
        """The reply's beginning, from the control plane or from its successor.

        Raises:
            NotYetError: there is none, or the request was lost with the control plane and must not be repeated.
            ClientGone: the client has left.
        """
        is_whole = isinstance(request.stream, httpx.SyncByteStream)  # nothing of it is still to be read
        may_repeat = is_whole and (request.method in ("GET", "HEAD") or "idempotency-key" in request.headers)
        until = asyncio.get_running_loop().time() + RESTART_S
        while True:
            try:
                return await self._transport.handle_async_request(request)
            except httpx.TransportError as error:
                self._missed()
                is_unsent = isinstance(error, httpx.ConnectError)
                if not (is_unsent or may_repeat):
                    raise _lost(request) from None
                may_repeat = may_repeat and is_unsent  # once: it may be what the control plane dies of
            await self._successor(until, receive if is_whole else None, wait=request.url.path != HEALTH)

    async def _successor(self, until: float, receive: Receive | None, *, wait: bool) -> None:
        """Return when the control plane answers; a client that leaves meanwhile is seen by `receive`."""
        until = min(until, (self._silent_since or until) + RESTART_S)
        left_s = until - asyncio.get_running_loop().time() if wait else 0.0
        leaving = disconnected(receive) if receive is not None else asyncio.Event().wait()
        tasks = [asyncio.ensure_future(one) for one in (leaving, self._up.wait(), self._stopping.wait())]
        self.waiting += 1
        try:
            done, _ = await asyncio.wait(tasks, timeout=max(left_s, 0.0), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.waiting -= 1
            for task in tasks:
                task.cancel()
        if tasks[0] in done:
            raise ClientGone
        if tasks[1] not in done:
            raise _down()

    async def _is_known(self, scope: Scope) -> bool:
        """True if the request may be passed on as it comes: its key is good, or it has no body."""
        if not _has_body(scope):
            return True
        authorization = header(scope, b"authorization")
        with contextlib.suppress(NotYetError):  # no key is known yet: the control plane itself looks at it
            if self._knows(authorization):
                return True
        stated = header(scope, b"content-length")
        if authorization and not (stated.isdigit() and int(stated) <= STRANGER_BYTES):
            await asyncio.sleep(TABLE_S)  # made just now, perhaps
            if not self._knows(authorization):
                raise UnauthorizedError(api_keys.UNKNOWN, api_keys.MAKE)
            return True
        return False

    @contextlib.asynccontextmanager
    async def _whole(self, scope: Scope, receive: Receive) -> AsyncIterator[bytes]:
        """The body of somebody unknown, held until the end of the block."""
        parts, size = [], 0
        try:
            try:
                async for piece in pieces(scope, receive, STRANGER_BYTES):
                    parts.append(piece)
                    size += len(piece)
                    self._held_bytes += len(piece)
                    if size > STRANGER_BYTES:
                        raise too_large(STRANGER_BYTES)
                    if self._held_bytes > ALL_STRANGERS_BYTES:
                        raise BUSY
            except TooLargeError:
                parts = []
                await discard(receive)
                raise
            yield b"".join(parts)
        finally:
            self._held_bytes -= size

    async def _pass_back(self, response: httpx.Response, receive: Receive, send: Send) -> None:
        headers = [(k.lower(), v) for k, v in response.headers.raw if k.lower() not in HOP_BY_HOP]
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        # A client that follows logs and leaves must end the stream here; nothing else would notice.
        works = (disconnected(receive), _pump(response, send), self._stopping.wait())
        tasks = [asyncio.ensure_future(work) for work in works]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, httpx.HTTPError, httpx.StreamError):
                    await task


class Follower:
    """The newest route table, by long poll; the last one stays in force while the control plane is down."""

    def __init__(self, fetch: Fetch, on_table: Callable[[RouteTable], None], gateway: str = "") -> None:
        """`gateway` is whose table it is: who makes a key is told so when all gateways have theirs."""
        self.table = RouteTable()
        self.connected = False
        """The last poll was answered."""
        self.first = asyncio.Event()
        self._fetch = fetch
        self._on_table = on_table
        self._gateway = gateway

    async def run(self) -> None:
        """Poll for ever; cancel to stop."""
        since = -1
        while True:
            try:
                wait_s = LONG_POLL_S if since >= 0 else 0
                path = f"/internal/routes?since={since}&wait_s={wait_s:g}&gateway={self._gateway}"
                table = wire.decode(RouteTable, await self._fetch("GET", path, b""))
            except (OSError, ValueError):
                # A restarted control plane may count its versions anew: ask for the whole table next time.
                since, self.connected = -1, False
                await asyncio.sleep(RETRY_S)
                continue
            self.connected = True
            if table.version != since:
                since, self.table = table.version, table
                self._on_table(table)
                self.first.set()


def is_internal(path: str) -> bool:
    """A path that only gateways may use, however it is spelt; ASGI has undone percent signs already."""
    return posixpath.normpath("/" + path.lstrip("/")).split("/")[1].lower() == "internal"


def _down() -> NotYetError:
    error = NotYetError(
        "the control plane does not answer; inference goes on meanwhile",
        "`puna up` replaces one that died; if it stays away, read what that prints, then: puna down; puna up",
    )
    error.retry_after_s = DOWN_RETRY_AFTER_S
    return error


def _lost(request: httpx.Request) -> NotYetError:
    return NotYetError(
        f"the control plane went away while it had this {request.method}: it may have been done, or not",
        "look whether it was done, then send it again; one with an `Idempotency-Key` is sent again here",
    )


def _has_body(scope: Scope) -> bool:
    return bool(header(scope, b"transfer-encoding")) or header(scope, b"content-length") not in ("", "0")


def _request(scope: Scope, body: bytes | AsyncIterator[bytes]) -> httpx.Request:
    headers = [
        (name, value.strip(b" \t"))  # as HTTP means it; with blanks around it the value would be refused here
        for name, value in scope["headers"]
        if name not in HOP_BY_HOP and not name.startswith(b"x-puna-forwarded") and name != b"x-forwarded-for"
    ]
    headers.append(FORWARDED)
    if scope.get("client"):
        headers.append((b"x-forwarded-for", str(scope["client"][0]).encode()))
    target = bytes(scope.get("raw_path") or scope["path"].encode())
    if scope["query_string"]:
        target += b"?" + scope["query_string"]
    url = httpx.URL(scheme="http", host="control", raw_path=target)
    # No time limit: logs are followed for hours, and an upload is as slow as its client.
    return httpx.Request(
        scope["method"],
        url,
        headers=headers,
        content=body,
        extensions={"timeout": httpx.Timeout(None).as_dict()},
    )


async def _pump(response: httpx.Response, send: Send) -> None:
    """A reply that breaks off upstream breaks off here too: the last chunk is never sent as if all were well."""
    assert isinstance(response.stream, httpx.AsyncByteStream)
    async for piece in response.stream:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
