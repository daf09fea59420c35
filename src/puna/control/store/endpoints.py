"""Endpoints, their revisions, and how many replicas each should have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, Table, and_, select

from puna.config.settings import Settings
from puna.control.domain.records import WHOLE, Endpoint, Event, Revision, RevisionSpec, TrafficSplit
from puna.control.domain.states import REVISION_MOVES, RevisionState
from puna.control.store.database import Database, check_move
from puna.control.store.schema import ENDPOINTS, EVENTS, REVISIONS, SCALING, SPLITS
from puna.errors import ConflictError, NotFoundError, nearest

SPLIT = (
    SPLITS.c.revision.label("split"),
    SPLITS.c.percent,
    SPLITS.c.replicas.label("split_replicas"),
    SPLITS.c.reason.label("split_reason"),
)


class EndpointStore(Database):
    """Endpoints, their revisions, and how many replicas each should have."""

    def endpoints(self) -> list[Endpoint]:
        """Every endpoint, by name."""
        with self._read() as connection:
            return self._endpoints(connection)

    def endpoint(self, name: str) -> Endpoint:
        """One endpoint.

        Raises:
            NotFoundError: there is none of that name.
        """
        with self._read() as connection:
            return self._endpoint(connection, name)

    def _endpoints(self, connection: Connection, name: str | None = None) -> list[Endpoint]:
        scaling = (SCALING.c.replicas, SCALING.c.reason.label("scaling_reason"))
        query = select(ENDPOINTS, *scaling, *SPLIT).select_from(ENDPOINTS.outerjoin(SCALING).outerjoin(SPLITS))
        if name is not None:
            query = query.where(ENDPOINTS.c.name == name)
        return [_endpoint(row) for row in connection.execute(query.order_by(ENDPOINTS.c.name))]

    def _endpoint(self, connection: Connection, name: str) -> Endpoint:
        found = self._endpoints(connection, name)
        if not found:
            names = connection.execute(select(ENDPOINTS.c.name)).scalars()
            raise NotFoundError(f"there is no endpoint `{name}`", nearest(name, names) or "`puna ps` lists them")
        return found[0]

    def revisions(self, endpoint: str | None = None) -> list[Revision]:
        """Every revision of an endpoint, or of all, newest first."""
        query = select(REVISIONS).order_by(REVISIONS.c.number.desc())
        if endpoint is not None:
            query = query.where(REVISIONS.c.endpoint == endpoint)
        with self._read() as connection:
            return [revision_of(row) for row in connection.execute(query)]

    def revision(self, endpoint: str, number: int) -> Revision:
        """One revision.

        Raises:
            NotFoundError: there is none of that number.
        """
        with self._read() as connection:
            return self._revision(connection, endpoint, number)

    def _revision(self, connection: Connection, endpoint: str, number: int) -> Revision:
        row = connection.execute(select(REVISIONS).where(is_revision(endpoint, number))).first()
        if row is None:
            raise NotFoundError(f"there is no revision {number} of `{endpoint}`", f"`puna ps {endpoint}` lists them")
        return revision_of(row)

    @classmethod
    def _save_endpoint(
        cls, connection: Connection, name: str, settings: Settings, now: float, active: bool | None
    ) -> None:
        """Make the endpoint, or change its settings; `active` None leaves that as it is."""
        values: dict[str, Any] = {"settings": settings.as_dict()}
        if active is not None:
            values["active"] = active
        if not connection.execute(ENDPOINTS.update().where(ENDPOINTS.c.name == name).values(**values)).rowcount:
            connection.execute(ENDPOINTS.insert().values(name=name, created=now, **values | {"active": True}))
            connection.execute(SCALING.insert().values(endpoint=name, replicas=0, reason="", at=now))
            cls._event(connection, name, "created", "endpoint created", now)

    def set_active(self, name: str, active: bool, now: float) -> Endpoint:
        """Activate or deactivate; after an activation a replica is asked for only when a request comes."""
        with self._write() as connection:
            self._set_active(connection, self._endpoint(connection, name), active, now)
            return self._endpoint(connection, name)

    @classmethod
    def _set_active(cls, connection: Connection, before: Endpoint, active: bool, now: float) -> None:
        name = before.name
        connection.execute(ENDPOINTS.update().where(ENDPOINTS.c.name == name).values(active=active, reason=""))
        if not active:
            cls._set_desired(connection, name, 0, "deactivated", now)
            cls._set_desired(connection, name, 0, "deactivated", now, SPLITS)
        if before.active != active:
            cls._event(connection, name, "activated" if active else "deactivated", "asked for", now)

    def set_reason(self, name: str, reason: str, now: float) -> None:
        """Say why an endpoint cannot serve; an empty reason takes it back."""
        with self._write() as connection:
            connection.execute(ENDPOINTS.update().where(ENDPOINTS.c.name == name).values(reason=reason))
            self._event(connection, name, "reason", reason or "all is well again", now)

    def scale(self, endpoint: str, replicas: int, reason: str, now: float, revision: int | None = None) -> None:
        """Ask for so many replicas, of the serving revision or of the `revision` that shares its requests.

        The reconciler makes it true within the endpoint's limits.
        """
        if self.endpoint(endpoint).desired_of(revision)[0] == replicas:
            return  # without a transaction that writes: the autoscaler says it again and again
        with self._write() as connection:
            self._scale(connection, self._endpoint(connection, endpoint), replicas, reason, now, revision)

    @classmethod
    def _scale(
        cls, connection: Connection, before: Endpoint, replicas: int, reason: str, now: float, revision: int | None
    ) -> None:
        desired, _ = before.desired_of(revision)
        is_split = before.split is not None and before.split.revision == revision
        which = f"revision {revision}: " if is_split else ""
        cls._set_desired(connection, before.name, replicas, reason, now, SPLITS if is_split else SCALING)
        cls._event(connection, before.name, "scale", f"{which}{desired} -> {replicas}: {reason}", now)

    @staticmethod
    def _set_desired(
        connection: Connection, endpoint: str, replicas: int, reason: str, now: float, table: Table = SCALING
    ) -> None:
        row = table.update().where(table.c.endpoint == endpoint)
        connection.execute(row.values(replicas=replicas, reason=reason, at=now))

    def _add_revision(
        self, connection: Connection, name: str, spec: RevisionSpec, now: float, copy_of: Revision | None = None
    ) -> Revision:
        """A new revision: to be built, or, as `copy_of` one that has been built, ready to be rolled out."""
        # Counted beyond the endpoint's deletion: a replica of a deleted one is never taken for a new one's.
        number = self._bump(connection, f"revision of {name}")
        values: dict[str, Any] = {"state": str(RevisionState.QUEUED)}
        if copy_of is not None:
            values = {"state": str(RevisionState.BUILT), "environment": copy_of.environment}
            values |= {"bundle": copy_of.bundle, "schema": copy_of.schema, "weights_bytes": copy_of.weights_bytes}
        connection.execute(
            REVISIONS.insert().values(
                endpoint=name,
                number=number,
                source=spec.source,
                runtime=spec.runtime,
                runtime_version=spec.runtime_version,
                settings=spec.settings.as_dict(),
                created=now,
                since=now,
                percent=spec.percent,
                asked=self._bump(connection, "asked"),
                **values,
            )
        )
        self._event(connection, name, "deploy", f"revision {number} asked for", now)
        return self._revision(connection, name, number)

    def move_revision(self, name: str, number: int, state: RevisionState, now: float, **values: Any) -> Revision:
        """Put a revision into another state, with what is known of it since (`error`, `bundle`, `schema`...).

        Raises:
            ConflictError: the move is not in the table.
        """
        with self._write() as connection:
            self._move_revision(connection, self._revision(connection, name, number), state, now, values)
            return self._revision(connection, name, number)

    def _move_revision(
        self, connection: Connection, before: Revision, state: RevisionState, now: float, values: Mapping[str, Any]
    ) -> None:
        thing = f"revision {before.number} of `{before.endpoint}`"
        check_move(thing, REVISION_MOVES, before.state, state)
        changed = REVISIONS.update().where(is_revision(before.endpoint, before.number))
        connection.execute(changed.values(state=str(state), since=now, **values))
        message = f"revision {before.number}: {before.state} -> {state}"
        error = values.get("error")
        self._event(connection, before.endpoint, str(state), f"{message}: {error}" if error else message, now)

    def swap(self, name: str, number: int, now: float) -> None:
        """Let revision `number` serve, and retire those that did: in one transaction, so requests see one of them."""
        with self._write() as connection:
            endpoint = self._endpoint(connection, name)
            if number not in endpoint.shares:  # one of a split serves already, and gets the rest
                new = self._revision(connection, name, number)
                values = {"failures": 0, "error": "", "detail": ""}
                self._move_revision(connection, new, RevisionState.SERVING, now, values)
            self._route_all_to(connection, endpoint, number, now)
            if endpoint.desired_replicas < 1 and endpoint.split is None:
                self._set_desired(connection, name, 1, f"revision {number} was proved with one replica", now)

    def _route_all_to(self, connection: Connection, endpoint: Endpoint, number: int, now: float, why: str = "") -> None:
        """All requests to revision `number`; what others had, desired replicas included, is now its own."""
        name = endpoint.name
        for old in endpoint.shares:
            if old != number:
                lost: dict[str, Any] = {"error": why} if why else {}
                if endpoint.split is not None and old == endpoint.split.revision:
                    lost["percent"] = endpoint.split.percent  # it was never alone: no rollback goes to it by itself
                self._move_revision(connection, self._revision(connection, name, old), RevisionState.RETIRED, now, lost)
        connection.execute(ENDPOINTS.update().where(ENDPOINTS.c.name == name).values(serving=number, reason=""))
        connection.execute(REVISIONS.update().where(is_revision(name, number)).values(percent=WHOLE))
        if endpoint.split is not None:
            connection.execute(SPLITS.delete().where(SPLITS.c.endpoint == name))
            said = f"revision {number} has all requests"
            self._set_desired(connection, name, endpoint.desired_replicas + endpoint.split.desired_replicas, said, now)
            self._event(connection, name, "traffic", said, now)

    def start_canary(self, name: str, number: int, now: float) -> None:
        """Let revision `number` have its share beside the one that serves; one that had a share before is retired."""
        with self._write() as connection:
            endpoint, new = self._endpoint(connection, name), self._revision(connection, name, number)
            self._move_revision(connection, new, RevisionState.SERVING, now, {"failures": 0, "error": "", "detail": ""})
            if endpoint.split is not None:
                old = self._revision(connection, name, endpoint.split.revision)
                self._move_revision(connection, old, RevisionState.RETIRED, now, {})
                connection.execute(SPLITS.delete().where(SPLITS.c.endpoint == name))
            values = {"replicas": 1, "reason": f"revision {number} was proved with one replica", "at": now}
            row = SPLITS.insert().values(endpoint=name, revision=number, percent=new.percent, **values)
            connection.execute(row)
            self._event(connection, name, "traffic", split_text(endpoint.serving, number, new.percent), now)

    def abort_canary(self, name: str, number: int, error: str, detail: str, now: float) -> None:
        """Retire a revision of a split that cannot serve, and give its share to the other.

        Raises:
            ConflictError: it shares with none.
        """
        with self._write() as connection:
            endpoint = self._endpoint(connection, name)
            other = [one for one in endpoint.shares if one != number]
            if number not in endpoint.shares or not other:
                raise ConflictError(f"revision {number} of `{name}` shares its requests with none")
            share = f"revision {number} gives its {endpoint.shares[number]} % back to revision {other[0]}"
            self._event(connection, name, "traffic", f"{share}: {error}", now)
            self._route_all_to(connection, endpoint, other[0], now, error)
            connection.execute(REVISIONS.update().where(is_revision(name, number)).values(detail=detail))

    def cancel_promotion(self, name: str, number: int, error: str, now: float) -> None:
        """Give up promoting a revision: it goes on with the share that it has."""
        with self._write() as connection:
            split = self._endpoint(connection, name).split
            if split is None or split.revision != number:
                raise ConflictError(f"revision {number} of `{name}` shares its requests with none")
            values = {"percent": split.percent, "error": error}
            connection.execute(REVISIONS.update().where(is_revision(name, number)).values(**values))
            self._event(connection, name, "traffic", f"revision {number} keeps {split.percent} %: {error}", now)

    def clear_failures(self, name: str, number: int) -> None:
        """Forget a revision's failures: it has run long enough since."""
        with self._write(routes=False) as connection:
            mine = REVISIONS.update().where(is_revision(name, number))
            connection.execute(mine.values(failures=0, error="", detail=""))

    def add_event(self, endpoint: str, kind: str, message: str, now: float) -> None:
        """Record that something happened."""
        with self._write(routes=False) as connection:
            self._event(connection, endpoint, kind, message, now)

    def events_page(self, endpoint: str, after: int | None, limit: int, newest_first: bool = False) -> list[Event]:
        """Events of an endpoint beyond the one of id `after`, from the oldest on or from the newest back."""
        mine = select(EVENTS).where(EVENTS.c.endpoint == endpoint).limit(limit)
        if after is not None:
            mine = mine.where(EVENTS.c.id < after if newest_first else EVENTS.c.id > after)
        ordered = mine.order_by(EVENTS.c.id.desc() if newest_first else EVENTS.c.id)
        with self._read() as connection:
            return [Event(**row._mapping) for row in connection.execute(ordered)]


def split_text(serving: int | None, number: int, percent: int) -> str:
    """Two revisions that share requests, in words."""
    return f"revision {serving} has {WHOLE - percent} %, revision {number} {percent} %"


def is_revision(endpoint: str, number: int) -> Any:
    """The condition that a row of the table is one revision."""
    return and_(REVISIONS.c.endpoint == endpoint, REVISIONS.c.number == number)


def _endpoint(row: Row[Any]) -> Endpoint:
    return Endpoint(
        name=row.name,
        active=row.active,
        settings=Settings.from_row(row.settings),
        serving=row.serving,
        reason=row.reason,
        created=row.created,
        desired_replicas=row.replicas or 0,
        scaling_reason=row.scaling_reason or "",
        split=TrafficSplit(row.split, row.percent, row.split_replicas, row.split_reason) if row.split else None,
    )


def revision_of(row: Row[Any]) -> Revision:
    """The revision that a row of the table is."""
    values = dict(row._mapping)
    values |= {
        "state": RevisionState(row.state),
        "settings": Settings.from_row(row.settings),
        "weights_bytes": int(row.weights_bytes),
        "percent": row.percent or WHOLE,
    }
    return Revision(**{k: v for k, v in values.items() if k in Revision.__dataclass_fields__})
