"""The store's part about replicas, and what builds reserve beside them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, and_, select

from puna.control.domain.records import Replica
from puna.control.domain.states import REPLICA_MOVES, ReplicaState
from puna.control.store import usage
from puna.control.store.database import check_move
from puna.control.store.endpoints import EndpointStore
from puna.control.store.schema import BUILDS, ENDPOINTS, REPLICAS, REVISIONS
from puna.errors import NotFoundError


class ReplicaStore(EndpointStore):
    """Replicas; what they held of a GPU is counted with each move."""

    def replicas(self, endpoint: str | None = None) -> list[Replica]:
        """Every replica whose process may still be there, oldest first: of one endpoint or of all."""
        with self._read() as connection:
            return self._replicas(connection, endpoint)

    @staticmethod
    def _replicas(connection: Connection, endpoint: str | None = None) -> list[Replica]:
        query = select(REPLICAS).order_by(REPLICAS.c.epoch)
        if endpoint is not None:
            query = query.where(REPLICAS.c.endpoint == endpoint)
        return [_replica(row) for row in connection.execute(query)]

    def replica(self, replica_id: str) -> Replica:
        """One replica.

        Raises:
            NotFoundError: there is none of that id.
        """
        with self._read() as connection:
            return self._replica(connection, replica_id)

    @staticmethod
    def _replica(connection: Connection, replica_id: str) -> Replica:
        row = connection.execute(select(REPLICAS).where(REPLICAS.c.id == replica_id)).first()
        if row is None:
            raise NotFoundError(f"there is no replica `{replica_id}`", "`puna ps` lists them")
        return _replica(row)

    def add_replica(self, endpoint: str, revision: int, gpu: str, fraction: float, now: float) -> Replica:
        """A replica that is about to start. Its id is short (it names Unix sockets) and never used twice."""
        replica_id = f"{endpoint[:20]}-{secrets.token_hex(4)}"
        with self._write(routes=False) as connection:
            connection.execute(
                REPLICAS.insert().values(
                    id=replica_id,
                    epoch=self._bump(connection, "epoch"),
                    endpoint=endpoint,
                    revision=revision,
                    state=str(ReplicaState.STARTING),
                    gpu=gpu,
                    fraction=fraction,
                    since=now,
                    created=now,
                    tier="awake",
                )
            )
            return self._replica(connection, replica_id)

    def move_replica(self, replica_id: str, state: ReplicaState, now: float, **values: Any) -> Replica:
        """Put a replica into another state; GONE takes it off the books.

        Raises:
            ConflictError: the move is not in the table.
        """
        with self._write() as connection:
            return self._move_replica(connection, replica_id, state, now, values)

    def _move_replica(
        self, connection: Connection, replica_id: str, state: ReplicaState, now: float, values: Mapping[str, Any]
    ) -> Replica:
        before = self._replica(connection, replica_id)
        check_move(f"replica `{replica_id}`", REPLICA_MOVES, before.state, state)
        usage.count(connection, before, now, self.timeline, is_gone=state is ReplicaState.GONE)
        if state is ReplicaState.GONE:
            connection.execute(REPLICAS.delete().where(REPLICAS.c.id == replica_id))
            return before
        changed = REPLICAS.update().where(REPLICAS.c.id == replica_id)
        connection.execute(changed.values(state=str(state), since=now, **values))
        message = f"{replica_id}: {before.state} -> {state}"
        why = values.get("reason")
        self._event(connection, before.endpoint, "replica", f"{message}: {why}" if why else message, now)
        return self._replica(connection, replica_id)

    def admit_replica(self, replica_id: str, schema: object, now: float, verdict: object = None, **values: Any) -> None:
        """A replica is ready; its revision keeps what it said of its inputs, when the build did not find out.

        `verdict` is what it said of how many calls it runs at once; that wins over what the build found out.

        Raises:
            ConflictError: the move is not in the table.
        """
        with self._write() as connection:
            replica = self._move_replica(connection, replica_id, ReplicaState.READY, now, values)
            if isinstance(schema, Mapping):
                mine = and_(REVISIONS.c.endpoint == replica.endpoint, REVISIONS.c.number == replica.revision)
                kept = connection.execute(select(REVISIONS.c.schema).where(mine)).scalar()
                said = dict(schema if kept is None else kept)
                if isinstance(verdict, Mapping):
                    said["concurrency"] = dict(verdict)
                if said != kept:
                    connection.execute(REVISIONS.update().where(mine).values(schema=said))

    def wake_replica(self, replica_id: str, reason: str, now: float) -> None:
        """A replica woke: its endpoint wants it, and all others of its revision that are ready, until nobody calls.

        Raises:
            ConflictError: the move is not in the table.
        """
        with self._write() as connection:
            values = {"reason": reason, "tier": "awake"}
            woken = self._move_replica(connection, replica_id, ReplicaState.READY, now, values)
            ours = [r for r in self._replicas(connection, woken.endpoint) if r.revision == woken.revision]
            ready = sum(r.state is ReplicaState.READY for r in ours)
            found = self._endpoints(connection, woken.endpoint)  # none: it was deleted
            if found and found[0].desired_of(woken.revision)[0] < ready:
                self._scale(connection, found[0], ready, "a request woke it", now, woken.revision)

    def fail_replica(self, replica_id: str, reason: str, lines: str, now: float, *, counts: bool = True) -> None:
        """Record that a replica died by itself: its revision counts it and keeps its last lines.

        Not when `counts` is false: then it died of somebody's request.
        """
        with self._write() as connection:
            replica = self._replica(connection, replica_id)
            check_move(f"replica `{replica_id}`", REPLICA_MOVES, replica.state, ReplicaState.FAILED)
            usage.count(connection, replica, now, self.timeline)
            row = REPLICAS.update().where(REPLICAS.c.id == replica_id)
            connection.execute(row.values(state=str(ReplicaState.FAILED), since=now, reason=reason))
            if not counts:
                self._event(connection, replica.endpoint, "died", f"{replica_id}: {reason}, of a request", now)
                return
            mine = and_(REVISIONS.c.endpoint == replica.endpoint, REVISIONS.c.number == replica.revision)
            counted = (
                REVISIONS.update().where(mine).values(failures=REVISIONS.c.failures + 1, failed_at=now, error=reason)
            )
            connection.execute(counted.values(detail=lines) if lines else counted)
            self._event(connection, replica.endpoint, "died", f"{replica_id}: {reason}", now)

    def uncount_failure(self, endpoint: str, number: int) -> None:
        """Take back the count of a death that turned out to be a request's doing, if the revision serves."""
        serves = select(ENDPOINTS.c.name).where(ENDPOINTS.c.name == endpoint, ENDPOINTS.c.serving == number)
        mine = and_(REVISIONS.c.endpoint == endpoint, REVISIONS.c.number == number, REVISIONS.c.failures > 0)
        less = {"failures": REVISIONS.c.failures - 1, "error": "", "detail": ""}
        with self._write() as connection:
            connection.execute(REVISIONS.update().where(mine, serves.exists()).values(**less))

    def release(self, build_id: str) -> None:
        """Give a build's GPU back."""
        with self._write(routes=False) as connection:
            connection.execute(BUILDS.update().where(BUILDS.c.id == build_id).values(gpu="", fraction=0.0))


def _replica(row: Row[Any]) -> Replica:
    return Replica(**{**row._mapping, "state": ReplicaState(row.state)})
