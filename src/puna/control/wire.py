"""Everything that passes between the control plane and its gateways: route table, reports, and the counts they share.

Messages are JSON: kinds are checked strictly, and what a newer side adds is passed over. When Puna is upgraded under a
running `puna up`, the process that is replaced first speaks with others of the version before: tables and reports stay
readable to both (0.1.0 included). Counts are series of numbers
in memory: each gateway has a descriptor of a memfd of its own that `puna up` holds for as long as it runs. It is
written with `pwrite` and never mapped, so that no state of a disk can end a gateway, and nobody can cut or remove it by
name. A memory holds `used` (8 bytes), then records: key, number of values, and the values, which stay in their place.
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, NewType, TypeVar

from puna.control.domain.api_keys import KeyLimits, parse_limits
from puna.control.domain.records import HeldKey

if TYPE_CHECKING:
    from pydantic import TypeAdapter

AWAKE, ASLEEP, WARM, COLD = TIERS = ("awake", "asleep", "warm", "cold")
"""The tiers of readiness; a replica that is ready is awake or asleep."""


@dataclass(frozen=True)
class ReplicaRoute:
    """A ready replica; the same id with another epoch is another process."""

    id: str
    epoch: int
    socket: str
    concurrency: int
    tier: str = AWAKE
    """As the control plane last heard; what the worker says itself is newer."""
    revision: int = 0


@dataclass(frozen=True)
class EndpointRoute:
    """One endpoint, as gateways have to know it."""

    name: str
    revision: int
    active: bool
    state: str
    reason: str
    """Why it cannot serve, in words for its callers; empty when it can, or soon will."""
    inference_time_s: float
    max_queue: int
    max_replica: int
    min_replica: int
    schema: Mapping[str, Any] | None
    replicas: tuple[ReplicaRoute, ...]
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Published adapters that its engine can load when a request names one: `owner/name` -> folder."""
    created: float = 0.0
    split: EndpointRoute | None = None
    """A second revision that has a share of the requests."""
    percent: int = 0
    """The share of the requests, where two revisions have one each."""
    poison: Mapping[str, float] = field(default_factory=dict)
    """Bodies that its replicas die of, by digest: seconds for which they are refused."""
    blocked: Mapping[str, float] = field(default_factory=dict)
    """Keys whose bodies have killed too many of them: seconds for which they are refused."""
    startup_timeout_s: float = 0.0
    """How long a replica's start may take: as long, at least, its requests may wait for one."""


@dataclass(frozen=True)
class KeyRoute(HeldKey):
    """A bearer key that may be used now."""

    name: str = ""
    """What its owner calls it; of a key with limits."""
    limits: Mapping[str, Any] | None = None
    """What it may ask for, as written; None: anything."""

    @functools.cached_property
    def parsed_limits(self) -> KeyLimits:
        """The limits, read; none where it has none."""
        return parse_limits(self.limits)


@dataclass(frozen=True)
class RouteTable:
    """One version of what a gateway serves: keys, and endpoints with their ready replicas."""

    version: int = -1
    """-1: none has come yet."""
    keys: tuple[KeyRoute, ...] = ()
    endpoints: Mapping[str, EndpointRoute] = field(default_factory=dict)


@dataclass(frozen=True)
class DeathReport:
    """A replica that died while it had requests."""

    replica: str
    revision: int
    survived: int
    """Requests that it had answered."""
    key: str
    """Whose request it had and nothing else; empty: it had several."""


class Conviction(NamedTuple):
    """A body that replicas of a revision die of, by its digest, and for how long it is refused."""

    revision: int
    digest: str
    left_s: float


@dataclass(frozen=True)
class EndpointLoad:
    """One endpoint's load: of one gateway, or of all together. Times are of the machine's monotonic clock."""

    in_flight: int = 0
    queued: int = 0
    last_request: float = 0.0
    """0 when there was none."""
    replicas: Mapping[str, int] = field(default_factory=dict)
    """Replica id -> requests in flight."""
    revisions: Mapping[int, EndpointLoad] = field(default_factory=dict)
    """Where two revisions share the requests, the load of each."""
    deaths: tuple[DeathReport, ...] = ()
    poison: tuple[Conviction, ...] = ()


class UsageCount(NamedTuple):
    """Requests of one key to one endpoint in one hour."""

    hour: int
    endpoint: str
    key: str
    requests: int
    failed: int
    infer_s: float


@dataclass(frozen=True)
class UsageReport:
    """Counts of a gateway since its report of the number before."""

    process: str
    number: int
    rows: tuple[UsageCount, ...]


@dataclass(frozen=True)
class LoadReport:
    """The state of a gateway, twice a second."""

    gateway: str
    at: float
    """On the monotonic clock."""
    endpoints: Mapping[str, EndpointLoad]
    usage: UsageReport | None = None


Message = TypeVar("Message", RouteTable, LoadReport)


def encode(message: RouteTable | LoadReport) -> bytes:
    """The message as JSON."""
    return _adapters()[type(message)].dump_json(message)


def decode(kind: type[Message], body: bytes) -> Message:
    """The message that the other side sent.

    Raises:
        ValueError: it is no such message.
    """
    adapter: TypeAdapter[Message] = _adapters()[kind]
    try:
        return adapter.validate_json(body, strict=True)
    except ValueError:
        completed = _completed(body) if kind is RouteTable else None
        if completed is None:
            raise
        return adapter.validate_json(completed, strict=True)


def _completed(body: bytes) -> bytes | None:
    """A table of 0.1.0 with what it leaves to be understood; None when it is no such table.

    It names no endpoint in its route, no revision with a replica, and of a second revision only what differs.
    """
    try:
        raw = json.loads(body)
        for name, route in raw["endpoints"].items():
            split = route.get("split")
            route["name"] = name
            route["split"] = {**route, **split, "split": None} if split else None
            for part in filter(None, (route, route["split"])):
                part["replicas"] = [{"revision": part["revision"], **replica} for replica in part["replicas"]]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return json.dumps(raw).encode()


@functools.cache
def _adapters() -> Mapping[type, TypeAdapter[Any]]:
    from pydantic import TypeAdapter  # here: `puna up` itself, which makes the memories, exchanges no messages

    return {kind: TypeAdapter(kind) for kind in (RouteTable, LoadReport)}


# -- the counts that gateways share ------------------------------------------------------------------------------------

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
    """Ways in which the series of several gateways become one."""

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
        """The number of values of a series."""
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
COLD_WAITS = Family(
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
        REQUESTS,
        LATENCY,
        REVISION_REQUESTS,
        REVISION_LATENCY,
        *WAITS,
        COLD_WAITS,
        QUEUE,
        IN_FLIGHT,
        REPLICAS,
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
    """The series of all gateways, added up."""
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
        key = tuple(json.loads(data[at + RECORD.size : begin]))
        yield key, struct.unpack_from(f"={count}d", data, begin), begin
        at = begin + 8 * count


def of(series: Mapping[Key, tuple[float, ...]], family: Family) -> Iterable[tuple[Key, tuple[float, ...]]]:
    """The series of one family: labels' values and numbers."""
    return ((key[1:], values) for key, values in series.items() if key[0] == family.name)
