"""The JSON shapes of the API, made from the store's rows. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from puna.control.domain import api_keys
from puna.control.domain.records import (
    MASK,
    WHOLE,
    Build,
    Delivery,
    Endpoint,
    Event,
    Key,
    Replica,
    Revision,
    Runtime,
    Snapshot,
)
from puna.control.domain.states import PENDING, EndpointState, RevisionState, endpoint_state, label

Json = dict[str, Any]


def state_of(endpoint: Endpoint, revisions: Collection[Revision], replicas: Collection[Replica]) -> EndpointState:
    """What an endpoint is doing, from its own rows."""
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


def endpoint_view(
    endpoint: Endpoint,
    revisions: Sequence[Revision],
    replicas: Sequence[Replica],
    url: str,
    in_flight: Mapping[str, int],
) -> Json:
    """One endpoint as the API shows it; `revisions` are all of its own, newest first."""
    serving = next((r for r in revisions if r.number == endpoint.serving), None)
    state = state_of(endpoint, revisions, replicas)
    return {
        "name": endpoint.name,
        "state": state,
        "label": label(state),
        "active": endpoint.active,
        "url": url,
        "settings": {**endpoint.settings.as_dict(), "env": masked_env(endpoint.settings.env)},
        "revision": endpoint.serving,
        "traffic": traffic_view(endpoint, revisions),
        "schema": serving.schema if serving else None,
        "concurrency": _concurrency_of(serving) if serving else None,
        "replicas": [replica_view(r, in_flight.get(r.id, 0)) for r in replicas],
        "revisions": [revision_view(r) for r in revisions],
        "wish": sum(endpoint.desired_of(number)[0] for number in endpoint.shares) or endpoint.desired_replicas,
        "wish_reason": endpoint.scaling_reason,
        "reason": endpoint.reason,
        "created": endpoint.created,
    }


def traffic_view(endpoint: Endpoint, revisions: Collection[Revision]) -> list[Json]:
    """Who gets how much of the requests, the revision that serves first; `wanted` is more while one is promoted."""
    aims = {r.number: r.percent for r in revisions}
    told = []
    for number, percent in endpoint.shares.items():
        is_second = number != endpoint.serving
        told.append(
            {"revision": number, "percent": percent, "wanted": aims.get(number, percent) if is_second else percent}
        )
    if len(told) > 1:
        told[0]["wanted"] = WHOLE - told[1]["wanted"]
    return told


def delivery_view(delivery: Delivery, revision: Revision | None) -> Json:
    """One delivery, and how the revision that it made is doing."""
    return {
        "id": delivery.id,
        "at": delivery.at,
        "sender": delivery.sender,
        "event": delivery.event,
        "commit": delivery.commit,
        "outcome": delivery.outcome,
        "message": delivery.message or (revision.error if revision else ""),
        "hint": delivery.hint or (revision.hint if revision else ""),
        "detail": delivery.detail or (revision.detail if revision else ""),
        "revision": delivery.revision,
        "state": revision.state if revision else None,
        "build_id": revision.build_id if revision else None,
    }


def replica_view(replica: Replica, in_flight: int) -> Json:
    """One replica."""
    return {
        "id": replica.id,
        "revision": replica.revision,
        "state": replica.state,
        "tier": replica.tier,
        "pid": replica.pid,
        "since": replica.since,
        "in_flight": in_flight,
        "gpu": replica.gpu,
        "reason": replica.reason,
    }


def revision_view(revision: Revision) -> Json:
    """One revision."""
    return {
        "number": revision.number,
        "state": revision.state,
        "percent": revision.percent,
        "source": revision.source,
        "commit": revision.settings.git.get("commit"),
        "runtime": revision.runtime,
        "runtime_version": revision.runtime_version,
        "environment": revision.environment,
        "bundle": revision.bundle,
        "build_id": revision.build_id,
        "concurrency": _concurrency_of(revision),
        "created": revision.created,
        "since": revision.since,
        "failures": revision.failures,
        "error": revision.error,
        "hint": revision.hint,
        "detail": revision.detail,
    }


def _concurrency_of(revision: Revision) -> Json | None:
    return concurrency_view(revision.schema, revision.settings.container_concurrency)


def concurrency_view(schema: Mapping[str, Any] | None, asked: int) -> Json | None:
    """How many calls of `infer` one replica runs at once, and why; None as long as the app has not run.

    `asked` is container_concurrency, which wins over what the worker has found out; lists of requests are the app's.
    """
    told = (schema or {}).get("concurrency")
    if asked and not (schema or {}).get("flags", {}).get("batch_size"):
        text = f"{asked} at once" if asked > 1 else "one at a time"
        return {"limit": asked, "text": f"{text}: container_concurrency says so"}
    return {"limit": int(told["limit"]), "text": str(told["text"])} if isinstance(told, Mapping) else None


def masked_env(env: Mapping[str, str]) -> dict[str, str]:
    """Environment values, with those hidden whose names sound like credentials."""
    hidden = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL")
    return {k: MASK if any(word in k.upper() for word in hidden) else v for k, v in env.items()}


def build_view(build: Build) -> Json:
    """One build."""
    return {
        "id": build.id,
        "kind": build.kind,
        "subject": build.subject,
        "number": build.number,
        "status": build.state,
        "created": build.created,
        "steps": [{"name": s.name, "state": s.state, "seconds": s.seconds} for s in build.steps],
        "error": build.error,
        "hint": build.hint,
        "detail": build.detail,
        "arguments": dict(build.arguments),
    }


def runtime_view(runtime: Runtime) -> Json:
    """One version of a runtime."""
    return {
        "name": runtime.name,
        "version": runtime.version,
        "digest": runtime.digest,
        "status": runtime.state,
        "build_id": runtime.build_id,
        "created": runtime.created,
    }


def key_view(key: Key) -> Json:
    """One key, without salt and hash."""
    return {
        "id": key.id,
        "name": key.name,
        "scope": list(key.scope),
        "endpoints": None if key.endpoints is None else list(key.endpoints),
        "expires": key.expires,
        "created": key.created,
        **api_keys.parse_limits(key.limits).as_json(),
    }


def event_view(event: Event) -> Json:
    """One event."""
    return {"id": event.id, "at": event.at, "endpoint": event.endpoint, "kind": event.kind, "message": event.message}
