"""The store's part about use: requests as gateways report them, GPU-seconds of replicas, by the hour."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import select

from puna.control.domain.records import UsageRow
from puna.control.store import metering
from puna.control.store.database import Database
from puna.control.store.metering import HOUR_S
from puna.control.store.tables import KEYS, REPLICAS, USAGE, USAGE_MARKS

KEPT_S = 400 * 86400
"""A year and what is needed to look back at one."""
MARK_KEPT_S = 7 * 86400
"""A gateway repeats a report for as long as it runs and hears no answer: not for so long."""


class UsageStore(Database):
    """Use, by the hour (UTC). A mark says how far something has been counted: a gateway's reports, a replica's time."""

    def add_usage(self, process: str, number: int, rows: Iterable[Sequence[Any]], now: float) -> bool:
        """Take a report: rows of hour, endpoint, key, requests, failed, seconds; False: it was here before."""
        mark = f"gateway {process}"
        with self._write(routes=False, snapshot=False) as connection:
            if number <= (metering.mark(connection, mark) or 0):
                return False
            names = {row.id: row.name for row in connection.execute(select(KEYS.c.id, KEYS.c.name))}
            for hour, endpoint, key, requests, failed, infer_s in rows:
                more = {"requests": requests, "failed": failed, "infer_s": infer_s}
                metering.add(connection, (hour, endpoint, key), names.get(key, ""), **more)
            metering.set_mark(connection, mark, number, now)
        return True

    def meter(self, now: float) -> None:
        """Count what every replica has held of a GPU until `now`."""
        with self._write(routes=False, snapshot=False) as connection:
            for replica in connection.execute(select(REPLICAS).where(REPLICAS.c.gpu != "")):
                metering.count(connection, replica, now, self.timeline)

    def skip_usage(self, replicas: Collection[str], now: float) -> None:
        """Count nothing of what is past for these: they ended unseen."""
        with self._write(routes=False, snapshot=False) as connection:
            for replica_id in replicas:
                metering.set_mark(connection, f"replica {replica_id}", now, now)

    def usage(self, since: float, until: float, endpoint: str | None = None) -> list[UsageRow]:
        """Every row whose hour touches `since` to `until`, the oldest first."""
        query = select(USAGE).where(USAGE.c.hour > since - HOUR_S, USAGE.c.hour < until)
        if endpoint is not None:
            query = query.where(USAGE.c.endpoint == endpoint)
        with self._read() as connection:
            rows = connection.execute(query.order_by(USAGE.c.hour, USAGE.c.endpoint, USAGE.c.key))
            return [UsageRow(**row._mapping) for row in rows]

    def prune_usage(self, now: float) -> None:
        """Forget what is older than `KEPT_S`, and how far those have reported that are long gone."""
        with self._write(routes=False, snapshot=False) as connection:
            connection.execute(USAGE.delete().where(USAGE.c.hour < now - KEPT_S))
            connection.execute(USAGE_MARKS.delete().where(USAGE_MARKS.c.at < now - MARK_KEPT_S))
