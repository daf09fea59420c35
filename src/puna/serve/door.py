"""uvicorn's server with a door of its own: clients are let in one at a time, so that gateways on one port share them.

All gateways accept from one inherited socket: what waits in it when one of them is killed is taken by the next. A loop
that accepts all who wait would leave its neighbours none, since connections stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Sequence

import uvicorn

CROWDED_PAUSE_S = 0.1
"""After an accept that failed, most likely for want of file descriptors."""

HANDSHAKE_TIMEOUT_S = 10.0


class Door:
    """A listening socket; `close` and `wait_closed` as an asyncio server has them."""

    def __init__(
        self, bound: socket.socket, make: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None, backlog: int
    ) -> None:
        self._socket, self._make, self._tls = bound, make, tls
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[object]] = set()
        self._is_open = True
        bound.setblocking(False)
        bound.listen(backlog)
        self._loop.add_reader(bound, self._let_in)

    def close(self) -> None:
        """Let nobody in any more."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._socket)

    async def wait_closed(self) -> None:
        """As an asyncio server's."""

    def _let_in(self) -> None:
        try:
            client, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another gateway was quicker, or the client has gone
        except OSError:
            self._loop.remove_reader(self._socket)
            self._loop.call_later(CROWDED_PAUSE_S, self._open_again)
            return
        client.setblocking(False)
        with contextlib.suppress(OSError):  # a Unix socket has no such option
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._greet(client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _open_again(self) -> None:
        if self._is_open:
            self._loop.add_reader(self._socket, self._let_in)

    async def _greet(self, client: socket.socket) -> None:
        limit_s = HANDSHAKE_TIMEOUT_S if self._tls else None
        try:
            await self._loop.connect_accepted_socket(self._make, client, ssl=self._tls, ssl_handshake_timeout=limit_s)
        except (OSError, TimeoutError):
            client.close()  # it left, or what it speaks is no TLS


class Server(uvicorn.Server):  # type: ignore[misc]
    """As uvicorn's, on sockets that are bound already."""

    async def startup(self, sockets: Sequence[socket.socket] | None = None) -> None:
        """The app first, then the doors."""
        await super().startup(sockets=[])

        def make() -> asyncio.Protocol:
            made: asyncio.Protocol = self.config.http_protocol_class(
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )
            return made

        self.servers = [Door(bound, make, self.config.ssl, self.config.backlog) for bound in sockets or ()]
