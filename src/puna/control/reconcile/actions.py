"""Actions of a plan: one small dataclass each, nothing else happens to replicas and rollouts."""

from __future__ import annotations

from dataclasses import dataclass

from puna.control.domain.records import Revision
from puna.control.domain.states import RevisionState


@dataclass(frozen=True)
class Start:
    """Start a replica of a revision, on a GPU's index or on none."""

    endpoint: str
    revision: int
    gpu: str
    fraction: float


@dataclass(frozen=True)
class Admit:
    """A replica is ready: let requests reach it."""

    replica_id: str


@dataclass(frozen=True)
class Sleep:
    """Ask an idle replica to sleep."""

    replica_id: str
    reason: str


@dataclass(frozen=True)
class Wake:
    """Ask a replica that sleeps to wake."""

    replica_id: str


@dataclass(frozen=True)
class Changed:
    """A replica has fallen asleep, or is awake again: put it in the books."""

    replica_id: str
    is_asleep: bool


@dataclass(frozen=True)
class Drain:
    """Take a replica out of the route table; it ends what it has begun, until `deadline`."""

    replica_id: str
    reason: str
    deadline: float


@dataclass(frozen=True)
class Stop:
    """End a replica's process tree, after `grace_s` at the latest."""

    replica_id: str
    reason: str
    grace_s: float


@dataclass(frozen=True)
class Fail:
    """A replica died by itself: count it, and keep its last lines with the revision."""

    replica_id: str
    reason: str
    lines: str
    counts: bool = True
    """False: it died of somebody's request, and its revision is not held back for it."""


@dataclass(frozen=True)
class Forget:
    """A replica's process is gone: take it off the books."""

    replica_id: str


@dataclass(frozen=True)
class MarkRevision:
    """Put a revision into another state, and say why when it is a bad one."""

    endpoint: str
    revision: int
    state: RevisionState
    error: str = ""
    hint: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Swap:
    """Let a revision serve, and retire the one that did."""

    endpoint: str
    revision: int


@dataclass(frozen=True)
class StartCanary:
    """Let a revision have its share of the requests beside the one that serves."""

    endpoint: str
    revision: int


@dataclass(frozen=True)
class AbortCanary:
    """Give the share of a revision that keeps dying back to the other one of a split."""

    endpoint: str
    revision: int
    error: str
    detail: str


@dataclass(frozen=True)
class CancelPromotion:
    """Give up promoting a revision: it keeps the share that it has."""

    endpoint: str
    revision: int
    error: str


@dataclass(frozen=True)
class ClearFailures:
    """A revision has run long enough: its next failure is its first again."""

    endpoint: str
    revision: int


@dataclass(frozen=True)
class Note:
    """Say why an endpoint cannot do what it should; empty when it can."""

    endpoint: str
    reason: str


Life = Start | Admit | Sleep | Wake | Changed | Drain | Stop | Fail | Forget
"""An action on one replica."""
Action = Life | MarkRevision | Swap | StartCanary | AbortCanary | CancelPromotion | ClearFailures | Note


def mark(revision: Revision, state: RevisionState, error: str = "", hint: str = "", detail: str = "") -> MarkRevision:
    """A MarkRevision of a row."""
    return MarkRevision(revision.endpoint, revision.number, state, error, hint, detail)
