"""The states of builds, revisions, replicas and endpoints: one table of legal moves each; nothing else knows a move.

Docs draw their diagrams from these tables (`diagram`), the console and the CLI take their words from them (`label`),
and the store refuses every move that is not in them (`check_move` in database.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum


class BuildState(StrEnum):
    """One run of the builder."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StepState(StrEnum):
    """One step of a build."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class RevisionState(StrEnum):
    """One immutable version of an endpoint."""

    QUEUED = "queued"
    BUILDING = "building"
    BUILT = "built"
    STARTING = "starting"
    SERVING = "serving"
    RETIRED = "retired"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"


class ReplicaState(StrEnum):
    """One process that runs an app."""

    STARTING = "starting"
    READY = "ready"
    ASLEEP = "asleep"
    DRAINING = "draining"
    STOPPING = "stopping"
    FAILED = "failed"
    GONE = "gone"


class DeliveryState(StrEnum):
    """The course of the word that a repository has changed."""

    QUEUED = "queued"
    IGNORED = "ignored"
    UNCHANGED = "unchanged"
    DEPLOYED = "deployed"
    FAILED = "failed"


class EndpointState(StrEnum):
    """An endpoint's activity; derived by `endpoint_state`, never stored."""

    EMPTY = "empty"
    BUILDING = "building"
    DEPLOYING = "deploying"
    READY = "ready"
    UPDATING = "updating"
    ASLEEP = "asleep"
    IDLE = "idle"
    STARTING = "starting"
    FAILING = "failing"
    FAILED = "failed"
    INACTIVE = "inactive"


B, R, P, E, T = BuildState, RevisionState, ReplicaState, EndpointState, StepState

BUILD_MOVES: Mapping[BuildState, Mapping[BuildState, str]] = {
    B.QUEUED: {B.RUNNING: "the builder takes it", B.CANCELLED: "cancelled before it began"},
    B.RUNNING: {
        B.SUCCEEDED: "the last step ended",
        B.FAILED: "a step failed",
        B.CANCELLED: "cancelled while it ran",
        B.QUEUED: "the control plane died; it starts again",
    },
    B.SUCCEEDED: {},
    B.FAILED: {},
    B.CANCELLED: {},
}

STEP_MOVES: Mapping[StepState, Mapping[StepState, str]] = {
    T.PENDING: {T.RUNNING: "its turn"},
    T.RUNNING: {T.DONE: "it ended", T.FAILED: "it raised", T.PENDING: "the build starts again"},
    T.DONE: {T.PENDING: "the build starts again"},
    T.FAILED: {T.PENDING: "the control plane died before the build ended; it starts again"},
}

REVISION_MOVES: Mapping[RevisionState, Mapping[RevisionState, str]] = {
    R.QUEUED: {
        R.BUILDING: "the builder takes it",
        R.FAILED: "its build had failed when the control plane died",
        R.CANCELLED: "its build was cancelled",
    },
    R.BUILDING: {
        R.BUILT: "environment, bundle and validation are done",
        R.FAILED: "the build failed",
        R.CANCELLED: "its build was cancelled",
        R.QUEUED: "the control plane died; it is built again",
    },
    R.BUILT: {R.STARTING: "its first replica starts", R.SUPERSEDED: "a newer one is ahead", R.FAILED: "fits nowhere"},
    R.STARTING: {
        R.SERVING: "its replicas are ready",
        R.FAILED: "its replicas fail, or fit nowhere",
        R.SUPERSEDED: "a newer one is ahead",
    },
    R.SERVING: {R.RETIRED: "another revision took over, or took its share back"},
    R.RETIRED: {R.BUILT: "rolled back to, or given a share"},
    R.FAILED: {},
    R.SUPERSEDED: {R.BUILT: "rolled back to, or given a share"},
    R.CANCELLED: {},
}

REPLICA_MOVES: Mapping[ReplicaState, Mapping[ReplicaState, str]] = {
    P.STARTING: {
        P.READY: "initialize ended",
        P.FAILED: "it exited",
        P.STOPPING: "no longer wanted",
    },
    P.READY: {
        P.ASLEEP: "no request for scale_down_delay",
        P.DRAINING: "no longer wanted",
        P.FAILED: "it died",
        P.STOPPING: "its endpoint was deleted",
    },
    P.ASLEEP: {
        P.READY: "a request woke it, or it is wanted",
        P.DRAINING: "evict_after is over, or others need its memory",
        P.FAILED: "it died",
        P.STOPPING: "its endpoint was deleted",
    },
    P.DRAINING: {P.STOPPING: "no request is left, or its time is up", P.GONE: "it exited by itself"},
    P.STOPPING: {P.GONE: "it exited"},
    P.FAILED: {P.GONE: "its last lines are kept with the revision"},
    P.GONE: {},
}

# Derived from active, revisions and replicas; the table says which sequences a watcher of one endpoint may see.
_ANY_ACTIVE = (E.BUILDING, E.DEPLOYING, E.READY, E.ASLEEP, E.UPDATING, E.IDLE, E.STARTING, E.FAILING, E.FAILED, E.EMPTY)
ENDPOINT_MOVES: Mapping[EndpointState, Mapping[EndpointState, str]] = {
    E.EMPTY: {E.BUILDING: "deploy", E.INACTIVE: "deactivate"},
    E.BUILDING: {E.DEPLOYING: "built", E.FAILED: "the build failed", E.EMPTY: "cancelled", E.INACTIVE: "deactivate"},
    E.DEPLOYING: {E.READY: "a replica is ready", E.FAILED: "its replicas fail", E.INACTIVE: "deactivate"},
    E.READY: {
        E.UPDATING: "deploy",
        E.ASLEEP: "no request for scale_down_delay",
        E.IDLE: "scaled to zero",
        E.STARTING: "its last replica died",
        E.FAILING: "its replicas keep dying",
        E.INACTIVE: "deactivate",
    },
    E.ASLEEP: {
        E.READY: "a request woke it",
        E.UPDATING: "deploy",
        E.IDLE: "evicted",
        E.STARTING: "its last replica died",
        E.FAILING: "its replicas keep dying",
        E.INACTIVE: "deactivate",
    },
    E.UPDATING: {
        E.READY: "swapped, or the new revision failed",
        E.ASLEEP: "the new revision failed while the old one slept",
        E.IDLE: "the new revision failed while nothing ran",
        E.STARTING: "the new revision failed; the old one starts again",
        E.FAILING: "the new revision failed and the old one keeps dying",
        E.INACTIVE: "deactivate",
    },
    E.IDLE: {E.STARTING: "a request came", E.UPDATING: "deploy", E.INACTIVE: "deactivate"},
    E.STARTING: {
        E.READY: "a replica is ready",
        E.IDLE: "no longer wanted",
        E.FAILING: "its replicas keep dying",
        E.UPDATING: "deploy",
        E.INACTIVE: "deactivate",
    },
    E.FAILING: {
        E.READY: "a replica is ready",
        E.STARTING: "it has run long enough",
        E.IDLE: "no longer wanted",
        E.UPDATING: "deploy",
        E.INACTIVE: "deactivate",
    },
    E.FAILED: {E.BUILDING: "deploy", E.DEPLOYING: "deploy", E.INACTIVE: "deactivate"},
    E.INACTIVE: dict.fromkeys(_ANY_ACTIVE, "activate"),
}

TABLES: Mapping[str, tuple[type[StrEnum], Mapping[StrEnum, Mapping[StrEnum, str]]]] = {
    "build": (BuildState, BUILD_MOVES),  # type: ignore[dict-item]
    "revision": (RevisionState, REVISION_MOVES),  # type: ignore[dict-item]
    "replica": (ReplicaState, REPLICA_MOVES),  # type: ignore[dict-item]
    "endpoint": (EndpointState, ENDPOINT_MOVES),  # type: ignore[dict-item]
}

# By type: members of two StrEnums with one value are equal, and would be one key.
LABELS: Mapping[type[StrEnum], Mapping[str, str]] = {
    BuildState: {
        B.QUEUED: "waiting for the builder",
        B.RUNNING: "building",
        B.SUCCEEDED: "built",
        B.FAILED: "build failed",
        B.CANCELLED: "cancelled",
    },
    EndpointState: {
        E.EMPTY: "nothing deployed",
        E.BUILDING: "building its first revision",
        E.DEPLOYING: "starting its first revision",
        E.READY: "ready",
        E.ASLEEP: "asleep: wakes on the next request",
        E.UPDATING: "a new revision is coming",
        E.IDLE: "scaled to zero",
        E.STARTING: "starting",
        E.FAILING: "its replicas keep dying",
        E.FAILED: "failed",
        E.INACTIVE: "deactivated",
    },
}

PENDING = frozenset({R.QUEUED, R.BUILDING, R.BUILT, R.STARTING})
"""Revisions on their way to serving."""
ALIVE = frozenset({P.STARTING, P.READY, P.ASLEEP})
"""Replicas whose processes stay unless something is done."""
SERVING = frozenset({P.READY, P.ASLEEP})
"""Replicas that requests may be sent to: one that sleeps wakes for them."""
HOLDING = frozenset({P.STARTING, P.READY, P.DRAINING, P.STOPPING})
"""Replicas whose share of a GPU is in use. Whoever sleeps is ended as soon as another needs its share."""
PAST = frozenset({R.RETIRED, R.SUPERSEDED, R.FAILED, R.CANCELLED})
"""Revisions that nothing is done with unless somebody asks for it."""
UNENDED = frozenset({B.QUEUED, B.RUNNING})
"""Builds that are waited for."""
CRASH_LOOP = 3
"""Failures in a row after which a rollout is given up."""


def label(state: StrEnum) -> str:
    """A state in words for people."""
    return LABELS.get(type(state), {}).get(state, str(state))


def diagram(name: str) -> str:
    """The table `build`, `revision`, `replica` or `endpoint` as a Mermaid state diagram and a Markdown list."""
    states, moves = TABLES[name]
    first = next(iter(states))
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {first}"]
    rows = ["| from | to | when |", "|---|---|---|"]
    for before, targets in moves.items():
        for after, why in targets.items():
            lines.append(f"    {before} --> {after}: {why.replace(';', ',')}")
            rows.append(f"| {before} | {after} | {why} |")
        if not targets:
            lines.append(f"    {before} --> [*]")
    return "\n".join([*lines, "```", "", *rows, ""])


def endpoint_state(
    active: bool,
    serving: bool,
    pending: Collection[RevisionState],
    failed: bool,
    replicas: Collection[ReplicaState],
    wanted: int,
    failures: int,
) -> EndpointState:
    """Derive an endpoint's activity.

    `serving`: it has a serving revision; `pending`: states of the revisions on their way; `failed`: its newest
    revision failed; `replicas`: states of the serving revision's replicas; `wanted`: how many there should be;
    `failures`: the serving revision's failures in a row.
    """
    if not active:
        return E.INACTIVE
    if not serving:
        if any(state in (R.BUILT, R.STARTING) for state in pending):
            return E.DEPLOYING
        return E.BUILDING if pending else E.FAILED if failed else E.EMPTY
    if pending:
        return E.UPDATING
    if P.READY in replicas:
        return E.READY
    if P.ASLEEP in replicas:
        return E.ASLEEP
    if failures >= CRASH_LOOP:
        return E.FAILING
    return E.STARTING if wanted > 0 else E.IDLE
