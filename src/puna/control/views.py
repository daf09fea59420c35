"""An endpoint's state, its concurrency and its environment, as all who ask are to see them. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from typing_extensions import TypedDict

from puna.config.settings import MASK
from puna.control.domain.records import Endpoint, Replica, Revision, Snapshot
from puna.control.domain.states import PENDING, EndpointState, RevisionState, endpoint_state

Json = dict[str, Any]


class Concurrency(TypedDict):
    """The number of calls of `infer` that one replica runs at once."""

    limit: int
    text: str
    """The same with its reason: the line that keeps something of a request, when one does."""


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


def by_endpoint(snapshot: Snapshot) -> Iterator[tuple[Endpoint, list[Revision], list[Replica]]]:
    """Each endpoint with what belongs to it."""
    revisions: dict[str, list[Revision]] = {}
    replicas: dict[str, list[Replica]] = {}
    for revision in snapshot.revisions:
        revisions.setdefault(revision.endpoint, []).append(revision)
    for replica in snapshot.replicas:
        replicas.setdefault(replica.endpoint, []).append(replica)
    for endpoint in snapshot.endpoints:
        yield endpoint, revisions.get(endpoint.name, []), replicas.get(endpoint.name, [])


def concurrency(schema: Mapping[str, Any] | None, asked: int) -> Concurrency | None:
    """Calls of `infer` that one replica runs at once, with the reason; None as long as the app has not run.

    `asked` is container_concurrency, which wins over what the worker has found out; lists of requests are the app's.
    """
    found = (schema or {}).get("concurrency")
    if asked and not (schema or {}).get("flags", {}).get("batch_size"):
        text = f"{asked} at once" if asked > 1 else "one at a time"
        return {"limit": asked, "text": f"{text}: container_concurrency says so"}
    return {"limit": int(found["limit"]), "text": str(found["text"])} if isinstance(found, Mapping) else None


def masked_env(env: Mapping[str, str]) -> dict[str, str]:
    """Environment values, with those hidden whose names sound like credentials."""
    hidden = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL")
    return {k: MASK if any(word in k.upper() for word in hidden) else v for k, v in env.items()}
