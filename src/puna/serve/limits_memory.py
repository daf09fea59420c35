"""The memory in which gateways count what keys with limits ask for. The standard library only: `puna up` makes it.

Each gateway writes words of its own and reads those of all, so nobody waits for a lock. Times are monotonic, and the
same in all processes of a machine; a period is divided into slots, and a count leaves with its slot.
"""

from __future__ import annotations

import fcntl
import mmap
import os

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
    """How much memory that many gateways share; only what is used is taken."""
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
        """Where the counts of a key are, in all gateways."""
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
        """What all gateways have counted in the period that ends with `slot`."""
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
