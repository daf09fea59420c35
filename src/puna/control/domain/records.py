"""Rows that the store hands out, frozen: endpoints, revisions, replicas, builds, runtimes, keys, events, deliveries.

`RevisionSpec` is also what it takes in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from typing_extensions import TypedDict

from puna.control.domain.states import (
    PENDING,
    BuildState,
    DeliveryState,
    EndpointState,
    ReplicaState,
    RevisionState,
    StepState,
    endpoint_state,
)

if TYPE_CHECKING:  # `puna up` itself does without pydantic
    from puna.config.settings import Settings

Answer = TypeVar("Answer")
WHOLE = 100
"""Percent: the share of a revision that serves alone."""


@dataclass(frozen=True)
class TrafficSplit:
    """The share of a second revision beside the one that serves, and its own scaling."""

    revision: int
    percent: int
    """1 to 99; the serving revision has the rest."""
    desired_replicas: int = 0
    scaling_reason: str = ""

    def part(self, total: int) -> int:
        """Its places of so many: its share of them, but one at least, and all but one at most."""
        return min(max(1, round(total * self.percent / WHOLE)), max(1, total - 1)) if total else 0


@dataclass(frozen=True)
class RevisionSpec:
    """The revision that a deploy asks for."""

    source: str
    runtime: str | None
    runtime_version: int | None
    settings: Settings
    percent: int = WHOLE
    """The share of the requests that it is to have once it is ready; below 100 beside the revision that serves."""


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
    desired_replicas: int
    """Replicas that the autoscaler wants."""
    scaling_reason: str = ""
    split: TrafficSplit | None = None

    @property
    def shares(self) -> dict[int, int]:
        """Revision -> percent of the requests, the one that serves first; none when nothing serves."""
        if self.serving is None:
            return {}
        if self.split is None:
            return {self.serving: WHOLE}
        return {self.serving: WHOLE - self.split.percent, self.split.revision: self.split.percent}

    def limits(self, revision: int | None) -> tuple[int, int]:
        """The fewest and the most replicas of a revision: of two that share the requests each has its part.

        Both keep a replica where one must stay, and both may have one even where `max_replica` is 1.
        """
        low, high = self.settings.min_replica, self.settings.max_replica
        if self.split is None or revision not in self.shares:
            return low, high
        if revision == self.split.revision:
            return self.split.part(low), self.split.part(high)
        return min(low, max(1, low - self.split.part(low))), max(1, high - self.split.part(high))

    def desired_of(self, revision: int | None) -> tuple[int, str]:
        """Replicas of a revision that the autoscaler wants, and the reason."""
        if self.split is not None and revision == self.split.revision:
            return self.split.desired_replicas, self.split.scaling_reason
        return self.desired_replicas, self.scaling_reason

    def wanted_of(self, revision: int | None) -> int:
        """Replicas of a revision that should run: those desired, within the limits; 0 when deactivated."""
        low, high = self.limits(revision)
        return min(max(self.desired_of(revision)[0], low), high) if self.active else 0

    @property
    def wanted_in_all(self) -> int:
        """Replicas that a revision needs to take every request."""
        desired = self.desired_replicas + (self.split.desired_replicas if self.split is not None else 0)
        return min(max(desired, self.settings.min_replica), self.settings.max_replica) if self.active else 0


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
    percent: int = WHOLE
    """The share of the requests that it is to have; below 100 beside the revision that serves."""


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
    """One run of the builder: for a revision, for a runtime's environment, or a merge or publishing of a run."""

    id: str
    kind: str
    """`revision`, `runtime`, `merge` or `publish`."""
    subject: str
    """The endpoint's, the runtime's or the training run's name."""
    number: int
    """The revision's number or the runtime's version; 0 for a run."""
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
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What a merge or a publishing was told."""
    owner: str = ""
    """The id of the key that asked for it, or `repository`; empty for the local administrator."""

    @property
    def workspace(self) -> str:
        """The name of the working copy in which its app is validated."""
        return workspace_of_build(self.id)


def workspace_of_build(build_id: str) -> str:
    """No replica is named like this: their ids are hexadecimal."""
    return f"build-{build_id}"


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
class HeldKey:
    """The fields of an API key wherever it is checked; never the secret itself."""

    id: str
    salt: str
    sha256: str
    scope: tuple[str, ...]
    endpoints: tuple[str, ...] | None
    """The only endpoints it opens; all when None."""
    expires: float | None


@dataclass(frozen=True)
class Key(HeldKey):
    """An API key as it is kept."""

    name: str
    created: float
    limits: Mapping[str, Any] | None = None
    """What it may ask for, as KeyLimits.as_json writes it; None: anything."""


@dataclass(frozen=True)
class Event:
    """Something that happened, with its reason."""

    id: int
    at: float
    endpoint: str
    kind: str
    message: str


@dataclass(frozen=True)
class UsageRow:
    """Use of one endpoint by one key in one hour; without a key, what its replicas held of GPUs."""

    hour: int
    """When it began, in Unix seconds."""
    endpoint: str
    key: str
    """The key's id."""
    key_name: str
    requests: int = 0
    failed: int = 0
    """Of them: answered with 400 or above, left by their callers, or broken off."""
    infer_s: float = 0.0
    """Seconds that they were on replicas; waking is not counted."""
    gpu_s: float = 0.0
    """Seconds times the share of a GPU."""


@dataclass(frozen=True)
class Delivery:
    """One word that a repository has changed: a webhook's, a look at the branch, or an earlier one said again."""

    endpoint: str
    at: float
    sender: str
    """`github`, `gitlab`, `huggingface`, `poll` or `replay`."""
    outcome: DeliveryState
    event: str = ""
    """What the sender calls it, e.g. `push`."""
    key: str = ""
    """The sender's own id for it."""
    digest: str = ""
    """SHA-256 of the body."""
    commit: str = ""
    message: str = ""
    hint: str = ""
    detail: str = ""
    revision: int | None = None
    """What was made of it."""
    id: int = 0
    """Its number here, once it is written down."""


@dataclass(frozen=True)
class Snapshot:
    """All that a plan needs to know of the store, read at one moment."""

    endpoints: tuple[Endpoint, ...] = ()
    revisions: tuple[Revision, ...] = ()
    """Serving and pending ones, and the newest of each endpoint."""
    replicas: tuple[Replica, ...] = field(default=())
    reserved: tuple[tuple[str, float], ...] = ()
    """`(GPU index, share)` that builds hold for validation."""
    waiting: tuple[tuple[str, float], ...] = ()
    """`(endpoint, share of a GPU)` of builds whose validation waits for room."""

    def by_endpoint(self) -> Iterator[tuple[Endpoint, list[Revision], list[Replica]]]:
        """Each endpoint with what belongs to it."""
        revisions: dict[str, list[Revision]] = {}
        replicas: dict[str, list[Replica]] = {}
        for revision in self.revisions:
            revisions.setdefault(revision.endpoint, []).append(revision)
        for replica in self.replicas:
            replicas.setdefault(replica.endpoint, []).append(replica)
        for endpoint in self.endpoints:
            yield endpoint, revisions.get(endpoint.name, []), replicas.get(endpoint.name, [])


def view(model: type[Answer], record: object, /, **others: Any) -> Answer:
    """An answer of the API, whose `model` is a TypedDict: `others`, and the record's values of the remaining names."""
    names = model.__annotations__
    return cast(Answer, {name: others[name] if name in others else getattr(record, name) for name in names})


class Concurrency(TypedDict):
    """The number of calls of `infer` that one replica runs at once."""

    limit: int
    text: str
    """The same with its reason: the line that keeps something of a request, when one does."""


def concurrency(schema: Mapping[str, Any] | None, asked: int) -> Concurrency | None:
    """Calls of `infer` that one replica runs at once, with the reason; None as long as the app has not run.

    `asked` is container_concurrency, which wins over what the worker has found out; lists of requests are the app's.
    """
    found = (schema or {}).get("concurrency")
    if asked and not (schema or {}).get("flags", {}).get("batch_size"):
        text = f"{asked} at once" if asked > 1 else "one at a time"
        return {"limit": asked, "text": f"{text}: container_concurrency says so"}
    return {"limit": int(found["limit"]), "text": str(found["text"])} if isinstance(found, Mapping) else None


def state_of(endpoint: Endpoint, revisions: Collection[Revision], replicas: Collection[Replica]) -> EndpointState:
    """The state of an endpoint, from its own rows."""
    serving = next((r for r in revisions if r.number == endpoint.serving), None)
    newest = max(revisions, key=lambda r: r.asked, default=None)
    return endpoint_state(
        active=endpoint.active,
        serving=serving is not None,
        pending=[r.state for r in revisions if r.state in PENDING],
        failed=newest is not None and newest.state is RevisionState.FAILED,
        replicas=[r.state for r in replicas if r.revision in endpoint.shares],
        wanted=sum(endpoint.wanted_of(revision) for revision in endpoint.shares),
        failures=serving.failures if serving else 0,
    )
