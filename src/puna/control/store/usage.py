"""Use by the hour: requests as gateways report them, GPU-seconds of replicas as they move."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, func, select

from puna.control.domain.records import UsageRow
from puna.control.domain.states import HOLDING, ReplicaState
from puna.control.domain.timeline import Timeline
from puna.control.store.database import Database
from puna.control.store.schema import KEYS, REPLICAS, USAGE, USAGE_MARKS

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
    """The mark of what has been counted so far; None: nothing."""
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


KEPT_S = 400 * 86400
"""A year and what is needed to look back at one."""
MARK_KEPT_S = 7 * 86400
"""A gateway repeats a report for as long as it runs and hears no answer: not for so long."""


class UsageStore(Database):
    """Use, by the hour (UTC). A mark says how far something has been counted: a gateway's reports, a replica's time."""

    def add_usage(self, process: str, number: int, rows: Iterable[Sequence[Any]], now: float) -> bool:
        """Take a report: rows of hour, endpoint, key, requests, failed, seconds; False: it was here before."""
        name = f"gateway {process}"
        with self._write(routes=False, snapshot=False) as connection:
            if number <= (mark(connection, name) or 0):
                return False
            names = {row.id: row.name for row in connection.execute(select(KEYS.c.id, KEYS.c.name))}
            for hour, endpoint, key, requests, failed, infer_s in rows:
                more = {"requests": requests, "failed": failed, "infer_s": infer_s}
                add(connection, (hour, endpoint, key), names.get(key, ""), **more)
            set_mark(connection, name, number, now)
        return True

    def meter(self, now: float) -> None:
        """Count what every replica has held of a GPU until `now`."""
        with self._write(routes=False, snapshot=False) as connection:
            for replica in connection.execute(select(REPLICAS).where(REPLICAS.c.gpu != "")):
                count(connection, replica, now, self.timeline)

    def skip_usage(self, replicas: Collection[str], now: float) -> None:
        """Count nothing of what is past for these: they ended unseen."""
        with self._write(routes=False, snapshot=False) as connection:
            for replica_id in replicas:
                set_mark(connection, f"replica {replica_id}", now, now)

    def usage(self, since: float, until: float, endpoint: str | None = None) -> list[UsageRow]:
        """Every row whose hour touches `since` to `until`, the oldest first."""
        query = select(USAGE).where(USAGE.c.hour > since - HOUR_S, USAGE.c.hour < until)
        if endpoint is not None:
            query = query.where(USAGE.c.endpoint == endpoint)
        with self._read() as connection:
            rows = connection.execute(query.order_by(USAGE.c.hour, USAGE.c.endpoint, USAGE.c.key))
            return [UsageRow(**row._mapping) for row in rows]

    def last_hours(self) -> dict[str, int]:
        """By a key's id, when the last hour began in which endpoints were called with it, in Unix seconds."""
        query = select(USAGE.c.key, func.max(USAGE.c.hour)).where(USAGE.c.requests > 0).group_by(USAGE.c.key)
        with self._read() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def prune_usage(self, now: float) -> None:
        """Forget what is older than `KEPT_S`, and how far those have reported that are long gone."""
        with self._write(routes=False, snapshot=False) as connection:
            connection.execute(USAGE.delete().where(USAGE.c.hour < now - KEPT_S))
            connection.execute(USAGE_MARKS.delete().where(USAGE_MARKS.c.at < now - MARK_KEPT_S))
