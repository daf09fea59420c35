"""What the gateways count, as series of numbers in memory that they, their successors and the control plane share.

Each gateway has a memory of its own: a descriptor of a memfd that `puna up` holds for as long as it runs. It is written
with `pwrite` and never mapped, so that no state of a disk can end a gateway, and nobody can cut or remove it by name.
A memory holds `used` (8 bytes), then records: key and number of values, and the values, which stay at their place.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

LOG = logging.getLogger("puna.figures")
HEAD, RECORD = struct.Struct("=Q"), struct.Struct("=II")

# From a no-op app to a long generation; 180 s is the default inference_time.
LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180, 600)
# From a no-op app's turn of the loop to a cold start from a slow disk; waking is between 0.1 and 10 s.
WAIT_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)
COLD_BUCKETS_S = (0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 900)

Key = tuple[str, ...]
"""A family's name and the values of its labels."""
Memories = NewType("Memories", tuple[int, ...])
"""The descriptors of all gateways' memories."""
NONE = Memories(())


class Kind(StrEnum):
    """How the series of several gateways become one."""

    COUNTER = "counter"
    HISTOGRAM = "histogram"
    """Values: the observations in each bucket alone, those above the last bound, and the sum of all."""
    SUM = "sum"
    """A gauge; a gateway that dies has none of it."""
    MAX = "max"
    """A gauge that all gateways have alike."""


@dataclass(frozen=True)
class Family:
    """A name that Prometheus knows, and what its series have."""

    name: str
    text: str
    kind: Kind
    labels: tuple[str, ...]
    bounds_s: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """How many numbers a series has."""
        return len(self.bounds_s) + 2 if self.kind is Kind.HISTOGRAM else 1


_TIERED = ("endpoint", "tier")
REQUESTS = Family("puna_requests", "Requests answered.", Kind.COUNTER, ("endpoint", "status"))
LATENCY = Family(
    "puna_request_seconds",
    "From arrival to the end of the reply, waiting included.",
    Kind.HISTOGRAM,
    ("endpoint",),
    LATENCY_BUCKETS_S,
)
REVISION_REQUESTS = Family(
    "puna_revision_requests",
    "Requests answered while two revisions shared an endpoint.",
    Kind.COUNTER,
    ("endpoint", "revision", "status"),
)
REVISION_LATENCY = Family(
    "puna_revision_request_seconds",
    "As puna_request_seconds, by revision, while two shared an endpoint.",
    Kind.HISTOGRAM,
    ("endpoint", "revision"),
    LATENCY_BUCKETS_S,
)
WAITS = tuple(
    Family(f"puna_{name}_seconds", text, Kind.HISTOGRAM, _TIERED, WAIT_BUCKETS_S)
    for name, text in (
        ("queue", "Waits for a replica with a free place."),
        ("wake", "Waits, on a replica that slept, until it was awake."),
        ("infer", "From the sending to a replica to the end of its reply, waking excepted."),
        ("first_byte", "From arrival to the first byte of the reply, waiting included."),
    )
)
COLD = Family(
    "puna_cold_wait_seconds",
    "Waits of requests that found no replica ready.",
    Kind.HISTOGRAM,
    ("endpoint",),
    COLD_BUCKETS_S,
)
QUEUE = Family("puna_queue", "Requests waiting for a replica.", Kind.SUM, ("endpoint",))
IN_FLIGHT = Family("puna_in_flight", "Requests that replicas have.", Kind.SUM, ("endpoint",))
REPLICAS = Family("puna_replicas", "Ready replicas.", Kind.MAX, _TIERED)
FAMILIES = {
    family.name: family
    for family in (
        *(REQUESTS, LATENCY, REVISION_REQUESTS, REVISION_LATENCY, *WAITS),
        *(COLD, QUEUE, IN_FLIGHT, REPLICAS),
    )
}


def make(count: int) -> Memories:
    """So many empty memories."""
    return Memories(tuple(os.memfd_create(f"puna-figures-{number}") for number in range(count)))


class GatewayMemory:
    """One gateway's memory, which a predecessor may have begun: its series are gone on with."""

    def __init__(self, fd: int) -> None:
        self._fd, self._at, self._is_told = fd, dict[Key, int](), False
        self._used = HEAD.size
        self.found: dict[Key, tuple[float, ...]] = {}
        """What the predecessor had written; of gauges nothing."""
        for key, values, at in _records(fd):
            family = FAMILIES.get(key[0])
            self._used = at + 8 * len(values)
            if family is not None and len(values) == family.width:
                self._at[key] = at
                is_gauge = family.kind in (Kind.SUM, Kind.MAX)
                self.found[key] = (0.0,) * len(values) if is_gauge else values

    def write(self, series: Iterable[tuple[Key, Sequence[float]]]) -> None:
        """Write these series; a memory that takes none is told of once, and changes nothing for those who count."""
        try:
            for key, values in series:
                at = self._at.get(key)
                data = struct.pack(f"={len(values)}d", *values)
                if at is None:
                    self._append(key, data)
                else:
                    _put(self._fd, data, at)
        except OSError as error:
            if not self._is_told:
                LOG.warning("figures cannot be written down, and go on without that: %s", error)
            self._is_told = True

    def _append(self, key: Key, data: bytes) -> None:
        name = json.dumps(key).encode()
        _put(self._fd, RECORD.pack(len(name), len(data) // 8) + name + data, self._used)
        at = self._used + RECORD.size + len(name)
        _put(self._fd, HEAD.pack(at + len(data)), 0)  # last: half a record is none
        self._at[key], self._used = at, at + len(data)


def _put(fd: int, data: bytes, at: int) -> None:
    if os.pwrite(fd, data, at) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read(memories: Memories) -> dict[Key, tuple[float, ...]]:
    """What all gateways have counted together."""
    found: dict[Key, tuple[float, ...]] = {}
    for fd in memories:
        for key, values, _ in _records(fd):
            family = FAMILIES.get(key[0])
            if family is None or len(values) != family.width:
                continue  # of another version of Puna, which a gateway ran before it was upgraded under it
            before = found.get(key)
            found[key] = values if before is None else _together(family, before, values)
    return found


def _together(family: Family, first: Sequence[float], second: Sequence[float]) -> tuple[float, ...]:
    pairs = zip(first, second, strict=True)
    return tuple(map(max, pairs)) if family.kind is Kind.MAX else tuple(a + b for a, b in pairs)


def _records(fd: int) -> Iterable[tuple[Key, tuple[float, ...], int]]:
    """Key, values and where the values begin, of each record."""
    data = os.pread(fd, HEAD.size, 0)
    if len(data) < HEAD.size:
        return
    used = HEAD.unpack(data)[0]
    while len(data) < used and (piece := os.pread(fd, used - len(data), len(data))):
        data += piece
    at = HEAD.size
    while at + RECORD.size <= min(used, len(data)):
        length, count = RECORD.unpack_from(data, at)
        begin = at + RECORD.size + length
        if begin + 8 * count > len(data):
            return
        yield _key(data[at + RECORD.size : begin]), struct.unpack_from(f"={count}d", data, begin), begin
        at = begin + 8 * count


def _key(name: bytes) -> Key:
    return tuple(json.loads(name))


def of(series: Mapping[Key, tuple[float, ...]], family: Family) -> Iterable[tuple[Key, tuple[float, ...]]]:
    """The series of one family: labels' values and numbers."""
    return ((key[1:], values) for key, values in series.items() if key[0] == family.name)
