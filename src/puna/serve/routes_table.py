"""The gateway's view of the world: keys, endpoints and their ready replicas, in memory, followed by long poll."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from puna.control.domain import api_keys
from puna.control.domain.api_keys import KeyLimits

DEFAULT_MAX_QUEUE = 100
LONG_POLL_S = 20.0
RETRY_S = 0.1
AWAKE, ASLEEP, WARM, COLD = TIERS = ("awake", "asleep", "warm", "cold")
"""The tiers of readiness; a replica that is ready is awake or asleep."""

Fetch = Callable[[str, str, bytes], Awaitable[bytes]]
"""`await fetch(method, path, body)`: the body of the control plane's reply; raises OSError when it is not there."""


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
    """What the gateway must know of one endpoint."""

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
    """Of a second revision: its share."""
    poison: Mapping[str, float] = field(default_factory=dict)
    """Bodies that its replicas die of, by digest: seconds for which they are refused."""
    blocked: Mapping[str, float] = field(default_factory=dict)
    """Keys whose bodies have killed too many of them: seconds for which they are refused."""


@dataclass(frozen=True)
class KeyRoute:
    """A bearer key that may be used now, without its secret."""

    id: str
    salt: str
    sha256: str
    scope: tuple[str, ...]
    endpoints: tuple[str, ...] | None
    """The endpoints that it may call; None: all."""
    expires: float | None
    name: str = ""
    """What its owner calls it; of a key with limits."""
    limits: KeyLimits | None = None
    """What it may ask for; None: anything."""


@dataclass(frozen=True)
class Table:
    """One version of the world."""

    version: int = -1
    """-1: nothing heard yet."""
    keys: Mapping[str, KeyRoute] = field(default_factory=dict)
    endpoints: Mapping[str, EndpointRoute] = field(default_factory=dict)


def parse(body: bytes) -> Table:
    """The table that the control plane sent.

    Raises:
        ValueError: the bytes are no table.
    """
    try:
        raw = orjson.loads(body)
        keys = {key["id"]: _key(key) for key in raw["keys"]}
        return Table(raw["version"], keys, {name: _endpoint(name, e) for name, e in raw["endpoints"].items()})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the control plane sent no route table: {error!r}") from None


def _key(raw: Mapping[str, Any]) -> KeyRoute:
    allowed = raw.get("endpoints")
    endpoints = None if allowed is None else tuple(allowed)
    limits = api_keys.parse_limits(raw["limits"]) if raw.get("limits") else None
    scope, name = tuple(raw["scope"]), str(raw.get("name") or "")
    return KeyRoute(raw["id"], raw["salt"], raw["sha256"], scope, endpoints, raw.get("expires"), name, limits)


def _endpoint(name: str, raw: Mapping[str, Any]) -> EndpointRoute:
    revision, split = int(raw.get("revision") or 0), raw.get("split")
    return EndpointRoute(
        name=name,
        revision=revision,
        active=bool(raw.get("active", True)),
        state=str(raw.get("state") or ""),
        reason=str(raw.get("reason") or ""),
        inference_time_s=float(raw.get("inference_time_s") or 180.0),
        max_queue=DEFAULT_MAX_QUEUE if raw.get("max_queue") is None else int(raw["max_queue"]),
        max_replica=int(raw.get("max_replica", 1)),
        min_replica=int(raw.get("min_replica", 0)),
        schema=raw.get("schema"),
        replicas=tuple(_replica(r, revision) for r in raw["replicas"]),
        adapters={str(name): str(path) for name, path in (raw.get("adapters") or {}).items()},
        created=float(raw.get("created") or 0.0),
        # What is not said of the second one is as with the first.
        split=_endpoint(name, {**raw, "split": None, **split}) if split else None,
        percent=int(raw.get("percent") or 0),
        poison=dict(raw.get("poison") or {}),
        blocked=dict(raw.get("blocked") or {}),
    )


def _replica(raw: Mapping[str, Any], revision: int) -> ReplicaRoute:
    return ReplicaRoute(
        id=str(raw["id"]),
        epoch=int(raw.get("epoch", 0)),
        socket=str(raw["socket"]),
        concurrency=max(int(raw.get("concurrency") or 1), 1),
        tier=ASLEEP if raw.get("tier") == ASLEEP else AWAKE,
        revision=revision,
    )


class Follower:
    """Keeps the newest table; the last one stays in force while the control plane is down."""

    def __init__(self, fetch: Fetch, on_table: Callable[[Table], None], gateway: str = "") -> None:
        """`gateway` is whose table it is: who makes a key is told so when all gateways have theirs."""
        self.table = Table()
        self.connected = False
        """The last poll was answered."""
        self.first = asyncio.Event()
        self._fetch = fetch
        self._on_table = on_table
        self._gateway = gateway

    async def run(self) -> None:
        """Poll for ever; cancel to stop."""
        since = -1
        while True:
            try:
                wait_s = LONG_POLL_S if since >= 0 else 0
                path = f"/internal/routes?since={since}&wait_s={wait_s:g}&gateway={self._gateway}"
                table = parse(await self._fetch("GET", path, b""))
            except (OSError, ValueError):
                # A restarted control plane may count its versions anew: ask for the whole table next time.
                since, self.connected = -1, False
                await asyncio.sleep(RETRY_S)
                continue
            self.connected = True
            if table.version != since:
                since, self.table = table.version, table
                self._on_table(table)
                self.first.set()
