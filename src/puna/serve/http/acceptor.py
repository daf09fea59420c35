"""uvicorn's server with an acceptor of its own, so that gateways on one port share their clients.

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
from dataclasses import dataclass
from typing import Any

import uvicorn

from puna.serve.http.client_limits import LOCAL, ClientLimits, Clients
from puna.serve.http.connection import ClientConnection

CROWDED_PAUSE_S = 0.1
"""While nobody more can be let in."""
CROWDED = (
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 50\r\n\r\n"
    b"too many connections from this address at one time"
)

HANDSHAKE_TIMEOUT_S = 10.0
START_S = 0.005
"""What a gateway with fewer clients is given; uvloop counts in milliseconds."""
SLACK = 2
"""So many clients more are no reason to wait."""


class ClientCounts:
    """Numbers of clients of the gateways of one port, in memory that they share (`fd`); `index` is this one's."""

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


class CountedConnections(set[Any]):
    """A set that keeps its size in the shared memory: uvicorn's set of connections."""

    def __init__(self, counts: ClientCounts) -> None:
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


class Acceptor:
    """A listening socket; `close` and `wait_closed` as an asyncio server has them."""

    def __init__(
        self,
        bound: socket.socket,
        make: Callable[[], ClientConnection],
        tls: ssl.SSLContext | None,
        backlog: int,
        counts: ClientCounts | None,
        clients: Clients,
    ) -> None:
        self._socket, self._make, self._tls, self._counts, self._clients = bound, make, tls, counts, clients
        self._loop = asyncio.get_running_loop()
        self._is_open = True
        bound.setblocking(False)
        bound.listen(backlog)
        self._loop.add_reader(bound, self._on_readable)

    def close(self) -> None:
        """Let nobody in any more."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._socket)

    async def wait_closed(self) -> None:
        """As an asyncio server's."""

    def _on_readable(self) -> None:
        if self._counts is not None and self._counts.is_ahead:
            self._loop.remove_reader(self._socket)
            self._loop.call_later(START_S, self._accept)
            self._loop.call_later(START_S, self._open_again)
        else:
            self._accept()

    def _accept(self) -> None:
        if not self._is_open:
            return
        now = self._loop.time()
        if not self._clients.has_room(now):
            self._pause()  # all are being answered; who comes now waits in the kernel's queue
            return
        try:
            client, peer = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another gateway was quicker, or the client has gone
        except OSError:
            self._clients.make_room(now)  # no descriptor is left: something else has taken more than its share
            self._pause()
            return
        client.setblocking(False)
        address = str(peer[0]) if isinstance(peer, tuple) else LOCAL
        if not self._clients.admit(address, now):
            self._turn_away(client)
            return
        with contextlib.suppress(OSError):  # a Unix socket has no such option
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        greeting = Greeting(address, now, self._clients)
        self._clients.newcomers.add(greeting)
        greeting.task = self._loop.create_task(self._greet(client, greeting))

    def _turn_away(self, client: socket.socket) -> None:
        """Say why, where nothing had to be agreed on before, and hang up."""
        with client, contextlib.suppress(OSError):
            if self._tls is None:
                client.send(CROWDED)

    def _pause(self) -> None:
        self._loop.remove_reader(self._socket)
        self._loop.call_later(CROWDED_PAUSE_S, self._open_again)

    def _open_again(self) -> None:
        if self._is_open:
            self._loop.add_reader(self._socket, self._on_readable)

    async def _greet(self, client: socket.socket, greeting: Greeting) -> None:
        """Make a connection of it; TLS is agreed on first."""
        limit_s = HANDSHAKE_TIMEOUT_S if self._tls else None

        def make() -> ClientConnection:
            made = self._make()
            made.address, made.on_lost = greeting.address, greeting.leave
            return made

        try:
            await self._loop.connect_accepted_socket(make, client, ssl=self._tls, ssl_handshake_timeout=limit_s)
        except (OSError, TimeoutError, asyncio.CancelledError):
            client.close()  # it left, or what it speaks is no TLS, or others needed its place
            greeting.leave()
        finally:
            self._clients.newcomers.discard(greeting)


@dataclass(eq=False)
class Greeting:
    """A client that was accepted and is no connection yet."""

    address: str
    since: float
    clients: Clients
    task: asyncio.Task[None] | None = None
    has_left: bool = False

    def waiting(self, now: float) -> tuple[int, float] | None:
        """As a connection that has not said a word."""
        return 0, self.since

    def hang_up(self) -> None:
        """End it."""
        if self.task is not None:
            self.task.cancel()

    def leave(self) -> None:
        """It, or the connection that it became, is gone."""
        if not self.has_left:
            self.has_left = True
            self.clients.left(self.address)


class AcceptingServer(uvicorn.Server):  # type: ignore[misc]
    """As uvicorn's, on sockets that are bound already."""

    def __init__(
        self,
        config: uvicorn.Config,
        counts: ClientCounts | None = None,
        limits: ClientLimits = ClientLimits(),
        renewed: Callable[[], socket.socket | None] = lambda: None,
    ) -> None:
        """`renewed` is asked once a second for a socket in place of the one that is listened on; None: it stays."""
        super().__init__(config)
        self._renewed = renewed
        self._counts, self._limits = counts, limits
        if counts is not None:
            self.server_state.connections = CountedConnections(counts)

    async def startup(self, sockets: Sequence[socket.socket] | None = None) -> None:
        """The app first, then the acceptors."""
        await super().startup(sockets=[])

        def make() -> ClientConnection:
            made: ClientConnection = self.config.http_protocol_class(
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )
            return made

        tls, backlog = self.config.ssl, self.config.backlog
        clients = Clients(self._limits, self.server_state.connections)
        self._acceptor: Callable[[socket.socket], Acceptor]
        self._acceptor = lambda bound: Acceptor(bound, make, tls, backlog, self._counts, clients)
        self.servers = [self._acceptor(bound) for bound in sockets or ()]

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if counter % 10 == 0 and (bound := self._renewed()) is not None:
            for acceptor in self.servers:
                acceptor.close()
            self.servers = [self._acceptor(bound)]
        ended: bool = await super().on_tick(counter)
        return ended
