"""The store: every row that outlives a process; its SQL stands here and in the modules beside it, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, func, or_, select

from puna.control.domain.records import WHOLE, Build, Endpoint, Key, Revision, Snapshot
from puna.control.domain.states import PENDING, UNENDED, BuildState, RevisionState, StepState
from puna.control.store.endpoints import is_revision, revision_of
from puna.control.store.keys import KeyStore
from puna.control.store.replicas import ReplicaStore
from puna.control.store.replies import ReplyStore
from puna.control.store.retention import RetentionStore
from puna.control.store.revisions import ENDS, IN_BUILD
from puna.control.store.schema import BUILDS, ENDPOINTS, REVISIONS, RUNTIMES, SPLITS, migrate
from puna.control.store.traffic import TrafficStore
from puna.control.store.usage import UsageStore

AGAIN = "the control plane died while it was built: it is built again"


class Store(TrafficStore, ReplicaStore, KeyStore, ReplyStore, RetentionStore, UsageStore):
    """All of it; what is read or written across its parts stands here."""

    def __init__(self, url: str) -> None:
        """Open the database at `url` (SQLAlchemy's form) and bring its tables up to date."""
        self._kept: tuple[int, Snapshot] = (-1, Snapshot())
        super().__init__(url, migrate)

    def snapshot(self) -> Snapshot:
        """Endpoints, revisions and replicas as they are at one moment.

        Read again only after a write: this process is the only one that writes, and the reconciler asks all the time.
        """
        writes, kept = self.writes, self._kept  # before the read: a write in between makes the next call read again
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
        """Everything that the gateways' table is made from, with its version: all of one moment."""
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

    # ---- what a control plane that died has left --------------------------------------------------------------------

    def heal(self, now: float) -> list[str]:
        """Bring every build, revision and split to a state that something still leads on from; what was done.

        Called when nothing else uses the store, since what runs is taken for dead. One transaction a use case leaves
        little to heal; versions before 0.2.0 left halves of each.
        """
        with self._write() as connection:
            said = self._heal_builds(connection, now)
            said += self._heal_revisions(connection, now)
            for endpoint in self._endpoints(connection):
                said += self._heal_traffic(connection, endpoint, now)
            return said

    def _heal_builds(self, connection: Connection, now: float) -> list[str]:
        """Builds that ran wait again, those that were cancelled end, and no ended one holds a place."""
        said = []
        for build in self._unended(connection):
            revision = self._revision_of(connection, build)
            is_needless = build.kind == "revision" and (revision is None or revision.state not in IN_BUILD)
            if build.state is BuildState.RUNNING:
                self._requeue(connection, build, now)
                said.append(f"build {build.id} of {build.subject} was under way")
            if build.cancel or is_needless:
                self._end_build(connection, self._build(connection, build.id), BuildState.CANCELLED, now, {})
                said.append(f"build {build.id} of {build.subject} ends: cancelled, or nothing waits for it")
        ended = BUILDS.c.state.not_in([str(state) for state in UNENDED])
        connection.execute(BUILDS.update().where(ended, BUILDS.c.fraction > 0).values(gpu="", fraction=0.0))
        stuck = RUNTIMES.c.state.in_([str(state) for state in UNENDED])
        for runtime in connection.execute(select(RUNTIMES).where(stuck)).all():
            state = connection.execute(select(BUILDS.c.state).where(BUILDS.c.id == runtime.build_id)).scalar()
            state = state or str(BuildState.FAILED)
            if state != runtime.state:
                mine = (RUNTIMES.c.name == runtime.name) & (RUNTIMES.c.version == runtime.version)
                connection.execute(RUNTIMES.update().where(mine).values(state=state))
                said.append(f"runtime {runtime.name} version {runtime.version} is {state}, as its build")
        return said

    def _requeue(self, connection: Connection, build: Build, now: float) -> None:
        """Let a build that ran begin anew: its steps find what is there already."""
        self._move_build(connection, build, BuildState.QUEUED, {"gpu": "", "fraction": 0.0})
        for step in build.steps:
            if step.state is not StepState.PENDING:
                self._set_step(connection, build, step.name, StepState.PENDING, None)
        revision = self._revision_of(connection, build)
        if revision is not None and revision.state is RevisionState.BUILDING:
            self._move_revision(connection, revision, RevisionState.QUEUED, now, {})

    def _heal_revisions(self, connection: Connection, now: float) -> list[str]:
        """Revisions that wait for a build which has ended, or was never queued."""
        said = []
        waiting = REVISIONS.c.state.in_([str(state) for state in IN_BUILD])
        for row in connection.execute(select(REVISIONS).where(waiting)).all():
            revision = revision_of(row)
            found = self._builds(connection, [revision.build_id]) if revision.build_id else []
            build = found[0] if found else None
            if build is not None and build.state in (BuildState.FAILED, BuildState.CANCELLED):
                why = {"error": build.error, "hint": build.hint, "detail": build.detail} if build.error else {}
                self._move_revision(connection, revision, ENDS[build.state], now, why)
                said.append(f"revision {revision.number} of {revision.endpoint} is {build.state}, as its build")
                continue
            if revision.state is RevisionState.BUILDING:  # its build is requeued, or told nobody what it made
                self._move_revision(connection, revision, RevisionState.QUEUED, now, {})
            if build is None or build.state not in UNENDED:
                self._build_revision(connection, revision, now, "")
                self._event(connection, revision.endpoint, "deploy", f"revision {revision.number}: {AGAIN}", now)
                said.append(f"revision {revision.number} of {revision.endpoint} had no build: it is built again")
        return said

    def _heal_traffic(self, connection: Connection, endpoint: Endpoint, now: float) -> list[str]:
        """An endpoint and its revisions agree who serves."""
        name, said = endpoint.name, []
        mine = (REVISIONS.c.endpoint == name) & (REVISIONS.c.state == str(RevisionState.SERVING))
        serving = {row.number: revision_of(row) for row in connection.execute(select(REVISIONS).where(mine))}
        split = endpoint.split
        whole = endpoint.serving in serving and split is not None and split.revision in serving
        if split is not None and (not whole or split.revision == endpoint.serving):
            connection.execute(SPLITS.delete().where(SPLITS.c.endpoint == name))
            said.append(f"{name}: the split with revision {split.revision} is no more")
            split = None
        left = endpoint.serving
        if left not in serving:
            left = max(serving, key=lambda number: serving[number].asked, default=None)
        if left != endpoint.serving:
            connection.execute(ENDPOINTS.update().where(ENDPOINTS.c.name == name).values(serving=left))
            said.append(f"{name}: revision {left} serves, not {endpoint.serving}")
        shares = {left, split.revision if split is not None else left}
        for number in serving.keys() - shares:
            self._move_revision(connection, serving[number], RevisionState.RETIRED, now, {})
            said.append(f"{name}: revision {number} no longer serves")
        if split is None and left is not None and serving[left].percent != WHOLE:
            connection.execute(REVISIONS.update().where(is_revision(name, left)).values(percent=WHOLE))
        return said
