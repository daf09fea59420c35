"""What the store hands out: frozen rows of endpoints, revisions, replicas, builds, runtimes, keys, events, deliveries.

`Settings` and `Order` are also what it takes in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from puna import names
from puna.config import ranges
from puna.control.domain.states import BuildState, DeliveryState, ReplicaState, RevisionState, StepState
from puna.errors import UsageError

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


# These act at once; a change of any other setting is a new revision, rolled out like a deploy.
LIVE = frozenset(
    "min_replica max_replica scale_down_delay_s evict_after_s inference_time_s max_queue replace zygote "
    "git auto_rebuild poll_s".split()
)
NO_GPU = frozenset({"cpu", "none"})
GIT = frozenset("url branch folder credential commit".split())
MASK = "***"
"""Stands for a value of `env` that is not shown; sent back, it means the value as it is."""


@dataclass(frozen=True)
class Settings:
    """Scaling, limits, machine and environment of one endpoint."""

    min_replica: int = 0
    max_replica: int = 1
    scale_down_delay_s: float = 600
    """Idle time after which a replica above `min_replica` goes."""
    evict_after_s: float = 3600
    """How long a replica sleeps before it goes, when its app can sleep; 0: none sleeps, it goes at once."""
    inference_time_s: float = 180
    """Time limit of one request, and of the drain of a replica."""
    container_concurrency: int = 0
    """Requests that one replica runs at once; 0 lets the worker choose."""
    max_queue: int = 100
    """Requests that may wait; more are refused with 429."""
    is_dedicated: bool = True
    """A whole GPU; half of one when false."""
    gpu_type: str = ""
    """`cpu` or `none`: no GPU. Anything else: one of the machine's GPUs, or the CPU where there is none."""
    vcpu: float = 0
    """Cores of one replica; 0: those that come with its part of a GPU, or all."""
    ram_gib: float = 0
    """Host memory of one replica, which is ended when it has more; 0: what comes with its part of a GPU, or all."""
    startup_timeout_s: float = 900
    """Time limit of a replica's start, and of `initialize` when the app is tried."""
    env: dict[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    """Names of secret sets whose values join the app's environment."""
    volumes: dict[str, str] = field(default_factory=dict)
    """Volume -> where the app finds it; empty for `/var/nfs-mount/<name>`."""
    zygote: bool = True
    """A process with the app's imports done is kept, which replicas are forked from: memory for faster cold starts."""
    replace: bool = False
    """The serving revision may be stopped first when there is no room for both."""
    git: dict[str, str] = field(default_factory=dict)
    """Where its source comes from, when that is a repository: `url`, `branch`, `folder`, `credential` (a secret set's
    name) and the `commit` that was fetched last."""
    auto_rebuild: bool = False
    """A push to the repository, told by a webhook or found by asking, is fetched, built and rolled out."""
    poll_s: float = 0
    """How often the repository is asked for a new commit; 0: never, a webhook tells."""

    def __post_init__(self) -> None:
        ranges.check(vars(self))
        _check(self.min_replica <= self.max_replica, "min_replica must lie in 0 to max_replica")
        _check(not self.git or set(self.git) <= GIT and bool(self.git.get("url")), "git must have a `url`")
        for name, path in self.volumes.items():
            names.check("volume", name)
            _check(
                _mountable(str(path or "")), f"a volume cannot be mounted at {path!r}", "e.g. /var/nfs-mount/my-volume"
            )
        for name, value in self.env.items():
            names.check("variable", name, what="env:")
            _check("\0" not in str(value), f"env: the value of `{name}` has a character that no environment can hold")

    @classmethod
    def from_row(cls, values: Mapping[str, Any]) -> Settings:
        """Settings as the store keeps them; keys of another version of Puna, and what was allowed there, do no harm."""
        known = ranges.clamped({k: v for k, v in values.items() if k in cls.__dataclass_fields__})
        return cls(**known | {"secrets": tuple(known.get("secrets", ()))})

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**dataclasses.asdict(self), "secrets": list(self.secrets)}

    @property
    def launch(self) -> dict[str, Any]:
        """The settings that belong to a revision: those that a running replica cannot change."""
        return {key: value for key, value in self.as_dict().items() if key not in LIVE}

    @property
    def needs_gpu(self) -> bool:
        """Whether it asks for a GPU where there is one."""
        return self.gpu_type.lower() not in NO_GPU

    @property
    def gpu_fraction(self) -> float:
        """The share of a GPU that one replica takes."""
        return 1.0 if self.is_dedicated else 0.5


def _mountable(path: str) -> bool:
    """An absolute path outside the kernel's own folders, or empty for the platform's place."""
    parts = path.split("/")
    own = {"", "proc", "sys", "dev"}
    return not path or (len(parts) > 1 and not parts[0] and parts[1] not in own and not {"..", "."} & set(parts))


def _check(condition: bool, message: str, hint: str = "") -> None:
    if not condition:
        raise UsageError(message, hint)


@dataclass(frozen=True)
class Order:
    """What a deploy asks for."""

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
    """How many replicas the autoscaler wants."""
    scaling_reason: str = ""
    split: TrafficSplit | None = None

    @property
    def wanted(self) -> int:
        """Replicas of the serving revision that should run: those desired, within the limits; 0 when deactivated."""
        return self.wanted_of(self.serving)

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
        """How many replicas of a revision the autoscaler wants, and why."""
        if self.split is not None and revision == self.split.revision:
            return self.split.desired_replicas, self.split.scaling_reason
        return self.desired_replicas, self.scaling_reason

    def wanted_of(self, revision: int | None) -> int:
        """As `wanted`, of one of two revisions that share the requests."""
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
    """What one key asked of one endpoint in one hour; without a key, what its replicas held of GPUs."""

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
