"""Use is added up here, in a transaction of the store's: by hour, endpoint and key; GPU time as replicas move."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, select

from puna.control.domain.states import HOLDING, ReplicaState
from puna.control.domain.timeline import Timeline
from puna.control.store.tables import USAGE, USAGE_MARKS

HOUR_S = 3600


def count(
    connection: Connection, replica: Any, now: float, timeline: Timeline | None = None, *, is_gone: bool = False
) -> None:
    """Count one replica's share of its GPU since it was counted last; `replica` is as it was until `now`.

    By the `timeline`, where there is one: a clock that was set meanwhile is no time that a GPU was held.
    """
    if not replica.gpu or replica.fraction <= 0:
        return
    name = f"replica {replica.id}"
    since = max(mark(connection, name) or 0.0, replica.created)
    if ReplicaState(replica.state) in HOLDING:
        held_s = timeline.between(since, now) if timeline is not None else now - since
        for hour, seconds in _hours(now - held_s, now):
            add(connection, (hour, replica.endpoint, ""), "", gpu_s=seconds * replica.fraction)
    if is_gone:
        connection.execute(USAGE_MARKS.delete().where(USAGE_MARKS.c.name == name))
    else:
        set_mark(connection, name, now, now)


def mark(connection: Connection, name: str) -> float | None:
    """How far something has been counted."""
    return connection.execute(select(USAGE_MARKS.c.value).where(USAGE_MARKS.c.name == name)).scalar()


def set_mark(connection: Connection, name: str, value: float, now: float) -> None:
    """Something has been counted so far."""
    changed = USAGE_MARKS.update().where(USAGE_MARKS.c.name == name).values(value=value, at=now)
    if connection.execute(changed).rowcount == 0:
        connection.execute(USAGE_MARKS.insert().values(name=name, value=value, at=now))


def add(connection: Connection, of: tuple[int, str, str], key_name: str, **more: float) -> None:
    """Add to the figures of an hour, an endpoint and a key."""
    hour, endpoint, key = of
    mine = (USAGE.c.hour == hour) & (USAGE.c.endpoint == endpoint) & (USAGE.c.key == key)
    changed = USAGE.update().where(mine).values({name: USAGE.c[name] + value for name, value in more.items()})
    if connection.execute(changed).rowcount == 0:
        connection.execute(USAGE.insert().values(hour=hour, endpoint=endpoint, key=key, key_name=key_name, **more))


def _hours(since: float, until: float) -> Iterator[tuple[int, float]]:
    """Each hour that a time touches, and how many of its seconds."""
    while since < until:
        hour = int(since) // HOUR_S * HOUR_S
        end = min(until, hour + HOUR_S)
        yield hour, end - since
        since = end
