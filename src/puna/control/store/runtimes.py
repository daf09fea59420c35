"""The store's part about who uses which version of a runtime, and about versions that go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select

from puna.control.domain.states import PAST, UNENDED, RevisionState
from puna.control.store.database import Database
from puna.control.store.tables import COUNTERS, ENDPOINTS, REVISIONS, RUNTIME_COUNTER, RUNTIMES
from puna.errors import ConflictError, NotFoundError


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


class RuntimeStore(Database):
    """Uses and deletions; making and finding stand beside the builds."""

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
                wanted = f"version {version} of `{name}`" if version is not None else f"`{name}`"
                raise NotFoundError(f"there is no runtime {wanted}", "`puna runtime list`")
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


def _used(name: str, uses: Sequence[RuntimeUsers]) -> ConflictError:
    first, others = uses[0], len(uses) - 1
    return ConflictError(
        f"version {first.version} of runtime `{name}` is used by revision {first.revision} of `{first.endpoint}`"
        + (f" and {others} more" if others else ""),
        f"`puna runtime use {first.endpoint} RUNTIME` builds it on another",
    )
