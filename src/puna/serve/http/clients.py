"""How many clients may be connected, in all and from one address, and who is hung up on when there are too many."""

from __future__ import annotations

import heapq
import ipaddress
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

AT_ONCE = 16
"""One in so many of those connected is hung up on when it is full: finding them costs a look at each."""
LOCAL = ""
"""The address of clients on a Unix socket."""


class LimitedClient(Protocol):
    """A connection, or one that is still shaking hands."""

    address: str

    def waiting(self, now: float) -> tuple[int, float] | None:
        """How dispensable it is, the least first; None while a request is being answered."""

    def hang_up(self) -> None:
        """End it."""


@dataclass(frozen=True)
class ClientLimits:
    """What a server lets in."""

    most: int = 16384
    per_address: int = 1024
    """This machine's own addresses are not limited: who comes from there may be a proxy with everybody behind it."""


class Unread:
    """What waits in memory for clients that do not read it: past a limit, who has been stuck longest is hung up on."""

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
        """Whether one more may come in; some that only wait may have been hung up on for it."""
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
