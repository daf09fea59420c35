"""Builds with their steps, and runtimes: their versions, who uses them, and their end."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, or_, select

from puna.control.domain.records import Build, Revision, Runtime, Step
from puna.control.domain.states import BUILD_MOVES, PAST, STEP_MOVES, UNENDED, BuildState, RevisionState, StepState
from puna.control.store.database import Database, check_move
from puna.control.store.schema import BUILD_STEPS, BUILDS, COUNTERS, ENDPOINTS, REVISIONS, RUNTIME_COUNTER, RUNTIMES
from puna.errors import ConflictError, NotFoundError, nearest

STEPS = {
    "revision": ("environment", "bundle", "validate"),
    "runtime": ("environment",),
    "merge": ("merge",),
    "publish": ("publish",),
}


@dataclass(frozen=True)
class RuntimeUsers:
    """A revision that is built on a version of a runtime."""

    endpoint: str
    revision: int
    version: int
    state: RevisionState
    is_serving: bool
    is_needed: bool
    """It serves, is on its way, or is the one that a rebuild would build again."""


class BuildStore(Database):
    """Runtimes, builds and their steps."""

    def add_runtime(self, name: str, digest: str, yaml: str, now: float) -> Runtime:
        """The next version of a runtime, with its build; the newest version again when the digest is the same."""
        with self._write(routes=False) as connection:
            newest = self._runtime(connection, name, None)
            if newest is not None and newest.digest == digest and newest.state not in _BUILD_ENDED_BADLY:
                return newest
            # Counted beyond deletions: a number never means another file.
            version = max(newest.version if newest else 0, self._counter(connection, RUNTIME_COUNTER + name)) + 1
            build = self._add_build(connection, "runtime", name, version, now)
            connection.execute(
                RUNTIMES.insert().values(
                    name=name,
                    version=version,
                    digest=digest,
                    yaml=yaml,
                    state=str(BuildState.QUEUED),
                    created=now,
                    build_id=build,
                )
            )
            return Runtime(name, version, digest, yaml, BuildState.QUEUED, now, build)

    def runtimes(self, name: str | None = None) -> list[Runtime]:
        """Every version of every runtime, or of one, by name and newest first."""
        query = select(RUNTIMES).order_by(RUNTIMES.c.name, RUNTIMES.c.version.desc())
        with self._read() as connection:
            rows = connection.execute(query if name is None else query.where(RUNTIMES.c.name == name))
            return [_runtime(row) for row in rows]

    def runtime(self, name: str, version: int | None = None) -> Runtime:
        """One version of a runtime; the newest when None.

        Raises:
            NotFoundError: there is none.
        """
        with self._read() as connection:
            found = self._runtime(connection, name, version)
            if found is None:
                names = connection.execute(select(RUNTIMES.c.name)).scalars()
                raise _no_runtime(name, version, nearest(name, names) or "`puna runtime upload FILE`")
            return found

    @staticmethod
    def _runtime(connection: Connection, name: str, version: int | None) -> Runtime | None:
        query = select(RUNTIMES).where(RUNTIMES.c.name == name).order_by(RUNTIMES.c.version.desc()).limit(1)
        row = connection.execute(query if version is None else query.where(RUNTIMES.c.version == version)).first()
        return _runtime(row) if row is not None else None

    def add_build(
        self, kind: str, subject: str, number: int, now: float, arguments: Mapping[str, Any] | None = None
    ) -> Build:
        """Queue a build of another kind than a revision's."""
        with self._write(routes=False) as connection:
            told: dict[str, Any] = {"arguments": dict(arguments)} if arguments else {}
            build_id = self._add_build(connection, kind, subject, number, now, **told)
            return self._build(connection, build_id)

    @classmethod
    def _build_revision(cls, connection: Connection, revision: Revision, now: float, owner: str) -> None:
        """Queue the build of a revision, and write it beside it."""
        build_id = cls._add_build(connection, "revision", revision.endpoint, revision.number, now, owner)
        cls._name_build(connection, revision.endpoint, revision.number, build_id)

    @staticmethod
    def _name_build(connection: Connection, endpoint: str, number: int, build_id: str) -> None:
        mine = (REVISIONS.c.endpoint == endpoint) & (REVISIONS.c.number == number)
        connection.execute(REVISIONS.update().where(mine).values(build_id=build_id))

    @staticmethod
    def _add_build(
        connection: Connection, kind: str, subject: str, number: int, now: float, owner: str = "", **more: Any
    ) -> str:
        build_id = secrets.token_hex(6)
        row = BUILDS.insert().values(
            id=build_id,
            kind=kind,
            subject=subject,
            number=number,
            state=str(BuildState.QUEUED),
            created=now,
            cancel=False,
            owner=owner,
            **more,
        )
        connection.execute(row)
        for position, name in enumerate(STEPS[kind]):
            values = {"build_id": build_id, "position": position, "name": name, "state": str(StepState.PENDING)}
            connection.execute(BUILD_STEPS.insert().values(**values))
        return build_id

    def build(self, build_id: str) -> Build:
        """One build with its steps.

        Raises:
            NotFoundError: there is none of that id.
        """
        with self._read() as connection:
            return self._build(connection, build_id)

    @classmethod
    def _build(cls, connection: Connection, build_id: str) -> Build:
        found = cls._builds(connection, [build_id])
        if not found:
            raise NotFoundError(f"there is no build `{build_id}`")
        return found[0]

    @staticmethod
    def _builds(connection: Connection, ids: Sequence[str]) -> list[Build]:
        """Those of these ids that are there, in their order."""
        steps: dict[str, list[Step]] = {}
        theirs = select(BUILD_STEPS).where(BUILD_STEPS.c.build_id.in_(ids)).order_by(BUILD_STEPS.c.position)
        for s in connection.execute(theirs):
            steps.setdefault(s.build_id, []).append(Step(s.name, StepState(s.state), s.seconds))
        found = {}
        for row in connection.execute(select(BUILDS).where(BUILDS.c.id.in_(ids))):
            read: dict[str, Any] = {"state": BuildState(row.state), "steps": tuple(steps.get(row.id, ()))}
            read |= {"arguments": row.arguments or {}, "owner": row.owner or ""}
            found[row.id] = Build(**{**row._mapping, **read})
        return [found[build_id] for build_id in ids if build_id in found]

    def builds(self, limit: int = 100) -> list[Build]:
        """The latest builds, oldest first."""
        query = select(BUILDS.c.id).order_by(BUILDS.c.created.desc()).limit(limit)
        with self._read() as connection:
            return self._builds(connection, connection.execute(query).scalars().all())[::-1]

    def builds_page(
        self, before: tuple[float, str] | None, limit: int, endpoints: Collection[str] | None = None
    ) -> list[Build]:
        """Builds, newest first, older than the one with this time and id; of these endpoints only, or all."""
        query = select(BUILDS.c.id).order_by(BUILDS.c.created.desc(), BUILDS.c.id.desc()).limit(limit)
        if before is not None:
            at, build_id = before
            same = (BUILDS.c.created == at) & (BUILDS.c.id < build_id)
            query = query.where(or_(BUILDS.c.created < at, same))
        if endpoints is not None:
            query = query.where(BUILDS.c.kind == "revision", BUILDS.c.subject.in_(list(endpoints)))
        with self._read() as connection:
            return self._builds(connection, connection.execute(query).scalars().all())

    def unended_builds(self, *states: BuildState) -> list[Build]:
        """Every build that waits or runs, or is in one of these states, the oldest first."""
        with self._read() as connection:
            return self._unended(connection, *states)

    @classmethod
    def _unended(cls, connection: Connection, *states: BuildState) -> list[Build]:
        query = select(BUILDS.c.id).where(BUILDS.c.state.in_([str(state) for state in states or UNENDED]))
        ids = connection.execute(query.order_by(BUILDS.c.created, BUILDS.c.number, BUILDS.c.id)).scalars().all()
        return cls._builds(connection, ids)

    @staticmethod
    def _move_build(connection: Connection, before: Build, state: BuildState, values: Mapping[str, Any]) -> None:
        """Put a build into another state; a runtime's version follows it."""
        check_move(f"build `{before.id}`", BUILD_MOVES, before.state, state)
        changed = BUILDS.update().where(BUILDS.c.id == before.id)
        connection.execute(changed.values(state=str(state), **values))
        if before.kind == "runtime":
            follows = RUNTIMES.update().where(RUNTIMES.c.build_id == before.id)
            connection.execute(follows.values(state=str(state)))

    def set_step(self, build_id: str, name: str, state: StepState, seconds: float | None = None) -> None:
        """Record how far a step of a build is.

        Raises:
            ConflictError: the move is not in the table.
        """
        with self._write(routes=False) as connection:
            self._set_step(connection, self._build(connection, build_id), name, state, seconds)

    @staticmethod
    def _set_step(connection: Connection, build: Build, name: str, state: StepState, seconds: float | None) -> None:
        before = next(step for step in build.steps if step.name == name)
        check_move(f"step {name} of build `{build.id}`", STEP_MOVES, before.state, state)
        mine = (BUILD_STEPS.c.build_id == build.id) & (BUILD_STEPS.c.name == name)
        connection.execute(BUILD_STEPS.update().where(mine).values(state=str(state), seconds=seconds))

    # ---- who uses a runtime, and its end ------------------------------------------------------------------------

    def uses_of_runtime(self, name: str) -> list[RuntimeUsers]:
        """The revisions that are built on any version of a runtime, by endpoint and number."""
        with self._read() as connection, connection.begin():
            return self._uses(connection, name)

    @staticmethod
    def _uses(connection: Connection, name: str) -> list[RuntimeUsers]:
        serving = {row.name: row.serving for row in connection.execute(select(ENDPOINTS))}
        columns = select(
            REVISIONS.c.endpoint,
            REVISIONS.c.number,
            REVISIONS.c.state,
            REVISIONS.c.runtime,
            REVISIONS.c.runtime_version,
            REVISIONS.c.asked,
        )
        rows = connection.execute(columns.order_by(REVISIONS.c.endpoint, REVISIONS.c.number)).all()
        newest = {row.endpoint: row.number for row in sorted(rows, key=lambda row: int(row.asked))}
        return [
            RuntimeUsers(
                row.endpoint,
                row.number,
                row.runtime_version,
                RevisionState(row.state),
                is_serving=serving.get(row.endpoint) == row.number,
                is_needed=row.state not in PAST or newest[row.endpoint] == row.number,
            )
            for row in rows
            if row.runtime == name
        ]

    def delete_runtime(self, name: str, version: int | None = None) -> list[int]:
        """Forget a version that nothing needs, or all of them; which. Their numbers are not used again.

        Raises:
            NotFoundError: there is none.
            ConflictError: an endpoint needs one, or it is being built.
        """
        mine = RUNTIMES.c.name == name
        if version is not None:
            mine &= RUNTIMES.c.version == version
        with self._write(routes=False) as connection:
            rows = connection.execute(select(RUNTIMES).where(mine).order_by(RUNTIMES.c.version)).all()
            if not rows:
                raise _no_runtime(name, version, "`puna runtime list`")
            uses = [use for use in self._uses(connection, name) if use.is_needed and version in (None, use.version)]
            if uses:
                raise _used(name, uses)
            building = next((row for row in rows if row.state in [str(state) for state in UNENDED]), None)
            if building is not None:
                raise ConflictError(
                    f"version {building.version} of runtime `{name}` is being built",
                    f"`puna build cancel {building.build_id}` stops it",
                )
            connection.execute(delete(RUNTIMES).where(mine))
            last = max(rows[-1].version, self._counter(connection, RUNTIME_COUNTER + name))
            connection.execute(delete(COUNTERS).where(COUNTERS.c.name == RUNTIME_COUNTER + name))
            connection.execute(COUNTERS.insert().values(name=RUNTIME_COUNTER + name, value=last))
            return [row.version for row in rows]


_BUILD_ENDED_BADLY = (BuildState.FAILED, BuildState.CANCELLED)


def _runtime(row: Row[Any]) -> Runtime:
    return Runtime(**{**row._mapping, "state": BuildState(row.state)})


def _no_runtime(name: str, version: int | None, hint: str) -> NotFoundError:
    wanted = f"`{name}`" if version is None else f"version {version} of `{name}`"
    return NotFoundError(f"there is no runtime {wanted}", hint)


def _used(name: str, uses: Sequence[RuntimeUsers]) -> ConflictError:
    first, others = uses[0], len(uses) - 1
    return ConflictError(
        f"version {first.version} of runtime `{name}` is used by revision {first.revision} of `{first.endpoint}`"
        + (f" and {others} more" if others else ""),
        f"`puna runtime use {first.endpoint} RUNTIME` builds it on another",
    )
