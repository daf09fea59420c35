"""A client's connection: uvicorn's HTTP protocol, a short way for inference, and limits on time and size.

The short way is for what inference most often is: a POST of a stated, moderate length to `/infer`, answered whole.
It makes no task, no future and no timer. Everything else takes uvicorn's way through ASGI. Either way the head and the
body of a reply are sent in one write: half the system calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from puna.serve.http.asgi import JSON_BYTES, Header
from puna.serve.http.client_limits import BODY, HEAD, REQUEST, Arrival, ArrivalLimits, Unread

LARGE_BYTES = 1 << 18
"""More is written as it comes: another copy would cost more than the system call."""


class CoalescingTransport:
    """A transport that keeps what is written until the end of the loop's turn; all else is the transport's own."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send soon, together with what else is written in this turn."""
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(data)

    def write_now(self, data: bytes) -> None:
        """Send what is whole already, after what waits."""
        if self._parts:
            self._parts.append(data)
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Send now."""
        parts, self._parts = self._parts, []
        if parts and not self._transport.is_closing():
            if sum(map(len, parts)) <= LARGE_BYTES:
                parts = [b"".join(parts)]
            for part in parts:
                self._transport.write(part)

    def close(self) -> None:
        """Send what is left, then close."""
        self.flush()
        self._transport.close()


PREFIX, SUFFIX = b"/v2/models/", b"/infer"
MAX_SHORT_BODY_BYTES = 65536
"""Longer ones take ASGI's way, which can pause the client."""
LONG_WAY = frozenset((b"content-encoding", JSON_BYTES))
"""Headers of requests whose body has to be looked at first."""
MAX_UNREAD_BYTES = 512 << 20
"""Two replies of the largest size may wait for their clients at the same time, or many smaller ones."""
TOO_SLOW = (408, b"the request took too long to arrive")
TOO_LARGE = (431, b"the request's head is too large")
NO_HTTP = (400, b"this is no HTTP request")
NO_HOST = (400, b"a request names one host")
HOST = b"host"
UPGRADES = frozenset((b"upgrade", b"http2-settings"))


class NoRequestError(Exception):
    """The parser has found something that is refused."""


class Direct(Protocol):
    """The side that answers the short way: the gateway."""

    has_cors: bool
    """What pages of other sites send needs headers of its own."""

    def infer(self, request: Request) -> Callable[[], None] | None:
        """Begin; `request.reply` is called once, now or later. What is returned is called if the client leaves."""


@dataclass(eq=False, repr=False, slots=True)
class Request:
    """An inference request that has arrived whole."""

    _connection: ClientConnection
    name: str
    keep_alive: bool
    authorization: str
    trace: str
    headers: Sequence[Header]
    body: bytes = b""
    is_answered: bool = False
    disconnected: bool = False
    gone: Callable[[], None] | None = None
    """To be called when the client leaves before its answer."""

    def reply(self, status: int, headers: Sequence[Header], body: bytes) -> None:
        """The whole answer."""
        self.is_answered, self.gone = True, None
        self._connection.answer(self, status, headers, body)

    def header(self, name: bytes) -> str:
        """The first header of that (lower-case) name, or an empty string."""
        return next((value.decode("latin-1") for key, value in self.headers if key == name), "")

    # What uvicorn's protocol wants to know of the request in hand.

    @property
    def response_started(self) -> bool:
        """It is sent in one piece."""
        return self.is_answered

    @property
    def response_complete(self) -> bool:
        """Nothing more is sent for it."""
        return self.is_answered

    @property
    def message_event(self) -> Request:
        """Nobody waits for pieces of it."""
        return self

    def set(self) -> None:
        """As an event's."""


class ClientConnection(HttpToolsProtocol):  # type: ignore[misc]
    """One client."""

    limits = ArrivalLimits()
    unread = Unread(MAX_UNREAD_BYTES)
    """Of all connections of this process."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.address = ""
        self.on_lost: Callable[[], None] | None = None
        """Called when the client has gone."""
        self._direct: Direct | None = self.app if hasattr(self.app, "infer") else None
        self._request: Request | None = None  # the short-way request that is being parsed or answered
        self._is_short = False  # what is being parsed takes the short way
        self._parts: list[bytes] = []
        self._arrival = Arrival(0.0)
        self._now = 0.0  # when the bytes came that are being parsed, and how many they are
        self._came = 0
        self._plain_head = b""  # of a request that would upgrade: the same without that
        self._refusal: tuple[int, bytes] | None = None  # why nothing more is read; said once all before is answered
        self._stuck = 0.0  # since when the client has not read what is written; 0: it reads
        self._stuck_bytes = 0  # and how much that was then
        self._timer: Any = None

    # -- time and size -------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """A client has connected."""
        super().connection_made(CoalescingTransport(transport, self.loop))
        self._arrival = Arrival(self.loop.time())
        self._timer = self.loop.call_later(self.limits.look_every_s, self._look)

    def data_received(self, data: bytes) -> None:
        """Bytes of requests."""
        if self._refusal is not None:
            return
        arrival = self._arrival
        self._now = arrival.moved = self.loop.time()
        self._came = len(data)
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._feed_plain(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(*(self._refusal or NO_HTTP))
            return
        if arrival.awaited is HEAD:
            arrival.head_bytes += self._came
            if arrival.head_bytes > self.limits.head_bytes:
                self._refuse(*TOO_LARGE)
        elif arrival.awaited is BODY:
            arrival.came_bytes += self._came
            if arrival.is_padded(self.limits):
                self._refuse(*NO_HTTP)

    def _feed_plain(self, rest: bytes) -> None:
        """Nothing is upgraded here: such a request is read as the same one without the wish, and then what follows it.

        The parser cannot do that.
        """
        while True:
            head, self._plain_head = self._plain_head, b""
            self.parser: Any = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
            data = head + rest
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                rest = data[upgrade.args[0] :]
            else:
                return

    def _look(self) -> None:
        """Every few seconds: is a request, or the next one, too long in coming? One timer for all such questions."""
        now, limits, arrival = self.loop.time(), self.limits, self._arrival
        if self._stuck and self._reads_too_slowly(now):
            self.transport.abort()
            return
        if self.transport.is_closing():
            pass  # what is written still has to be read
        elif arrival.awaited is REQUEST:
            if self._is_idle() and arrival.is_late(now, limits, self.timeout_keep_alive):
                self.transport.close()
        elif arrival.awaited is BODY and self.flow.read_paused:
            arrival.held_back(limits.look_every_s)
        elif arrival.is_late(now, limits, self.timeout_keep_alive):
            self._refuse(*TOO_SLOW)
        self._timer = self.loop.call_later(limits.look_every_s, self._look)

    def _reads_too_slowly(self, now: float) -> bool:
        read_bytes = max(0, self._stuck_bytes - int(self.transport.get_write_buffer_size()))
        return now - self._stuck >= self.limits.unread_s + read_bytes / self.limits.body_bytes_s

    def waiting(self, now: float) -> tuple[int, float] | None:
        """Rank how dispensable it is, the least first; None: a request is being answered, or it ends anyway."""
        if self.transport.is_closing():
            return None
        if not self._is_idle() and (self._arrival.awaited is not BODY or self.cycle.response_started):
            return None
        return self._arrival.waiting(now)

    def hang_up(self) -> None:
        """End it at once: others need its place."""
        self.transport.abort()

    def _is_idle(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _refuse(self, status: int, text: bytes) -> None:
        """Refuse the rest: say why once all before it is answered, and hang up.

        Of a body that breaks off, the refusal is the answer, unless one has begun.
        """
        self._refusal = (status, text)
        may_speak = self._is_idle()
        if self._arrival.awaited is BODY:
            if self.pipeline and self.pipeline[0][0] is self.cycle:
                self.pipeline.popleft()  # nobody began with it
            elif self.cycle.response_started:
                self.transport.close()
                return
            else:
                may_speak = True
        if may_speak:
            head = b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + head % len(text) + text)
            self.transport.close()

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        self._stuck, self._stuck_bytes = self.loop.time(), self.transport.get_write_buffer_size()
        super().pause_writing()
        self.unread.add(self, self._stuck_bytes)

    def resume_writing(self) -> None:
        """It has caught up."""
        self._stuck = 0.0
        super().resume_writing()
        self.unread.remove(self)

    def _unset_keepalive_if_required(self) -> None:
        """uvicorn's timer for each pause between requests is not used: `_look` sees to it."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._timer.cancel()
        self.unread.remove(self)
        request, self._request = self._request, None
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()
        if request is not None and request.gone is not None:
            request.gone()

    # -- what the parser finds -----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """The first byte of a request. ASGI's scope is made when it turns out to be needed."""
        self.url = b""
        self.headers: list[Header] = []
        self.expect_100_continue = False
        self._is_short = False
        arrival = self._arrival
        arrival.awaited, arrival.head_bytes = HEAD, -self._came  # other requests may be in the same packet
        if not arrival.is_first:  # the first head's time has run since the client connected
            arrival.since = self._now

    def on_headers_complete(self) -> None:
        """Which way does it go?"""
        arrival, parser = self._arrival, self.parser
        came = self._came
        if came > self.limits.head_bytes or came + arrival.head_bytes > self.limits.head_bytes:
            self._measure_head()
        if parser.should_upgrade():
            self._plain_head = self._without_upgrade(parser.get_method())
            return
        request = self._short_request()
        if request is not None:
            self.cycle, self._request, self._is_short = request, request, True
            self._parts = []
        else:
            url, headers, expects = self.url, self.headers, self.expect_100_continue
            super().on_message_begin()
            self.url, self.expect_100_continue = url, expects
            self.headers.extend(headers)
            super().on_headers_complete()
        self.headers = []  # what comes behind a body is nobody's business
        # Last: until there is a cycle of its own, the one in hand is that of the request before.
        arrival.awaited, arrival.is_first, arrival.since = BODY, False, self._now
        arrival.came_bytes, arrival.body_bytes = -self._came, 0  # what comes with the head is not counted

    def _no_request(self, status: int, text: bytes) -> NoRequestError:
        """To be raised through the parser; `data_received` says what it says to the client."""
        self._refusal = (status, text)
        return NoRequestError()

    def _measure_head(self) -> None:
        """The end of a head came with bytes of something else: count what is its own."""
        own = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if own > self.limits.head_bytes:
            raise self._no_request(*TOO_LARGE)

    def _without_upgrade(self, method: bytes) -> bytes:
        """The request's head again, without the headers of a wish to go on in another protocol."""
        if method == b"CONNECT":
            raise self._no_request(405, b"this is no proxy")
        lines = [b"%b %b HTTP/%b" % (method, self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(word for word in value.split(b",") if word.strip().lower() not in UPGRADES)
            if name not in UPGRADES and (value or name != b"connection"):
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"\r\n"])

    def _short_request(self) -> Request | None:
        """The request, if it may take the short way."""
        url, parser, headers = self.url, self.parser, self.headers
        found = dict(headers)
        version = parser.get_http_version()
        is_plain = len(found) == len(headers)
        if HOST not in found:
            if version == "1.1":
                raise self._no_request(*NO_HOST)
        elif not is_plain and sum(key == HOST for key, _ in headers) > 1:
            raise self._no_request(*NO_HOST)  # two readers could each believe another one
        if self._direct is None or not (url.startswith(PREFIX) and url.endswith(SUFFIX)) or self.expect_100_continue:
            return None
        name = url[len(PREFIX) : -len(SUFFIX)]
        if not name or b"/" in name or b"%" in name or b"?" in name:
            return None
        if not self._is_idle() or self.flow.write_paused:  # ASGI's way waits for a client that does not read
            return None
        if not is_plain or version != "1.1" or parser.get_method() != b"POST" or not LONG_WAY.isdisjoint(found):
            return None
        if self._direct.has_cors and b"origin" in found:
            return None
        length = found.get(b"content-length", b"")
        if not length.isdigit() or int(length) > MAX_SHORT_BODY_BYTES:
            return None
        authorization = found.get(b"authorization", b"").decode("latin-1")
        trace = found.get(b"x-request-id", b"").decode("latin-1")
        return Request(self, name.decode("latin-1"), parser.should_keep_alive(), authorization, trace, headers)

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._arrival.body_bytes += len(body)
        if self._is_short:
            self._parts.append(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is here, whole."""
        arrival = self._arrival
        if self._plain_head:
            return  # it is about to be read once more
        arrival.awaited, arrival.since = REQUEST, self._now
        if not self._is_short:
            super().on_message_complete()
            return
        self._is_short = False
        request = self._request
        assert request is not None and self._direct is not None
        request.body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        try:
            gone = self._direct.infer(request)
        except Exception:  # the log has it, the client 500; it must not pass through the parser, which would say 400
            self.logger.exception("an inference request failed in the gateway")
            request.reply(500, [], b"")
            return
        if not request.is_answered:
            request.gone = gone

    # -- the answer ----------------------------------------------------------------------------------------------

    def answer(self, request: Request, status: int, headers: Sequence[Header], body: bytes) -> None:
        """Send the whole answer to the short-way request, and go on to the next."""
        self._request = None
        if self.transport.is_closing():
            return
        parts = [STATUS_LINE[status]]
        for name, value in self.server_state.default_headers:
            parts += (name, b": ", value, b"\r\n")
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
        if not request.keep_alive:
            parts.append(b"connection: close\r\n")
        parts += (b"content-length: %d\r\n\r\n" % len(body), body)
        self.transport.write_now(b"".join(parts))
        if not request.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def on_response_complete(self) -> None:
        """Start the request that waited behind this one, if any; else the pause between requests begins."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        arrival = self._arrival
        if arrival.awaited is REQUEST:
            arrival.since = self.loop.time()
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        elif self._refusal is not None:
            self._refuse(*self._refusal)
