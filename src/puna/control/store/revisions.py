"""The store's part about deploys: each use case of revisions with their builds is one method and one transaction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, select

from puna.config.settings import Settings
from puna.control.domain.records import Build, Delivery, Endpoint, Revision, RevisionSpec
from puna.control.domain.states import PENDING, UNENDED, BuildState, DeliveryState, RevisionState, StepState
from puna.control.store.builds import BuildStore
from puna.control.store.deliveries import DeliveryStore
from puna.control.store.endpoints import EndpointStore, revision_of
from puna.control.store.schema import BUILDS, ENDPOINTS, REVISIONS
from puna.errors import ConflictError

ENDS = {
    BuildState.SUCCEEDED: RevisionState.BUILT,
    BuildState.FAILED: RevisionState.FAILED,
    BuildState.CANCELLED: RevisionState.CANCELLED,
}
"""The state of a revision after the end of its build."""
IN_BUILD = frozenset({RevisionState.QUEUED, RevisionState.BUILDING})
"""Revisions that wait for the end of a build."""

SpecOf = Callable[[Endpoint | None, Revision | None], RevisionSpec]
"""The revision to build, from the endpoint (None: there is none yet) and its revision of the highest number."""


@dataclass(frozen=True)
class QueuedRevision:
    """The outcome of a deploy: a new revision, or the one that made it needless."""

    revision: Revision
    is_unchanged: bool


@dataclass(frozen=True)
class Change:
    """The outcome of a change of settings: with a `spec` a new revision, built unless it is a `copy_of` one."""

    settings: Settings
    spec: RevisionSpec | None = None
    copy_of: Revision | None = None


ChangeOf = Callable[[Endpoint, Revision | None], Change]
"""A change, from the endpoint and its newest revision that is alive, else its newest."""


class DeployStore(EndpointStore, BuildStore, DeliveryStore):
    """Deploys and builds, from the request to the end; what is asked is judged in the transaction that does it."""

    def deploy(
        self, name: str, spec_of: SpecOf, now: float, owner: str = "", damaged: Collection[int] = ()
    ) -> QueuedRevision:
        """Make the endpoint or change its settings, and queue a build unless the newest revision is the same.

        `owner` is the key that asked: builds take turns by it. A revision that is `damaged` is built again.
        """
        with self._write() as connection:
            found = self._endpoints(connection, name)
            spec = spec_of(found[0] if found else None, self._newest(connection, name))
            same = self._unchanged(connection, name, spec)
            same = None if same is not None and same.number in damaged else same
            self._save_endpoint(connection, name, spec.settings, now, active=True)
            made = same or self._queue(connection, name, spec, now, owner)
            return QueuedRevision(made, is_unchanged=same is not None)

    def rebuild(
        self,
        name: str,
        spec_of: SpecOf,
        now: float,
        *,
        only_changed: bool = False,
        owner: str = "",
        deliveries: Sequence[Delivery] = (),
    ) -> QueuedRevision:
        """Queue a build of an endpoint that is there, and say of `deliveries` what came of them.

        With `only_changed` nothing is built when the newest revision is the same.
        """
        with self._write() as connection:
            endpoint = self._endpoint(connection, name)
            spec = spec_of(endpoint, self._newest(connection, name))
            same = self._unchanged(connection, name, spec) if only_changed else None
            self._save_endpoint(connection, name, spec.settings, now, active=None)
            made = same or self._queue(connection, name, spec, now, owner)
            outcome = DeliveryState.UNCHANGED if same else DeliveryState.DEPLOYED
            commit = spec.settings.git.get("commit", "")
            for delivery in deliveries:
                self._end_delivery(connection, delivery.id, outcome, {"revision": made.number, "commit": commit})
            if deliveries and same is None:
                said = f"revision {made.number} is commit {commit[:12]}, as {deliveries[-1].sender} said"
                self._event(connection, name, "rebuild", said, now)
            return QueuedRevision(made, is_unchanged=same is not None)

    def change(
        self, name: str, change_of: ChangeOf, now: float, *, active: bool | None = None, owner: str = ""
    ) -> int | None:
        """Change an endpoint's settings, and whether it is active; the number of the revision that it took."""
        with self._write() as connection:
            endpoint = self._endpoint(connection, name)
            change = change_of(endpoint, self._newest_alive(connection, name))
            self._save_endpoint(connection, name, change.settings, now, active=None)
            if active is not None and active is not endpoint.active:
                self._set_active(connection, endpoint, active, now)
            if change.spec is None:
                return None
            if change.copy_of is None:
                return self._queue(connection, name, change.spec, now, owner).number
            return self._add_revision(connection, name, change.spec, now, change.copy_of).number

    def newest_alive(self, name: str) -> Revision | None:
        """The newest revision that is alive, else the newest; by when they were asked for."""
        with self._read() as connection:
            return self._newest_alive(connection, name)

    @staticmethod
    def _newest_alive(connection: Connection, name: str) -> Revision | None:
        query = select(REVISIONS).where(REVISIONS.c.endpoint == name).order_by(REVISIONS.c.asked.desc())
        revisions = [revision_of(row) for row in connection.execute(query)]
        alive = (r for r in revisions if r.state in PENDING or r.state is RevisionState.SERVING)
        return next(alive, revisions[0] if revisions else None)

    @staticmethod
    def _newest(connection: Connection, name: str, by: Column[int] = REVISIONS.c.number) -> Revision | None:
        query = select(REVISIONS).where(REVISIONS.c.endpoint == name).order_by(by.desc()).limit(1)
        row = connection.execute(query).first()
        return revision_of(row) if row is not None else None

    @classmethod
    def _unchanged(cls, connection: Connection, name: str, spec: RevisionSpec) -> Revision | None:
        """The revision that makes a deploy needless: the newest asked for, when it is on its way or serves the same."""
        last = cls._newest(connection, name, REVISIONS.c.asked)
        if last is None:
            return None
        same = (last.source, last.runtime, last.runtime_version) == (spec.source, spec.runtime, spec.runtime_version)
        # One whose replicas die is built and tried again: it is not known to serve.
        serves = last.state is RevisionState.SERVING and not last.failures
        alive = serves or (last.state in PENDING and last.percent == spec.percent)
        return last if same and alive and last.settings.launch == spec.settings.launch else None

    def _queue(self, connection: Connection, name: str, spec: RevisionSpec, now: float, owner: str) -> Revision:
        revision = self._add_revision(connection, name, spec, now)
        self._build_revision(connection, revision, now, owner)
        return self._revision(connection, name, revision.number)

    # ---- builds ------------------------------------------------------------------------------------------------

    def claim_build(
        self, choose: Callable[[Sequence[Build], Sequence[Build]], Build | None], now: float
    ) -> Build | None:
        """Begin the build that `choose` picks of those that wait, the oldest first, and those that run."""
        if not self.unended_builds(BuildState.QUEUED):
            return None  # without a transaction that writes: this is asked every second
        with self._write() as connection:
            queued = self._unended(connection, BuildState.QUEUED)
            build = choose(queued, self._unended(connection, BuildState.RUNNING))
            if build is None:
                return None
            revision = self._revision_of(connection, build)
            if build.kind == "revision" and (revision is None or revision.state is not RevisionState.QUEUED):
                self._end_build(connection, build, BuildState.CANCELLED, now, {})  # nothing waits for it
                return None
            self._move_build(connection, build, BuildState.RUNNING, {})
            if revision is not None:
                self._move_revision(connection, revision, RevisionState.BUILDING, now, {})
            return self._build(connection, build.id)

    def end_build(self, build_id: str, state: BuildState, now: float, **values: Any) -> Build:
        """End a running build, and its revision with it: `values` are what is known of it since.

        One that was cancelled ends so, whatever came of it.
        """
        with self._write() as connection:
            build = self._build(connection, build_id)
            if build.cancel:
                state, values = BuildState.CANCELLED, {}
            self._end_build(connection, build, state, now, values)
            return self._build(connection, build_id)

    def cancel_build(self, build_id: str, now: float) -> Build:
        """Ask a build to end: a queued one ends at once, a running one at its next look.

        Raises:
            ConflictError: it has ended already.
        """
        with self._write() as connection:
            build = self._build(connection, build_id)
            if build.state not in UNENDED:
                raise ConflictError(f"build `{build_id}` has ended: {build.state}")
            self._cancel(connection, build, now)
            return self._build(connection, build_id)

    def _cancel(self, connection: Connection, build: Build, now: float) -> None:
        connection.execute(BUILDS.update().where(BUILDS.c.id == build.id).values(cancel=True))
        if build.state is BuildState.QUEUED:
            self._end_build(connection, build, BuildState.CANCELLED, now, {})

    def _cancel_builds_of(self, connection: Connection, name: str, now: float) -> None:
        for state in UNENDED:
            for build in self._unended(connection, state):
                if build.kind == "revision" and build.subject == name:
                    self._cancel(connection, build, now)

    def _end_build(
        self, connection: Connection, build: Build, state: BuildState, now: float, values: Mapping[str, Any]
    ) -> None:
        why = {key: values[key] for key in ("error", "hint", "detail") if key in values}
        self._move_build(connection, build, state, {**why, "gpu": "", "fraction": 0.0})
        for step in build.steps:
            if step.state is StepState.RUNNING:
                self._set_step(connection, build, step.name, StepState.FAILED, step.seconds)
        revision = self._revision_of(connection, build)
        if revision is not None and revision.state in IN_BUILD:
            self._move_revision(connection, revision, ENDS[state], now, values)

    @staticmethod
    def _revision_of(connection: Connection, build: Build) -> Revision | None:
        """A build's revision; None for a runtime or a run, and when the endpoint was deleted."""
        mine = (REVISIONS.c.endpoint == build.subject) & (REVISIONS.c.number == build.number)
        row = connection.execute(select(REVISIONS).where(mine)).first() if build.kind == "revision" else None
        return revision_of(row) if row is not None else None

    def delete_endpoint(self, name: str, now: float) -> None:
        """Forget an endpoint and its revisions, and cancel its builds; the reconciler stops its replicas."""
        with self._write() as connection:
            self._endpoint(connection, name)
            self._cancel_builds_of(connection, name, now)
            connection.execute(ENDPOINTS.delete().where(ENDPOINTS.c.name == name))
            self._event(connection, name, "deleted", "endpoint deleted", now)
