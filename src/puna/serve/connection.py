"""A client's connection: uvicorn's HTTP protocol, a short way for inference, and limits on time and size.

The short way is for what inference most often is: a POST of a stated, moderate length to `/infer`, answered whole.
It makes no task, no future and no timer. Everything else takes uvicorn's way through ASGI.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from puna.serve.corked import CorkedProtocol
from puna.serve.http import JSON_BYTES, Header

PREFIX, SUFFIX = b"/v2/models/", b"/infer"
MAX_SHORT_BODY_BYTES = 65536
"""Longer ones take ASGI's way, which can pause the client."""
LONG_WAY = frozenset((b"content-encoding", JSON_BYTES))
"""Headers of requests whose body has to be looked at first."""
TOO_SLOW = (408, b"the request took too long to arrive")
TOO_LARGE = (431, b"the request's head is too large")


@dataclass(frozen=True)
class Limits:
    """What a client may ask of a connection."""

    head_bytes: int = 65536
    head_s: float = 10.0
    """A request line and its headers have so long, from their first byte."""
    body_s: float = 60.0
    """No byte of a body for so long: the client is gone, or means harm."""
    unread_s: float = 60.0
    """Replies wait for so long while the client reads nothing."""
    look_every_s: float = 5.0


class Direct(Protocol):
    """Who answers the short way: the gateway."""

    has_cors: bool
    """What pages of other sites send needs headers of its own."""

    def infer(self, request: Request) -> Callable[[], None] | None:
        """Begin; `request.reply` is called once, now or later. What is returned is called if the client leaves."""


class Request:
    """An inference request that has arrived whole."""

    __slots__ = (
        "_connection",
        "authorization",
        "body",
        "disconnected",
        "gone",
        "headers",
        "is_answered",
        "keep_alive",
        "name",
        "trace",
    )

    def __init__(self, connection: Connection, name: str, keep_alive: bool) -> None:
        self._connection = connection
        self.name, self.keep_alive = name, keep_alive
        self.authorization = self.trace = ""
        self.body = b""
        self.headers: Sequence[Header] = ()
        self.is_answered = self.disconnected = False
        self.gone: Callable[[], None] | None = None
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


class Connection(CorkedProtocol):
    """One client."""

    limits = Limits()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._direct: Direct | None = self.app if hasattr(self.app, "infer") else None
        self._request: Request | None = None  # the short-way request that is being parsed or answered
        self._is_short = False  # what is being parsed takes the short way
        self._parts: list[bytes] = []
        self._head_bytes = -1  # of the head that is arriving; -1: none is
        self._moved = 0.0  # when the last byte came, or the head began
        self._stuck = 0.0  # since when the client has not read what is written; 0: it reads
        self._timer: Any = None

    # -- time and size -------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """A client has connected."""
        super().connection_made(transport)
        self._moved = self.loop.time()
        self._timer = self.loop.call_later(self.limits.look_every_s, self._look)

    def data_received(self, data: bytes) -> None:
        """Bytes of requests."""
        if self._head_bytes < 0:
            self._moved = self.loop.time()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return  # nothing is upgraded here; the request itself is answered as any other
        except httptools.HttpParserError:
            self._refuse(400, b"this is no HTTP request")
            return
        if self._head_bytes >= 0:
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.head_bytes:
                self._refuse(*TOO_LARGE)

    def _look(self) -> None:
        """Every few seconds: is a request, or the next one, too long in coming? One timer for all such questions."""
        now = self.loop.time()
        quiet_s = now - self._moved
        if self._stuck and now - self._stuck >= self.limits.unread_s:
            self.transport.abort()
            return
        if self.transport.is_closing():
            pass  # what is written still has to be read
        elif self._head_bytes >= 0:
            if quiet_s >= self.limits.head_s:
                self._refuse(*TOO_SLOW)
        elif self._is_idle():
            if quiet_s >= self.timeout_keep_alive:
                self.transport.close()
        elif self._body_is_due() and quiet_s >= self.limits.body_s:
            self._refuse(*TOO_SLOW)
        self._timer = self.loop.call_later(self.limits.look_every_s, self._look)

    def _is_idle(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _body_is_due(self) -> bool:
        """The rest of a body is awaited, and nobody here has asked the client to pause."""
        if self.flow.read_paused:
            return False
        return self._is_short or bool(getattr(self.cycle, "more_body", False))

    def _refuse(self, status: int, text: bytes) -> None:
        """What cannot be a request any more: say why when nothing was said yet, and hang up."""
        if self._is_idle() or self._is_short or not self.cycle.response_started:
            head = b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + head % len(text) + text)
        self.transport.close()

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        self._stuck = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._stuck = 0.0
        super().resume_writing()

    def _unset_keepalive_if_required(self) -> None:
        """uvicorn's timer for each pause between requests is not used: `_look` sees to it."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._timer.cancel()
        request, self._request = self._request, None
        super().connection_lost(exc)
        if request is not None and request.gone is not None:
            request.gone()

    # -- what the parser finds -----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """The first byte of a request. ASGI's scope is made when it turns out to be needed."""
        self.url = b""
        self.headers: list[Header] = []
        self.expect_100_continue = False
        self._is_short = False
        self._head_bytes = 0
        self._moved = self.loop.time()

    def on_headers_complete(self) -> None:
        """Which way does it go?"""
        self._head_bytes = -1
        request = self._short_request() if self._direct is not None else None
        if request is not None:
            self.cycle, self._request, self._is_short = request, request, True
            self._parts = []
            return
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        super().on_headers_complete()

    def _short_request(self) -> Request | None:
        """The request, if it may take the short way."""
        url = self.url
        if not (url.startswith(PREFIX) and url.endswith(SUFFIX)) or self.expect_100_continue:
            return None
        name = url[len(PREFIX) : -len(SUFFIX)]
        if not name or b"/" in name or b"%" in name or b"?" in name:
            return None
        if not self._is_idle() or self.flow.write_paused:  # ASGI's way waits for a client that does not read
            return None
        parser = self.parser
        if parser.get_method() != b"POST" or parser.get_http_version() != "1.1" or parser.should_upgrade():
            return None
        request = Request(self, name.decode("latin-1"), parser.should_keep_alive())
        request.headers = self.headers
        length = b""
        for key, value in self.headers:
            if key == b"content-length":
                length = value
            elif key == b"authorization":
                request.authorization = request.authorization or value.decode("latin-1")
            elif key == b"x-request-id":
                request.trace = request.trace or value.decode("latin-1")
            elif key in LONG_WAY or (key == b"origin" and self._direct is not None and self._direct.has_cors):
                return None
        return request if length.isdigit() and int(length) <= MAX_SHORT_BODY_BYTES else None

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        if self._is_short:
            self._parts.append(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is here, whole."""
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
        self._moved = self.loop.time()
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
