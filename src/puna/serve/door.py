"""uvicorn's server with a door of its own, so that gateways on one port share their clients.

All gateways accept from one inherited socket: what waits in it when one of them is killed is taken by the others. The
kernel wakes all of them and the quickest wins, time after time the same, and connections stay; so each lets in one
client at a time, and who has more clients than a neighbour gives that one a moment's start.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn

CROWDED_PAUSE_S = 0.1
"""After an accept that failed, most likely for want of file descriptors."""

HANDSHAKE_TIMEOUT_S = 10.0
START_S = 0.005
"""What a gateway with fewer clients is given; uvloop counts in milliseconds."""
SLACK = 2
"""So many clients more are no reason to wait."""


class Counts:
    """How many clients each gateway of this port has, in memory that they share (`fd`); `index` is this one's."""

    def __init__(self, fd: int, index: int) -> None:
        self._counts = memoryview(mmap.mmap(fd, 0)).cast("I")
        self._others = [other for other in range(len(self._counts)) if other != index]
        self._index = index
        self.mine = 0

    @property
    def mine(self) -> int:
        """This gateway's clients."""
        return self._counts[self._index]

    @mine.setter
    def mine(self, count: int) -> None:
        self._counts[self._index] = count

    @property
    def is_ahead(self) -> bool:
        """A neighbour has fewer. A dead one's count stays as it was until its successor begins."""
        return any(self._counts[other] + SLACK < self.mine for other in self._others)


class Counted(set[Any]):
    """A set that keeps its size in the shared memory: uvicorn's set of connections."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self._counts = counts

    def add(self, item: Any) -> None:
        """As a set's."""
        super().add(item)
        self._counts.mine = len(self)

    def discard(self, item: Any) -> None:
        """As a set's."""
        super().discard(item)
        self._counts.mine = len(self)


class Door:
    """A listening socket; `close` and `wait_closed` as an asyncio server has them."""

    def __init__(
        self,
        bound: socket.socket,
        make: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None,
        backlog: int,
        counts: Counts | None,
    ) -> None:
        self._socket, self._make, self._tls, self._counts = bound, make, tls, counts
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[object]] = set()
        self._is_open = True
        bound.setblocking(False)
        bound.listen(backlog)
        self._loop.add_reader(bound, self._knock)

    def close(self) -> None:
        """Let nobody in any more."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._socket)

    async def wait_closed(self) -> None:
        """As an asyncio server's."""

    def _knock(self) -> None:
        if self._counts is not None and self._counts.is_ahead:
            self._loop.remove_reader(self._socket)
            self._loop.call_later(START_S, self._let_in)
            self._loop.call_later(START_S, self._open_again)
        else:
            self._let_in()

    def _let_in(self) -> None:
        if not self._is_open:
            return
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
            self._loop.add_reader(self._socket, self._knock)

    async def _greet(self, client: socket.socket) -> None:
        limit_s = HANDSHAKE_TIMEOUT_S if self._tls else None
        try:
            await self._loop.connect_accepted_socket(self._make, client, ssl=self._tls, ssl_handshake_timeout=limit_s)
        except (OSError, TimeoutError):
            client.close()  # it left, or what it speaks is no TLS


class Server(uvicorn.Server):  # type: ignore[misc]
    """As uvicorn's, on sockets that are bound already."""

    def __init__(self, config: uvicorn.Config, counts: Counts | None = None) -> None:
        super().__init__(config)
        self._counts = counts
        if counts is not None:
            self.server_state.connections = Counted(counts)

    async def startup(self, sockets: Sequence[socket.socket] | None = None) -> None:
        """The app first, then the doors."""
        await super().startup(sockets=[])

        def make() -> asyncio.Protocol:
            made: asyncio.Protocol = self.config.http_protocol_class(
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )
            return made

        tls, backlog = self.config.ssl, self.config.backlog
        self.servers = [Door(bound, make, tls, backlog, self._counts) for bound in sockets or ()]
