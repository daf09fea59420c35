"""What keys with limits have asked for, counted in memory that the gateways of one port share.

A call is counted first and looked at then: two gateways that let a call in at one moment both see both, so that a limit
is never passed, though near it both may refuse one that would have fitted. In any period there are at most as many
calls as the limit says, and who asks all the time gets as many in a period and a sixtieth. Tokens are known once a
call is over: it is let in while any are left, and may take more.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from puna.control.domain.api_keys import KeyLimits, Rate
from puna.control.wire import KeyRoute
from puna.errors import RateLimitError
from puna.serve.limits_memory import RATE, SLOTS, TOKENS, LimitCounts


class Limited(Protocol):
    """A call."""

    use: KeyUse | None


@dataclass(eq=False)
class KeyUse:
    """One call of a key with limits."""

    key: KeyRoute
    counts: LimitCounts
    place: int
    is_open: bool = False

    @property
    def limits(self) -> KeyLimits:
        """What the key may ask for."""
        return self.key.parsed_limits

    def enter(self, now: float) -> None:
        """Count the call.

        Raises:
            RateLimitError: it is more than the key may ask for; then it is not counted.
        """
        limits, counts = self.limits, self.counts
        if limits.concurrency is not None and counts.open(self.place, 1) > limits.concurrency:
            counts.open(self.place, -1)
            raise self._refused(f"concurrency {limits.concurrency}", 1.0)
        self.is_open = True
        if limits.tokens is not None:
            slot = _slot(limits.tokens, now)
            if counts.total(self.place, TOKENS, slot) >= limits.tokens.count:
                self.leave()
                raise self._refused(f"tokens {limits.tokens}", self._wait_s(limits.tokens, TOKENS, now))
        if limits.rate is not None:
            slot = _slot(limits.rate, now)
            counts.add(self.place, RATE, 1, slot)
            if counts.total(self.place, RATE, slot) > limits.rate.count:
                counts.add(self.place, RATE, -1, slot)
                self.leave()
                raise self._refused(f"rate {limits.rate}", self._wait_s(limits.rate, RATE, now))

    def leave(self, tokens: int = 0, now: float = 0.0) -> None:
        """The call is over, and has cost so many tokens; harmless when it was never let in."""
        if not self.is_open:
            return
        self.is_open = False
        if self.limits.concurrency is not None:
            self.counts.open(self.place, -1)
        if tokens and self.limits.tokens is not None:
            self.counts.add(self.place, TOKENS, tokens, _slot(self.limits.tokens, now))

    def headers(self, now: float) -> list[tuple[bytes, bytes]]:
        """What is left of the key's limits, as OpenAI's API tells it."""
        told = []
        for limit, kind, name in (
            (self.limits.rate, RATE, b"requests"),
            (self.limits.tokens, TOKENS, b"tokens"),
        ):
            if limit is not None:
                used = self.counts.total(self.place, kind, _slot(limit, now))
                reset_s = self._wait_s(limit, kind, now) if used >= limit.count else 0.0
                told += [
                    (b"x-ratelimit-limit-" + name, b"%d" % limit.count),
                    (b"x-ratelimit-remaining-" + name, b"%d" % max(0, limit.count - used)),
                    (b"x-ratelimit-reset-" + name, b"%.3fs" % reset_s),
                ]
        return told

    def _wait_s(self, limit: Rate, kind: int, now: float) -> float:
        """How long until one more fits."""
        slot = _slot(limit, now)
        slots = self.counts.slots_until(self.place, kind, slot, limit.count - 1)
        return (slot + slots) * limit.period_s / SLOTS - now

    def _refused(self, limit: str, wait_s: float) -> RateLimitError:
        return RateLimitError(f"{limit} of key `{self.key.name or self.key.id}` is used up", wait_s)


class KeyLimiter:
    """The limits of this gateway's keys."""

    def __init__(self, fd: int = -1, index: int = 0) -> None:
        """As `Counts` takes them; the memory is not touched before there is a key with limits."""
        self._of = (fd, index)
        self._counts: LimitCounts | None = None

    def enter(self, call: Limited, key: KeyRoute) -> None:
        """Count a call; `call.use` is what it has to leave when it is over.

        Raises:
            RateLimitError: its key has asked for more than it may.
        """
        if self._counts is None:
            self._counts = LimitCounts(*self._of)
        call.use = KeyUse(key, self._counts, self._counts.place(key.id))
        call.use.enter(time.monotonic())


def _slot(limit: Rate, now: float) -> int:
    return int(now * SLOTS / limit.period_s)
