"""Limits of keys: calls and tokens in a time, calls at once, counted in memory that the gateways of one port share.

Each gateway writes words of its own and reads those of all, so nobody waits for a lock. Times are monotonic, and the
same in all processes of a machine; a period is divided into slots, and a count leaves with its slot.

A call is counted first and looked at then: two gateways that let a call in at one moment both see both, so that a limit
is never passed, though near it both may refuse one that would have fitted. In any period there are at most as many
calls as the limit says, and who asks all the time gets as many in a period and a sixtieth. Tokens are known once a
call is over: it is let in while any are left, and may take more.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from dataclasses import dataclass

from puna.control.domain.api_keys import KeyLimits, Rate
from puna.control.wire import KeyRoute
from puna.errors import RateLimitError

SLOTS = 60
"""Parts of a period."""
RING = 64
"""Slots that are kept; a power of two over SLOTS, and those that are not in the period are empty or old."""
RATE, TOKENS, CONCURRENCY = 0, RING + 1, 2 * (RING + 1)
"""Where the words of a key begin: a ring's slots and the number of its last one, twice; then calls that are open."""
WORDS = 2 * (RING + 1) + 1
KEYS = 16384
"""Keys with limits that one `puna up` has had."""
HEAD = KEYS
"""Words that say which key has which place."""


def size_bytes(gateways: int) -> int:
    """The size of the memory that so many gateways share; only what is used is taken."""
    return 8 * (HEAD + KEYS * WORDS * gateways)


class LimitCounts:
    """The memory: of each key and gateway, calls and tokens by slot, and calls that are open."""

    def __init__(self, fd: int = -1, index: int = 0) -> None:
        """`fd` is shared memory of `size_bytes(gateways)`, and `index` this gateway's number. Without: its own."""
        size = os.fstat(fd).st_size if fd >= 0 else size_bytes(1)
        self._fd, self._index, self._gateways = fd, index, (size // 8 - HEAD) // (KEYS * WORDS)
        self._words = memoryview(mmap.mmap(fd, size)).cast("Q")
        self._places: dict[str, int] = {}
        for place in range(KEYS):  # a gateway that died had calls open that nobody will close
            if not self._words[place]:
                break
            self._words[self._at(place, index) + CONCURRENCY] = 0

    def _at(self, place: int, gateway: int) -> int:
        return HEAD + (place * self._gateways + gateway) * WORDS

    def place(self, key: str) -> int:
        """The place of a key's counts, the same in all gateways."""
        found = self._places.get(key)
        if found is None:
            found = self._places[key] = self._claim(int(key, 16) + 1)
        return found

    def _claim(self, word: int) -> int:
        if self._fd >= 0:
            fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            for place in range(KEYS):
                if self._words[place] in (0, word):
                    self._words[place] = word
                    return place
        finally:
            if self._fd >= 0:
                fcntl.lockf(self._fd, fcntl.LOCK_UN)
        return (word - 1) % KEYS  # two keys share a place from here on: each may have less than its limit, never more

    def add(self, place: int, kind: int, amount: int, slot: int) -> None:
        """Count in a slot, as this gateway; a negative amount takes back what was counted in that same slot."""
        words, base = self._words, self._at(place, self._index) + kind
        last = words[base + RING]
        if slot > last:
            for passed in range(max(last + 1, slot - RING + 1), slot + 1):
                words[base + passed % RING] = 0
            words[base + RING] = slot
        elif slot <= last - RING:
            return
        words[base + slot % RING] += amount

    def total(self, place: int, kind: int, slot: int) -> int:
        """The count of all gateways in the period that ends with `slot`."""
        return sum(sum(self._of(place, gateway, kind, slot)) for gateway in range(self._gateways))

    def _of(self, place: int, gateway: int, kind: int, slot: int) -> list[int]:
        words, base = self._words, self._at(place, gateway) + kind
        last = words[base + RING]
        first = slot - SLOTS  # one more than the period has: a slot of it may have just begun
        count = min(last, slot) - first + 1
        if count <= 0:
            return []
        begin = (min(last, slot) - count + 1) % RING
        end = begin + count
        if end <= RING:
            return words[base + begin : base + end].tolist()
        return words[base + begin : base + RING].tolist() + words[base : base + end - RING].tolist()

    def slots_until(self, place: int, kind: int, slot: int, most: int) -> int:
        """After how many slots no more than `most` will be left of what is there now; at least 1."""
        by_number: dict[int, int] = {}
        for gateway in range(self._gateways):
            counts = self._of(place, gateway, kind, slot)
            last = min(self._words[self._at(place, gateway) + kind + RING], slot)
            for number, count in enumerate(counts, last - len(counts) + 1):
                by_number[number] = by_number.get(number, 0) + count
        left, slots = sum(by_number.values()), 1
        for number in sorted(by_number):
            if left <= most:
                break
            left -= by_number[number]
            slots = number + SLOTS + 1 - slot
        return max(slots, 1)

    def open(self, place: int, change: int) -> int:
        """One call more, or less, is open in this gateway; how many are in all."""
        words = self._words
        words[self._at(place, self._index) + CONCURRENCY] += change
        return sum(words[self._at(place, gateway) + CONCURRENCY] for gateway in range(self._gateways))


@dataclass(eq=False)
class KeyUse:
    """One call of a key with limits."""

    key: KeyRoute
    counts: LimitCounts
    place: int
    is_open: bool = False

    @property
    def limits(self) -> KeyLimits:
        """The key's limits."""
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
        """Headers with the rest of the key's limits, as OpenAI's API names them."""
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
        """Seconds until one more fits."""
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

    def use(self, key: KeyRoute) -> KeyUse:
        """A call of this key's, to be entered, and to be left when it is over."""
        if self._counts is None:
            self._counts = LimitCounts(*self._of)
        return KeyUse(key, self._counts, self._counts.place(key.id))


def _slot(limit: Rate, now: float) -> int:
    return int(now * SLOTS / limit.period_s)
