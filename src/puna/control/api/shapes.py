"""What the API answers, as types for its OpenAPI document; handlers answer plain dicts, and tests hold them to these.

Nothing is checked against these while Puna runs: a row that an older Puna wrote is shown as it is, not refused.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from puna.control.domain.records import Settings
from puna.control.domain.states import DeliveryState, EndpointState, ReplicaState, RevisionState

Json = dict[str, Any]


class ApiShape(BaseModel):
    """An object with these keys and no others; keys with a default may be missing."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, use_enum_values=True)


class Problem(ApiShape):
    """What went wrong."""

    code: str
    """A stable name for programs, e.g. `not_found`."""
    message: str
    """What happened to which thing."""
    hint: str
    """What to do, e.g. the next command to type; may be empty."""
    detail: str = ""
    """More text, e.g. a traceback or the last lines of a log."""


class Error(ApiShape):
    """The body of every error."""

    error: Problem


class Health(ApiShape):
    """What of this Puna works, its version and address."""

    status: str
    """`ok`, or `failing` with HTTP status 503."""
    parts: dict[str, str]
    """`ok`, or what is wrong with it: database, loops, handlers, gateways, sockets, replicas."""
    version: str
    url: str
    """Where the gateway is called."""


class Deleted(ApiShape):
    """What was deleted."""

    deleted: str


class Replica(ApiShape):
    """One process that runs an app, or is about to."""

    id: str
    revision: int
    state: ReplicaState
    tier: str
    pid: int
    since: float
    """When it entered its state, in Unix seconds."""
    in_flight: int
    gpu: str
    """The device's index; empty for none."""
    reason: str


class Concurrency(ApiShape):
    """How many calls of `infer` one replica runs at once."""

    limit: int
    text: str
    """The same with its reason: the line that keeps something of a request, when one does."""


class Revision(ApiShape):
    """One immutable version of an endpoint."""

    number: int
    state: RevisionState
    percent: int
    """The share of the requests that it is to have, or had at last."""
    source: str
    """The source's digest."""
    commit: str | None
    runtime: str | None
    runtime_version: int | None
    environment: str
    bundle: str
    build_id: str | None
    concurrency: Concurrency | None
    """Null as long as the app has not run."""
    created: float
    since: float
    failures: int
    """Replicas that failed in a row."""
    error: str
    hint: str
    detail: str


class Warm(ApiShape):
    """The zygote of an endpoint: a process with its imports done, which replicas are forked from."""

    state: str
    memory_bytes: int
    reason: str


class Share(ApiShape):
    """What a revision gets of an endpoint's requests; of two also what each has answered since they share them."""

    revision: int
    percent: int
    wanted: int
    """What it is to have: all, while it is promoted."""
    requests: int = 0
    errors: int = 0
    """Replies of 500 and above."""
    p50_ms: float | None = None
    p95_ms: float | None = None


class Endpoint(ApiShape):
    """A name that serves, with all that belongs to it."""

    name: str
    state: EndpointState
    label: str
    """The state in words."""
    active: bool
    url: str
    """Where it is called."""
    settings: Settings
    revision: int | None
    """The revision that serves."""
    traffic: list[Share]
    """Who gets how much of the requests, the revision that serves first."""
    schema_: Json | None = Field(alias="schema")
    """The inputs that its app declares."""
    concurrency: Concurrency | None
    """Of the revision that serves."""
    replicas: list[Replica]
    revisions: list[Revision]
    """Newest first."""
    wish: int
    """How many replicas the autoscaler wants."""
    wish_reason: str
    reason: str
    """Why it cannot serve, or not as much as it should; empty when all is well."""
    created: float
    warm: Warm | None


class PatchedEndpoint(Endpoint):
    """An endpoint after a change of its settings."""

    changed_revision: int | None
    """The revision that the change took; null when it acts at once."""


class Deployed(ApiShape):
    """What a deploy, rebuild or rollback led to."""

    endpoint: str
    revision: int
    build_id: str | None
    unchanged: bool
    """It is the newest revision already; nothing is built."""
    commit: str = ""
    """The commit that was fetched, for a repository."""


class Event(ApiShape):
    """Something that happened, with its reason."""

    id: int
    at: float
    endpoint: str
    kind: str
    message: str


class Point(ApiShape):
    """Figures of five seconds."""

    at: float
    requests_per_s: float
    errors_per_s: float
    p50_ms: float | None
    p95_ms: float | None
    in_flight: int
    queued: int
    replicas: int


class Metrics(ApiShape):
    """The last half hour in figures, oldest first: 360 points at most, so it has no pages."""

    interval_s: float
    items: list[Point]


class Delivery(ApiShape):
    """One word that a repository has changed, and what became of it."""

    id: int
    at: float
    sender: str
    """`github`, `gitlab`, `huggingface`, `poll` or `replay`."""
    event: str
    commit: str
    outcome: DeliveryState
    message: str
    hint: str
    detail: str
    revision: int | None
    state: RevisionState | None
    build_id: str | None


class Webhook(ApiShape):
    """What a repository is told."""

    url: str
    secret: str
    auto_rebuild: bool
    poll_s: float
    git: dict[str, str]


class Taken(ApiShape):
    """What became of a webhook's delivery."""

    delivery: int
    outcome: DeliveryState
    message: str
