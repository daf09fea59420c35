"""The store: every row that outlives a process; its SQL stands here, in `store_*.py` beside it, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, func, or_, select

from puna.control.domain.records import Key, Revision, Snapshot
from puna.control.domain.states import PENDING, RevisionState
from puna.control.store.endpoints import revision_of
from puna.control.store.healing import HealingStore
from puna.control.store.keys import KeyStore
from puna.control.store.migrations import migrate
from puna.control.store.replicas import ReplicaStore
from puna.control.store.replies import ReplyStore
from puna.control.store.retention import RetentionStore
from puna.control.store.runtimes import RuntimeStore
from puna.control.store.tables import BUILDS, REVISIONS
from puna.control.store.usage import UsageStore


class Store(HealingStore, ReplicaStore, RuntimeStore, KeyStore, ReplyStore, RetentionStore, UsageStore):
    """All of it; what is read or written across its parts stands here."""

    def __init__(self, url: str) -> None:
        """Open the database at `url` (SQLAlchemy's form) and bring its tables up to date."""
        self._kept: tuple[int, Snapshot] = (-1, Snapshot())
        super().__init__(url, migrate)

    def snapshot(self) -> Snapshot:
        """Endpoints, revisions and replicas as they are at one moment.

        Read again only after a write: this process is the only one that writes, and the reconciler asks all the time.
        """
        writes, kept = self._writes, self._kept  # before the read: a write in between makes the next call read again
        if kept[0] != writes:
            with self._read() as connection, connection.begin():
                kept = self._kept = (writes, self._snapshot(connection))
        return kept[1]

    def _snapshot(self, connection: Connection) -> Snapshot:
        asks = select(BUILDS.c.gpu, BUILDS.c.fraction, BUILDS.c.subject)
        asking = list(connection.execute(asks.where(BUILDS.c.fraction > 0, BUILDS.c.state == "running")))
        return Snapshot(
            tuple(self._endpoints(connection)),
            tuple(self._watched_revisions(connection)),
            tuple(self._replicas(connection)),
            tuple((row.gpu, row.fraction) for row in asking if row.gpu),
            tuple((row.subject, row.fraction) for row in asking if not row.gpu),
        )

    def _watched_revisions(self, connection: Connection) -> list[Revision]:
        """Serving and pending revisions, and the newest of each endpoint."""
        newest = select(REVISIONS.c.endpoint, func.max(REVISIONS.c.number).label("top"))
        top = newest.group_by(REVISIONS.c.endpoint).subquery()
        live = [str(s) for s in (*sorted(PENDING), RevisionState.SERVING)]
        query = (
            select(REVISIONS)
            .join(top, REVISIONS.c.endpoint == top.c.endpoint)
            .where(or_(REVISIONS.c.state.in_(live), REVISIONS.c.number == top.c.top))
            .order_by(REVISIONS.c.endpoint, REVISIONS.c.number)
        )
        return [revision_of(row) for row in connection.execute(query)]

    def routing(self) -> tuple[int, Snapshot, list[Key]]:
        """What the gateways' table is made from, with its version: all of one moment."""
        with self._read() as connection, connection.begin():
            return self._counter(connection, "routes"), self._snapshot(connection), self._keys(connection)

    def reserve(self, build_id: str, share: float, choose: Callable[[Snapshot], str | None]) -> str | None:
        """Book the GPU that `choose` picks for a build's validation; gone with the build, or by `release`.

        An empty text books nothing. None asks for room: the next plan ends replicas that sleep for `share` of a GPU.
        A replica that was planned a moment before and is not written yet is not seen: then both share the device for
        once, and whichever finds too little memory is tried again.
        """
        with self._write(routes=False) as connection:
            gpu = choose(self._snapshot(connection))
            build = BUILDS.update().where(BUILDS.c.id == build_id)
            connection.execute(build.values(gpu=gpu or "", fraction=0.0 if gpu == "" else share))
            return gpu
