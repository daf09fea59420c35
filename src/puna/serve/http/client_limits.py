"""Limits of clients: how many are connected, in all and from one address, and how slowly requests may arrive. No I/O.

Deadlines are absolute: a byte now and then buys no time. Time is an argument; the unit is seconds.
"""

from __future__ import annotations

import heapq
import ipaddress
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Awaited(Enum):
    """The next thing that a client owes."""

    REQUEST = "request"
    """The next one, or the first."""
    HEAD = "head"
    """The rest of a request line and its headers."""
    BODY = "body"
    """The rest of a body."""


REQUEST, HEAD, BODY = Awaited
"""Names of their own: looking up an enum's member takes Python 3.11 a tenth of a microsecond, ten times a request."""


@dataclass(frozen=True)
class ArrivalLimits:
    """Limits of one connection."""

    head_bytes: int = 65536
    head_s: float = 10.0
    """The first request's head has so long from the moment of connecting, later ones from their first byte."""
    body_s: float = 30.0
    """A body has so long, and more for each byte that came; and no longer than this without any byte."""
    body_bytes_s: int = 65536
    """So many bytes of a body buy it one more second."""
    overhead_bytes: int = 65536
    """Of a body in chunks: what is no body in it, beyond `OVERHEAD` times the body."""
    unread_s: float = 60.0
    """A reply waits for so long while the client reads nothing, and longer by what it does read, as with bodies."""
    look_every_s: float = 2.5


OVERHEAD = 16
"""A chunk of one byte takes six."""


class Arrival:
    """One connection's state; the fields are written by who parses, the questions are pure."""

    __slots__ = ("awaited", "body_bytes", "came_bytes", "head_bytes", "is_first", "moved", "since")

    def __init__(self, now: float) -> None:
        self.awaited = REQUEST
        self.since = now
        """When it began to be awaited: of the first head, the moment of connecting."""
        self.moved = now
        """When the last byte came."""
        self.is_first = True
        """No request has come yet."""
        self.head_bytes = 0
        """Of the head that is arriving, in packets after its first and before its last."""
        self.came_bytes = self.body_bytes = 0
        """Of the body that is arriving: on the wire in packets after the head's, and of itself."""

    def held_back(self, seconds: float) -> None:
        """This side asked the client to pause: that does not count."""
        self.since += seconds
        self.moved += seconds

    def is_late(self, now: float, limits: ArrivalLimits, keep_alive_s: float) -> bool:
        """True if the next bytes are overdue; between requests they are after `keep_alive_s`."""
        waited_s = now - self.since
        if self.awaited is REQUEST:
            return waited_s >= (limits.head_s if self.is_first else keep_alive_s)
        if self.awaited is HEAD:
            return waited_s >= limits.head_s
        bought_s = self.body_bytes / limits.body_bytes_s
        return now - self.moved >= limits.body_s or waited_s >= limits.body_s + bought_s

    def is_padded(self, limits: ArrivalLimits) -> bool:
        """The body's framing is out of proportion: endless trailers, or chunks that are all extension."""
        return self.came_bytes - self.body_bytes > limits.overhead_bytes + OVERHEAD * self.body_bytes

    def waiting(self, now: float) -> tuple[int, float] | None:
        """Rank how dispensable a connection is that waits for its client, the least first; None: it is not.

        First those that have never said a word or not a whole head, then those between two requests, then slow bodies;
        of equals, who has waited longest. A moment's grace, so that what is on its way can arrive.
        """
        if self.awaited is BODY and now - self.since < BODY_GRACE_S:
            return None
        rank = 2 if self.awaited is BODY else 0 if self.is_first or self.awaited is HEAD else 1
        return rank, self.since


BODY_GRACE_S = 2.0


AT_ONCE = 16
"""One in so many of those connected is hung up on when it is full: finding them costs a look at each."""
LOCAL = ""
"""The address of clients on a Unix socket."""


class LimitedClient(Protocol):
    """A connection, or one that is still shaking hands."""

    address: str

    def waiting(self, now: float) -> tuple[int, float] | None:
        """Rank how dispensable it is, the least first; None while a request is being answered."""

    def hang_up(self) -> None:
        """End it."""


@dataclass(frozen=True)
class ClientLimits:
    """Limits of one server."""

    most: int = 16384
    per_address: int = 1024
    """This machine's own addresses are not limited: who comes from there may be a proxy with everybody behind it."""


class Unread:
    """Replies in memory for clients that do not read them: past a limit, the longest stuck is hung up on."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self._held: dict[LimitedClient, int] = {}

    def add(self, client: LimitedClient, size: int) -> None:
        """So much waits for this one from now on."""
        self.remove(client)
        self._held[client] = size
        self.bytes += size
        while self.bytes > self.most_bytes and len(self._held) > 1:
            longest = next(iter(self._held))
            self.remove(longest)
            longest.hang_up()

    def remove(self, client: LimitedClient) -> None:
        """It has read, or is gone; harmless when nothing was waiting."""
        self.bytes -= self._held.pop(client, 0)


class Clients:
    """Those connected to one server."""

    def __init__(self, limits: ClientLimits, connections: Iterable[LimitedClient]) -> None:
        """`connections` are those that there are at any time."""
        self.limits = limits
        self.newcomers: set[LimitedClient] = set()
        """Accepted, and no connections yet: TLS is being agreed on."""
        self._connections = connections
        self._from: Counter[str] = Counter()
        self._count = 0

    def has_room(self, now: float) -> bool:
        """True if one more may come in; some that only wait may have been hung up on for it."""
        return self._count < self.limits.most or self.make_room(now)

    def admit(self, address: str, now: float) -> bool:
        """Count one more from `address`, unless too many of its are here and busy already."""
        if not is_own(address) and self._from[address] >= self.limits.per_address and not self.make_room(now, address):
            return False
        self._count += 1
        self._from[address] += 1
        return True

    def left(self, address: str) -> None:
        """One of them is gone."""
        self._count -= 1
        self._from[address] -= 1
        if not self._from[address]:
            del self._from[address]

    def make_room(self, now: float, address: str | None = None) -> bool:
        """Hang up on the most dispensable, of those from `address` if one is given; False when there are none."""
        found = []
        for client in (*self._connections, *self.newcomers):
            if address is None or client.address == address:
                waiting = client.waiting(now)
                if waiting is not None:
                    found.append((waiting, id(client), client))
        for _, _, client in heapq.nsmallest(1 + len(found) // AT_ONCE, found):
            client.hang_up()
        return bool(found)


def is_own(address: str) -> bool:
    """An address of this machine's own: a Unix socket's, or a loopback one."""
    if address == LOCAL:
        return True
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False
