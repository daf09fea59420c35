"""Raw ASGI as the gateway speaks it: a bounded body, a reply, an error, an event stream; CORS where it is allowed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping, Sequence
from typing import Any

import orjson

from puna.errors import MethodError, NotYetError, PunaError, QueueFullError, TooLargeError, UnauthorizedError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]

READ, CALL = ("GET", "HEAD", "OPTIONS"), ("POST", "OPTIONS")
"""The methods of a path that tells something, and of one that calls a model."""
JSON = (b"content-type", b"application/json")
BYTES = (b"content-type", b"application/octet-stream")
EVENTS: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),  # a proxy that compresses would gather events before it sends any
    (b"x-accel-buffering", b"no"),  # nginx would hand the stream on in one piece, at its end
)
"""The headers of an event stream."""
JSON_BYTES = b"inference-header-content-length"
"""KServe's binary tensors: how many bytes of a body are JSON, before those of the tensors."""
DISCARD_S = 5.0
"""How long a refused body is read and thrown away, so that its client gets to read the refusal."""
CLIENT_GONE = 499
"""The status under which a request is counted that nobody waits for any more, as nginx has it."""


class ClientGone(Exception):
    """The client hung up: nobody waits for an answer."""


def header(scope: Scope, name: bytes) -> str:
    """The first header of that (lower-case) name, or an empty string."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return ""


async def pieces(scope: Scope, receive: Receive, limit_bytes: float) -> AsyncIterator[bytes]:
    """The request's body as it comes; one whose stated length is over the limit is not begun.

    Raises:
        TooLargeError: so it is.
        ClientGone: the client went away.
    """
    stated = header(scope, b"content-length")
    if stated.isdigit() and int(stated) > limit_bytes:
        raise too_large(limit_bytes)
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        more = message.get("more_body", False)
        if body := message.get("body", b""):
            yield body


async def disconnected(receive: Receive) -> None:
    """Return once the client of a request that has been read has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass


def too_large(limit_bytes: float) -> TooLargeError:
    """The refusal of a body that is longer than that."""
    return TooLargeError(f"the body is larger than {limit_bytes} bytes")


async def discard(receive: Receive) -> None:
    """Read the rest of a body that was refused, for a moment, so that its client gets to read why."""

    async def swallow() -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                return

    try:
        await asyncio.wait_for(swallow(), DISCARD_S)
    except TimeoutError:
        return


async def reply(send: Send, status: int, body: bytes, headers: Iterable[Header] = (JSON,)) -> None:
    """A whole reply."""
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


def error_text(error: PunaError) -> str:
    """The text for a caller on `/v2`: one line, and the hint when there is one."""
    return f"{error.message} ({error.hint})" if error.hint else error.message


async def refuse(send: Send, error: PunaError, headers: Iterable[Header] = ()) -> None:
    """An error on `/v2`: `{"error": "..."}`, as Triton writes it."""
    status, own, body = refusal(error)
    await reply(send, status, body, [*own, *headers])


def refusal(error: PunaError) -> tuple[int, list[Header], bytes]:
    """The same as status, headers and body."""
    return error.http_status, [JSON, *advice(error)], orjson.dumps({"error": error_text(error)})


def advice(error: PunaError) -> list[Header]:
    """Headers of an error that tell a client what to do."""
    extra = []
    if isinstance(error, (QueueFullError, NotYetError)):
        extra.append((b"retry-after", b"%d" % error.retry_after_s))
    if type(error) is UnauthorizedError:
        extra.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, MethodError):
        extra.append(allow(error.allow))
    if isinstance(error, TooLargeError):
        extra.append((b"connection", b"close"))
    return extra


def allow(methods: Iterable[str]) -> Header:
    """The methods that a path takes."""
    return (b"allow", ", ".join(methods).encode())


async def options(send: Send, methods: Iterable[str]) -> int:
    """The answer to OPTIONS; it needs no key, for it says nothing of what is here."""
    await reply(send, 204, b"", [allow(methods)])
    return 204


App = Callable[[Scope, Receive, Send], Awaitable[None]]
EXPOSED = (
    "x-request-id x-puna-request-id x-puna-queue-ms x-puna-wake-ms x-puna-infer-ms x-puna-tier x-puna-revision "
    "retry-after"
)
"""Headers of replies that such a page may read."""
PREFLIGHT_S = 600


def allowing(app: App, origins: Sequence[str]) -> App:
    """`app` with CORS for these origins; `app` itself when there are none.

    Keys travel in `Authorization` and never in cookies, so credentials stay off and `*` may stand for all origins.
    """
    if not origins:
        return app
    # Imported here: it costs a gateway's start 30 ms, which most have no use for.
    from starlette.middleware.cors import CORSMiddleware

    middleware: Any = CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST", "HEAD"),
        allow_headers=("*",),
        expose_headers=EXPOSED.split(),
        max_age=PREFLIGHT_S,
    )
    return middleware  # type: ignore[no-any-return]
