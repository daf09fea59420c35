"""How requests arrive on a connection: what is awaited of the client, and when that is late or too much. No I/O.

Deadlines are absolute: a byte now and then buys no time. Time is an argument; the unit is seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Awaited(Enum):
    """What a client owes next."""

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
    """What a client may ask of a connection."""

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
        """What is awaited is overdue. Between requests that is so after `keep_alive_s`."""
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
        """How dispensable a connection is that waits for its client, the least first; None: it is not.

        First those that have never said a word or not a whole head, then those between two requests, then slow bodies;
        of equals, who has waited longest. A moment's grace, so that what is on its way can arrive.
        """
        if self.awaited is BODY and now - self.since < BODY_GRACE_S:
            return None
        rank = 2 if self.awaited is BODY else 0 if self.is_first or self.awaited is HEAD else 1
        return rank, self.since


BODY_GRACE_S = 2.0
