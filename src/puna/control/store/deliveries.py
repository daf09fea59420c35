"""The store's part about what repositories said of their changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, or_, select

from puna.control.domain.records import Delivery
from puna.control.domain.states import DeliveryState
from puna.control.store.database import Database
from puna.control.store.schema import DELIVERIES, ENDPOINTS
from puna.errors import NotFoundError

KEPT = 2000
"""Deliveries of one endpoint; one that came longer ago is not known again."""
AGAIN = "this delivery has come before"


class DeliveryStore(Database):
    """Deliveries; those in state `queued` are what the rebuilder has yet to do."""

    def add_delivery(self, delivery: Delivery) -> Delivery:
        """Write a delivery down, with a number for its `id`; one that was had before, by key or body, is ignored.

        What comes again makes no row: whoever has caught a delivery could push out all others with it, itself at last.

        Raises:
            NotFoundError: its endpoint was deleted.
        """
        endpoint = delivery.endpoint
        with self._write(routes=False) as connection:
            if connection.execute(select(ENDPOINTS.c.name).where(ENDPOINTS.c.name == endpoint)).first() is None:
                raise NotFoundError(f"there is no endpoint `{endpoint}`", "`puna ps` lists them")
            before = self._before(connection, delivery)
            if before is not None and delivery.outcome is DeliveryState.QUEUED:
                delivery = dataclasses.replace(delivery, outcome=DeliveryState.IGNORED, message=AGAIN)
            if before is not None:
                return dataclasses.replace(delivery, id=before)
            values = {key: value for key, value in dataclasses.asdict(delivery).items() if key != "id"}
            values["outcome"] = str(delivery.outcome)
            made = connection.execute(DELIVERIES.insert().values(**values)).inserted_primary_key
            assert made is not None  # the table has one
            mine = select(DELIVERIES.c.id).where(DELIVERIES.c.endpoint == endpoint).order_by(DELIVERIES.c.id.desc())
            oldest = connection.execute(mine.offset(KEPT).limit(1)).scalar()
            if oldest is not None:
                old = (DELIVERIES.c.endpoint == endpoint) & (DELIVERIES.c.id <= oldest)
                connection.execute(DELIVERIES.delete().where(old))
            return dataclasses.replace(delivery, id=made[0])

    @staticmethod
    def _before(connection: Connection, delivery: Delivery) -> int | None:
        """The number of the same delivery, had before; one that was ignored then may be wanted now."""
        both = ((DELIVERIES.c.key, delivery.key), (DELIVERIES.c.digest, delivery.digest))
        known = [column == value for column, value in both if value]
        if not known:
            return None
        same = select(DELIVERIES.c.id).where(
            DELIVERIES.c.endpoint == delivery.endpoint, DELIVERIES.c.sender == delivery.sender, or_(*known)
        )
        if delivery.outcome is DeliveryState.QUEUED:
            same = same.where(DELIVERIES.c.outcome != str(DeliveryState.IGNORED))
        return connection.execute(same.order_by(DELIVERIES.c.id.desc()).limit(1)).scalar()

    def fail_deliveries(self, endpoint: str, deliveries: Sequence[Delivery], now: float, **why: str) -> None:
        """Say why nothing was made of what a repository said; `why` is `message`, `hint` and `detail`."""
        with self._write(routes=False) as connection:
            for delivery in deliveries:
                self._end_delivery(connection, delivery.id, DeliveryState.FAILED, why)
            self._event(connection, endpoint, "rebuild", f"not rebuilt: {why['message']}", now)

    @staticmethod
    def _end_delivery(connection: Connection, number: int, outcome: DeliveryState, values: Mapping[str, Any]) -> None:
        mine = DELIVERIES.update().where(DELIVERIES.c.id == number)
        connection.execute(mine.values(outcome=str(outcome), **values))

    def deliveries(self, endpoint: str) -> list[Delivery]:
        """The deliveries for an endpoint that are kept, newest first."""
        mine = select(DELIVERIES).where(DELIVERIES.c.endpoint == endpoint).order_by(DELIVERIES.c.id.desc())
        with self._read() as connection:
            return [_delivery(row) for row in connection.execute(mine)]

    def delivery(self, endpoint: str, number: int) -> Delivery:
        """One delivery.

        Raises:
            NotFoundError: there is none of that number, or no longer.
        """
        mine = (DELIVERIES.c.endpoint == endpoint) & (DELIVERIES.c.id == number)
        with self._read() as connection:
            row = connection.execute(select(DELIVERIES).where(mine)).first()
        if row is None:
            raise NotFoundError(f"`{endpoint}` has had no delivery {number}", f"`puna webhook {endpoint}` lists them")
        return _delivery(row)

    def queued_deliveries(self) -> dict[str, list[Delivery]]:
        """Endpoint -> deliveries that nothing was made of yet, oldest first."""
        queued = select(DELIVERIES).where(DELIVERIES.c.outcome == str(DeliveryState.QUEUED)).order_by(DELIVERIES.c.id)
        found: dict[str, list[Delivery]] = {}
        with self._read() as connection:
            for row in connection.execute(queued):
                found.setdefault(row.endpoint, []).append(_delivery(row))
        return found


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(**{**row._mapping, "outcome": DeliveryState(row.outcome)})
