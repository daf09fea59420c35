"""How a reply reaches its client: whole, or event by event; and the watch for a client that leaves before."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

from puna.errors import DeadlineError
from puna.serve import http
from puna.serve.call import REVISION, Call, ClientGone
from puna.serve.http import Header, Receive, Send

WATCH_AFTER_S = 0.02
"""A request that is answered sooner is not watched for its client's departure: the watch costs more than the reply."""


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
    while (await receive())["type"] != "http.disconnect":
        pass
    call.abort(ClientGone())


def headers(call: Call) -> list[Header]:
    """What a reply says of its way here; of a request that was refused at the door, only its id."""
    trace = call.trace.encode()
    if not call.tier:
        return [(b"x-request-id", trace), (b"x-puna-request-id", trace)]
    told = [
        (b"x-request-id", trace),  # what others call it: OpenAI's client shows it with its errors
        (b"x-puna-request-id", trace),
        (b"x-puna-queue-ms", b"%.1f" % (call.queued_s * 1000)),
        (b"x-puna-wake-ms", b"%.1f" % (call.wake_s * 1000) if call.wake_s else b"0.0"),
        (b"x-puna-infer-ms", b"%.1f" % (call.infer_s * 1000)),
        (b"x-puna-tier", call.tier.encode()),
    ]
    if call.link is not None:
        told.append((REVISION, call.link.revision))
    return told


async def stream(send: Send, call: Call, failed: Callable[[str], bytes], last: bytes = b"") -> int:
    """A stream that has begun: each event as it comes; then an error as `failed` writes it, or `last`; then the end."""
    start = [http.EVENTS, (b"cache-control", b"no-cache"), *headers(call)]
    await send({"type": "http.response.start", "status": 200, "headers": start})
    exchange = call.exchange
    assert exchange is not None
    error = ""
    try:
        while not exchange.ended:
            await call.hold(exchange.more())
            await http.events(send, exchange.take())
            call.first_byte = call.first_byte or time.perf_counter()
        await http.events(send, exchange.take())
        error = exchange.error
    except DeadlineError as late:
        error = http.error_text(late)
    if error:
        call.broke_off = True
        await http.events(send, [failed(error)])
    elif last:
        await http.events(send, [last])
    await send({"type": "http.response.body", "body": b""})
    return 200
