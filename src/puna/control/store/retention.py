"""The store's part about what is kept of the past: old revisions, builds, events and keys are dropped here."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import and_, delete, func, select

from puna.control.domain.records import workspace_of_build
from puna.control.domain.states import PAST, UNENDED
from puna.control.store.database import Database
from puna.control.store.schema import BUILDS, COUNTERS, ENDPOINTS, EVENTS, KEYS, REPLICAS, REVISIONS, RUNTIMES, SPLITS

REVISION_OF = "revision of "
"""The prefix of the counters of endpoints' revisions."""


@dataclass(frozen=True)
class Named:
    """Names in the store of what lies on the disk; digests are whole."""

    sources: frozenset[str]
    bundles: frozenset[str]
    environments: frozenset[str]
    builds: frozenset[str]
    workspaces: frozenset[str]
    """Of replicas and of builds under way."""
    endpoints: frozenset[str]
    is_settled: bool
    """No replica is left of an endpoint or a revision that has been dropped: it may still read its files."""


class RetentionStore(Database):
    """Dropping, and what is named by that which stays."""

    def retention_stamp(self) -> tuple[int, ...]:
        """Another one when something was asked for, built or deleted."""
        ended = BUILDS.c.state.not_in([str(state) for state in UNENDED])
        with self._read() as connection:
            asked = self._counter(connection, "asked")
            builds = connection.execute(select(func.count()).select_from(BUILDS).where(ended)).scalar() or 0
            endpoints = connection.execute(select(func.count()).select_from(ENDPOINTS)).scalar() or 0
            return asked, builds, endpoints

    def drop_revisions(self, keep: int) -> int:
        """Drop old revisions; how many.

        Of each endpoint stay: the newest `keep` that were built, and as many that were not; whatever is on its way,
        serves, has a replica or a share of the requests.
        """
        query = select(REVISIONS.c.endpoint, REVISIONS.c.number, REVISIONS.c.state, REVISIONS.c.bundle)
        with self._write(routes=False) as connection:
            used = {(row.endpoint, row.revision) for row in connection.execute(select(REPLICAS))}
            used |= {(row.endpoint, row.revision) for row in connection.execute(select(SPLITS))}
            seen: dict[tuple[str, bool], int] = {}
            dropped = 0
            for row in connection.execute(query.order_by(REVISIONS.c.endpoint, REVISIONS.c.number.desc())).all():
                kind = (row.endpoint, bool(row.bundle))
                seen[kind] = seen.get(kind, 0) + 1
                if seen[kind] <= keep or row.state not in PAST or (row.endpoint, row.number) in used:
                    continue
                mine = and_(REVISIONS.c.endpoint == row.endpoint, REVISIONS.c.number == row.number)
                connection.execute(delete(REVISIONS).where(mine))
                dropped += 1
            return dropped

    def drop_builds(self, keep: int) -> int:
        """Drop old builds; how many. Those under way stay, those that revisions and runtimes name, and `keep` more."""
        named = select(REVISIONS.c.build_id).where(REVISIONS.c.build_id.is_not(None))
        old = select(BUILDS.c.id).where(
            BUILDS.c.state.not_in([str(state) for state in UNENDED]),
            BUILDS.c.id.not_in(named.union(select(RUNTIMES.c.build_id))),
        )
        with self._write(routes=False) as connection:
            ids = connection.execute(old.order_by(BUILDS.c.created.desc())).scalars().all()[keep:]
            for build_id in ids:  # one by one: a list of any length has no place in one statement
                connection.execute(delete(BUILDS).where(BUILDS.c.id == build_id))
            return len(ids)

    def drop_events(self, keep: int) -> None:
        """Drop the oldest events of every endpoint that has more than `keep`."""
        with self._write(routes=False) as connection:
            counted = select(EVENTS.c.endpoint).group_by(EVENTS.c.endpoint).having(func.count() > keep)
            for name in connection.execute(counted).scalars().all():
                mine = EVENTS.c.endpoint == name
                newest = select(EVENTS.c.id).where(mine).order_by(EVENTS.c.id.desc())
                last = connection.execute(newest.offset(keep).limit(1)).scalar()
                connection.execute(delete(EVENTS).where(mine, EVENTS.c.id <= last))

    def drop_keys(self, before: float) -> None:
        """Drop keys that expired before that."""
        with self._write(routes=False) as connection:
            connection.execute(delete(KEYS).where(KEYS.c.expires < before))

    def drop_counters(self) -> None:
        """Drop the revision counters of deleted endpoints that nothing else is left of."""
        with self._write(routes=False) as connection:
            found = connection.execute(select(COUNTERS.c.name).where(COUNTERS.c.name.like(REVISION_OF + "%"))).scalars()
            alive = set(connection.execute(select(ENDPOINTS.c.name)).scalars())
            alive |= set(connection.execute(select(REPLICAS.c.endpoint)).scalars())
            alive |= set(connection.execute(select(BUILDS.c.subject).where(BUILDS.c.kind == "revision")).scalars())
            gone = [name for name in found if name.removeprefix(REVISION_OF) not in alive]
            connection.execute(delete(COUNTERS).where(COUNTERS.c.name.in_(gone)))

    def named(self) -> Named:
        """Everything that must stay on the disk, as of one moment."""
        with self._read() as connection, connection.begin():
            revisions = connection.execute(select(REVISIONS)).all()
            runtimes = connection.execute(select(RUNTIMES.c.digest)).scalars().all()
            replicas = connection.execute(select(REPLICAS)).all()
            builds = connection.execute(select(BUILDS.c.id, BUILDS.c.state)).all()
            validations = [workspace_of_build(row.id) for row in builds if row.state in UNENDED]
            known = {(row.endpoint, row.number) for row in revisions}
            return Named(
                sources=frozenset(row.source for row in revisions),
                bundles=frozenset(row.bundle for row in revisions if row.bundle),
                environments=frozenset([*(row.environment for row in revisions if row.environment), *runtimes]),
                builds=frozenset(row.id for row in builds),
                workspaces=frozenset([*(row.id for row in replicas), *validations]),
                endpoints=frozenset(connection.execute(select(ENDPOINTS.c.name)).scalars()),
                is_settled=all((row.endpoint, row.revision) in known for row in replicas),
            )
