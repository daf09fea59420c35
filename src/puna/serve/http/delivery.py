"""Replies on their way to clients: whole, or event by event; and the watch for a client that leaves before."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

import orjson

from puna.errors import PunaError
from puna.serve.dispatch.call import REVISION, WAITING, Call
from puna.serve.dispatch.dispatcher import Dispatcher
from puna.serve.dispatch.worker_connection import Reply
from puna.serve.http import asgi
from puna.serve.http.asgi import ClientGone, Header, Receive, Send

WATCH_AFTER_S = 0.02
"""A request that is answered sooner is not watched for its client's departure: the watch costs more than the reply."""

SILENCE_S = 10.0
"""An event stream that has nothing to say for so long says so."""
COMMENT = b": waiting\n\n"


@contextlib.contextmanager
def watched(receive: Receive, call: Call) -> Iterator[None]:
    """Abort the call when its client leaves; after the block nobody waits for it any more."""
    loop = asyncio.get_running_loop()
    watches: list[asyncio.Task[None]] = []
    timer = loop.call_later(WATCH_AFTER_S, lambda: watches.append(loop.create_task(_watch(receive, call))))
    try:
        yield
    finally:
        timer.cancel()
        for watch in watches:
            watch.cancel()
        call.leave()


async def _watch(receive: Receive, call: Call) -> None:
    await asgi.disconnected(receive)
    call.abort(ClientGone())


def headers(call: Call, *, has_waited: bool = True) -> list[Header]:
    """Headers about a reply's way here; of a request that was refused at once, or waits still, only its id."""
    trace = call.trace.encode()
    limited = call.use.headers(time.monotonic()) if call.use is not None else ()
    if not call.tier or not has_waited:
        return [(b"x-request-id", trace), (b"x-puna-request-id", trace), *limited]
    told = [
        (b"x-request-id", trace),  # what others call it: OpenAI's client shows it with its errors
        (b"x-puna-request-id", trace),
        (b"x-puna-queue-ms", b"%.1f" % (call.queued_s * 1000)),
        (b"x-puna-wake-ms", b"%.1f" % (call.wake_s * 1000) if call.wake_s else b"0.0"),
        (b"x-puna-infer-ms", b"%.1f" % (call.infer_s * 1000)),
        (b"x-puna-tier", call.tier.encode()),
        *limited,
    ]
    if call.connection is not None:
        told.append((REVISION, call.connection.revision))
    return told


async def whole(send: Send, call: Call, reply: Reply) -> int:
    """A reply in one piece; returns its status."""
    await asgi.reply(send, reply.status, reply.body, reply_headers(call, reply))
    return reply.status


def reply_headers(call: Call, reply: Reply) -> list[Header]:
    """The headers of a reply in one piece."""
    if not reply.json_bytes:
        return [asgi.JSON, *headers(call)]
    return [asgi.BYTES, (asgi.JSON_BYTES, b"%d" % reply.json_bytes), *headers(call)]


class EventStream:
    """A reply of events, with a comment wherever it is silent for long: proxies cut what they take for dead.

    Most of them wait for 60 s, some for 30. Until the first event the reply may still become an error with a status of
    its own, so the stream begins with the first event or the first comment, whichever comes sooner.
    """

    def __init__(self, send: Send, call: Call) -> None:
        self._send, self._call = send, call
        self.begun = False
        self._loop = asyncio.get_running_loop()
        self._moved = self._loop.time()
        self._timer = self._loop.call_later(SILENCE_S, self._look)
        self._beat: asyncio.Task[None] | None = None

    async def events(self, batch: list[bytes]) -> None:
        """Send these, each one JSON."""
        await self._begin()
        self._moved = self._loop.time()
        self._call.events += len(batch)
        if body := b"".join(b"data: %b\n\n" % event for event in batch):
            await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self) -> None:
        """Send the stream's end."""
        self.close()
        await self._begin()
        await self._send({"type": "http.response.body", "body": b""})

    def close(self) -> None:
        """Send no more comments."""
        self._timer.cancel()
        if self._beat is not None:
            self._beat.cancel()

    async def _begin(self) -> None:
        if not self.begun:
            self.begun = True
            # One that a comment begins does not know yet what its call will have waited for.
            has_waited = self._call.stage is not WAITING
            start = [*asgi.EVENTS, *headers(self._call, has_waited=has_waited)]
            await self._send({"type": "http.response.start", "status": 200, "headers": start})

    def _look(self) -> None:
        left_s = self._moved + SILENCE_S - self._loop.time()
        if left_s <= 0:
            left_s, self._moved = SILENCE_S, self._loop.time()
            if self._beat is None or self._beat.done():  # one that is not has a client that does not read
                self._beat = self._loop.create_task(self._comment())
        self._timer = self._loop.call_later(left_s, self._look)

    async def _comment(self) -> None:
        await self._begin()
        await self._send({"type": "http.response.body", "body": COMMENT, "more_body": True})


async def streamed(
    send: Send, call: Call, dispatcher: Dispatcher, failed: Callable[[str], bytes], last: bytes = b""
) -> int:
    """Serve a call that asked for a stream: each event as it comes; then an error as `failed` writes it, or `last`.

    An app that does not stream after all is answered in one piece; returns the status.

    Raises:
        PunaError: there is no reply, and nothing was sent yet.
        ClientGone: nobody waits for it.
    """
    stream = EventStream(send, call)
    try:
        error = ""
        try:
            reply = await dispatcher.serve(call)
            if reply is not None and not stream.begun:
                stream.close()
                return await whole(send, call, reply)
            if reply is not None:
                error = _error_of(reply)
            else:
                error = await _pass_on(stream, call)
        except PunaError as why:
            if not stream.begun:
                raise
            error = asgi.error_text(why)
        if error:
            call.broke_off = True
            await stream.events([failed(error)])
        elif last:
            await stream.events([last])
        await stream.end()
        return 200
    finally:
        stream.close()


async def _pass_on(stream: EventStream, call: Call) -> str:
    """Send the events of a stream that has begun; returns why it broke off, or nothing."""
    exchange = call.exchange
    assert exchange is not None
    while not exchange.ended:
        await call.hold(exchange.more())
        await stream.events(exchange.take())
        call.first_byte = call.first_byte or time.perf_counter()
    while left := exchange.take():
        await stream.events(left)
    return exchange.error


def _error_of(reply: Reply) -> str:
    """The text of a reply in one piece, for a stream whose status was sent with its first comment."""
    try:
        said = orjson.loads(reply.body)["error"]
    except (ValueError, KeyError, TypeError):
        return f"the app did not stream its reply (status {reply.status})"
    return str(said.get("message") if isinstance(said, dict) else said)
