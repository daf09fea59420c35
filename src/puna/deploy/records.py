"""What the store hands out: frozen rows of endpoints, revisions, replicas, builds, runtimes, keys and events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from puna.deploy.settings import Settings
from puna.deploy.states import BuildState, ReplicaState, RevisionState, StepState


@dataclass(frozen=True)
class Endpoint:
    """A name that serves; times are Unix seconds."""

    name: str
    active: bool
    settings: Settings
    serving: int | None
    """The number of the revision that serves."""
    reason: str
    """Why it cannot serve, or cannot serve as much as it should; empty when all is well."""
    created: float
    wish: int
    """How many replicas the autoscaler wants."""
    wish_reason: str = ""
    wish_at: float = 0.0

    @property
    def wanted(self) -> int:
        """Replicas that should run: the wish between the limits, none when deactivated."""
        low, high = self.settings.min_replica, self.settings.max_replica
        return min(max(self.wish, low), high) if self.active else 0


@dataclass(frozen=True)
class Revision:
    """One immutable version of an endpoint."""

    endpoint: str
    number: int
    state: RevisionState
    source: str
    """Digest of the source snapshot."""
    runtime: str | None
    runtime_version: int | None
    environment: str
    bundle: str
    settings: Settings
    schema: Mapping[str, Any] | None
    created: float
    since: float
    """When it entered its state."""
    asked: int
    """Order in which deploys and rollbacks were asked for; the latest wins."""
    failures: int = 0
    """Replicas that failed in a row."""
    failed_at: float = 0.0
    weights_bytes: int = 0
    error: str = ""
    hint: str = ""
    detail: str = ""
    build_id: str | None = None


@dataclass(frozen=True)
class Replica:
    """One process that runs an app, or is about to."""

    id: str
    epoch: int
    """Rises with every replica: two with one id are still told apart."""
    endpoint: str
    revision: int
    state: ReplicaState
    gpu: str
    """The device's index; empty for none."""
    fraction: float
    since: float
    created: float
    pid: int = 0
    concurrency: int = 1
    tier: str = "awake"
    reason: str = ""
    deadline: float = 0.0
    """When a drain ends at the latest."""


@dataclass(frozen=True)
class Step:
    """One step of a build."""

    name: str
    state: StepState = StepState.PENDING
    seconds: float | None = None


@dataclass(frozen=True)
class Build:
    """One run of the builder: for a revision, or for a runtime's environment."""

    id: str
    kind: str
    """`revision` or `runtime`."""
    subject: str
    """The endpoint's or the runtime's name."""
    number: int
    """The revision's number or the runtime's version."""
    state: BuildState
    created: float
    steps: tuple[Step, ...] = ()
    cancel: bool = False
    gpu: str = ""
    """The device that it validates on, while it does."""
    fraction: float = 0.0
    error: str = ""
    hint: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Runtime:
    """One version of an uploaded runtime."""

    name: str
    version: int
    digest: str
    yaml: str
    state: BuildState
    created: float
    build_id: str


@dataclass(frozen=True)
class Key:
    """An API key as it is kept: salted hash, scope, endpoints, expiry."""

    id: str
    name: str
    salt: str
    sha256: str
    scope: tuple[str, ...]
    endpoints: tuple[str, ...] | None
    """The only endpoints it opens; all when None."""
    expires: float | None
    created: float


@dataclass(frozen=True)
class Event:
    """Something that happened, with its reason."""

    id: int
    at: float
    endpoint: str
    kind: str
    message: str


@dataclass(frozen=True)
class Snapshot:
    """All that a plan needs to know of the store, read at one moment."""

    endpoints: tuple[Endpoint, ...] = ()
    revisions: tuple[Revision, ...] = ()
    """Serving and pending ones, and the newest of each endpoint."""
    replicas: tuple[Replica, ...] = field(default=())
    reserved: tuple[tuple[str, float], ...] = ()
    """`(GPU index, share)` that builds hold for validation."""
