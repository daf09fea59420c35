"""The store's part about what a control plane that died has left: put right at the next start, before anything runs."""

from __future__ import annotations

from sqlalchemy import Connection, select

from puna.control.domain.records import Build, Endpoint, Revision
from puna.control.domain.splits import WHOLE
from puna.control.domain.states import UNENDED, BuildState, RevisionState, StepState
from puna.control.store.endpoints import is_revision, revision_of
from puna.control.store.revisions import ENDS, IN_BUILD
from puna.control.store.tables import BUILDS, ENDPOINTS, REVISIONS, RUNTIMES, SPLITS
from puna.control.store.traffic import TrafficStore

AGAIN = "the control plane died while it was built: it is built again"


class HealingStore(TrafficStore):
    """One transaction a use case leaves little to heal; versions before this one left halves of each."""

    def heal(self, now: float) -> list[str]:
        """Bring every build, revision and split to a state that something still leads on from; what was done.

        Called when nothing else uses the store, since what runs is taken for dead.
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
            if build is not None and build.state in UNENDED:
                if revision.state is RevisionState.BUILDING:  # requeued by a version that died in the middle of it
                    self._move_revision(connection, revision, RevisionState.QUEUED, now, {})
            elif build is not None and build.state in (BuildState.FAILED, BuildState.CANCELLED):
                why = {"error": build.error, "hint": build.hint, "detail": build.detail} if build.error else {}
                self._move_revision(connection, revision, ENDS[build.state], now, why)
                said.append(f"revision {revision.number} of {revision.endpoint} is {build.state}, as its build")
            else:
                self._build_again(connection, revision, now)
                said.append(f"revision {revision.number} of {revision.endpoint} had no build: it is built again")
        return said

    def _build_again(self, connection: Connection, revision: Revision, now: float) -> None:
        """A new build for a revision whose own was never queued, or ended without telling what it made."""
        if revision.state is RevisionState.BUILDING:
            self._move_revision(connection, revision, RevisionState.QUEUED, now, {})
        self._build_revision(connection, revision, now, "")
        self._event(connection, revision.endpoint, "deploy", f"revision {revision.number}: {AGAIN}", now)

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
