"""The store: every row that outlives a process; its SQL stands here, in `store_*.py` beside it, and nowhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from sqlalchemy import Connection, func, or_, select

from puna.deploy.migrations import migrate
from puna.deploy.records import Build, Key, Order, Revision, Snapshot
from puna.deploy.states import PENDING, BuildState, RevisionState
from puna.deploy.store_builds import BuildStore
from puna.deploy.store_deliveries import DeliveryStore
from puna.deploy.store_endpoints import EndpointStore, revision_of
from puna.deploy.store_keys import KeyStore
from puna.deploy.store_replicas import ReplicaStore
from puna.deploy.store_replies import ReplyStore
from puna.deploy.store_retention import RetentionStore
from puna.deploy.store_runtimes import RuntimeStore
from puna.deploy.store_usage import UsageStore
from puna.deploy.tables import BUILDS, REVISIONS
from puna.errors import ConflictError, NotFoundError


class Store(
    EndpointStore,
    ReplicaStore,
    BuildStore,
    RuntimeStore,
    KeyStore,
    ReplyStore,
    DeliveryStore,
    RetentionStore,
    UsageStore,
):
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

    def unchanged(self, name: str, order: Order) -> Revision | None:
        """The revision that makes a deploy needless: the newest asked for, when it is on its way or serves the same."""
        query = select(REVISIONS).where(REVISIONS.c.endpoint == name).order_by(REVISIONS.c.asked.desc()).limit(1)
        with self._read() as connection:
            row = connection.execute(query).first()
        if row is None:
            return None
        last = revision_of(row)
        same = (last.source, last.runtime, last.runtime_version) == (order.source, order.runtime, order.runtime_version)
        alive = last.state is RevisionState.SERVING or (last.state in PENDING and last.percent == order.percent)
        return last if same and alive and last.settings.launch == order.settings.launch else None

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

    def cancel_build(self, build_id: str, now: float) -> Build:
        """Ask a build to end: a queued one ends at once, a running one at its next look.

        Raises:
            ConflictError: it has ended already.
        """
        with self._write(routes=False) as connection:
            build = self._build(connection, build_id)
            if build.state not in (BuildState.QUEUED, BuildState.RUNNING):
                raise ConflictError(f"build `{build_id}` has ended: {build.state}")
            connection.execute(BUILDS.update().where(BUILDS.c.id == build_id).values(cancel=True))
        if build.state is BuildState.QUEUED:
            self.move_build(build_id, BuildState.CANCELLED)
            if build.kind == "revision":
                with contextlib.suppress(NotFoundError):  # its endpoint was deleted
                    self.move_revision(build.subject, build.number, RevisionState.CANCELLED, now)
        return self.build(build_id)

    def cancel_builds_of(self, endpoint: str, now: float) -> None:
        """Cancel what is being built for an endpoint."""
        for build in [*self.builds(BuildState.QUEUED), *self.builds(BuildState.RUNNING)]:
            if build.kind == "revision" and build.subject == endpoint:
                with contextlib.suppress(ConflictError):  # it ended in between
                    self.cancel_build(build.id, now)
