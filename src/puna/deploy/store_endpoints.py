"""The store's part about endpoints, revisions and wishes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, and_, func, or_, select

from puna.deploy.database import Database, check_move
from puna.deploy.records import Endpoint, Event, Order, Revision, Settings
from puna.deploy.states import PENDING, REVISION_MOVES, RevisionState
from puna.deploy.tables import ENDPOINTS, EVENTS, REVISIONS, WISHES
from puna.errors import ConflictError, NotFoundError, nearest


class EndpointStore(Database):
    """Endpoints, their revisions and their wishes."""

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
        query = select(ENDPOINTS, WISHES.c.replicas, WISHES.c.reason.label("wish_reason"), WISHES.c.at).select_from(
            ENDPOINTS.outerjoin(WISHES)
        )
        if name is not None:
            query = query.where(ENDPOINTS.c.name == name)
        return [_endpoint(row) for row in connection.execute(query.order_by(ENDPOINTS.c.name))]

    def _endpoint(self, connection: Connection, name: str) -> Endpoint:
        found = self._endpoints(connection, name)
        if not found:
            names = connection.execute(select(ENDPOINTS.c.name)).scalars()
            raise NotFoundError(f"there is no endpoint `{name}`", nearest(name, names) or "`puna ps` lists them")
        return found[0]

    def revisions(self, endpoint: str) -> list[Revision]:
        """Every revision of an endpoint, newest first."""
        query = select(REVISIONS).where(REVISIONS.c.endpoint == endpoint).order_by(REVISIONS.c.number.desc())
        with self._read() as connection:
            return [_revision(row) for row in connection.execute(query)]

    def revision(self, endpoint: str, number: int) -> Revision:
        """One revision.

        Raises:
            NotFoundError: there is none of that number.
        """
        with self._read() as connection:
            return self._revision(connection, endpoint, number)

    def _revision(self, connection: Connection, endpoint: str, number: int) -> Revision:
        row = connection.execute(select(REVISIONS).where(_is(endpoint, number))).first()
        if row is None:
            raise NotFoundError(f"there is no revision {number} of `{endpoint}`", f"`puna ps {endpoint}` lists them")
        return _revision(row)

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
        return [_revision(row) for row in connection.execute(query)]

    def unchanged(self, name: str, order: Order) -> Revision | None:
        """The revision that makes a deploy needless: the newest asked for, when it is on its way or serves the same."""
        query = select(REVISIONS).where(REVISIONS.c.endpoint == name).order_by(REVISIONS.c.asked.desc()).limit(1)
        with self._read() as connection:
            row = connection.execute(query).first()
        if row is None:
            return None
        last = _revision(row)
        same = (last.source, last.runtime, last.runtime_version) == (order.source, order.runtime, order.runtime_version)
        alive = last.state in PENDING or last.state is RevisionState.SERVING
        return last if same and alive and last.settings.launch == order.settings.launch else None

    def save_endpoint(self, name: str, settings: Settings, now: float, active: bool | None = True) -> Endpoint:
        """Make the endpoint, or change its settings; `active` None leaves that as it is."""
        with self._write() as connection:
            values: dict[str, Any] = {"settings": settings.as_dict()}
            if active is not None:
                values["active"] = active
            if not connection.execute(ENDPOINTS.update().where(ENDPOINTS.c.name == name).values(**values)).rowcount:
                connection.execute(
                    ENDPOINTS.insert().values(name=name, created=now, active=True, **_but_active(values))
                )
                connection.execute(WISHES.insert().values(endpoint=name, replicas=0, reason="", at=now))
                self._event(connection, name, "created", "endpoint created", now)
            return self._endpoint(connection, name)

    def set_active(self, name: str, active: bool, now: float) -> Endpoint:
        """Activate or deactivate; a replica is wished for again on activation only when a request comes."""
        with self._write() as connection:
            before = self._endpoint(connection, name)
            connection.execute(ENDPOINTS.update().where(ENDPOINTS.c.name == name).values(active=active, reason=""))
            if not active:
                self._wish(connection, name, 0, "deactivated", now)
            if before.active != active:
                self._event(connection, name, "activated" if active else "deactivated", "asked for", now)
            return self._endpoint(connection, name)

    def set_reason(self, name: str, reason: str, now: float) -> None:
        """Say why an endpoint cannot serve; an empty reason takes it back."""
        with self._write() as connection:
            connection.execute(ENDPOINTS.update().where(ENDPOINTS.c.name == name).values(reason=reason))
            self._event(connection, name, "reason", reason or "all is well again", now)

    def set_wish(self, endpoint: str, replicas: int, reason: str, now: float) -> None:
        """Wish for so many replicas; the reconciler makes it true within the endpoint's limits."""
        before = self.endpoint(endpoint)
        if before.wish == replicas:
            return
        with self._write() as connection:
            self._wish(connection, endpoint, replicas, reason, now)
            self._event(connection, endpoint, "scale", f"{before.wish} -> {replicas}: {reason}", now)

    @staticmethod
    def _wish(connection: Connection, endpoint: str, replicas: int, reason: str, now: float) -> None:
        row = WISHES.update().where(WISHES.c.endpoint == endpoint)
        connection.execute(row.values(replicas=replicas, reason=reason, at=now))

    def delete_endpoint(self, name: str, now: float) -> None:
        """Forget an endpoint, its revisions and its wish; the reconciler then stops its replicas."""
        with self._write() as connection:
            self._endpoint(connection, name)
            connection.execute(ENDPOINTS.delete().where(ENDPOINTS.c.name == name))
            self._event(connection, name, "deleted", "endpoint deleted", now)

    def add_revision(self, name: str, order: Order, now: float, copy_of: Revision | None = None) -> Revision:
        """A new revision: to be built, or, as `copy_of` one that has been built, ready to be rolled out."""
        with self._write() as connection:
            self._endpoint(connection, name)
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
                    source=order.source,
                    runtime=order.runtime,
                    runtime_version=order.runtime_version,
                    settings=order.settings.as_dict(),
                    created=now,
                    since=now,
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
        changed = REVISIONS.update().where(_is(before.endpoint, before.number))
        connection.execute(changed.values(state=str(state), since=now, **values))
        message = f"revision {before.number}: {before.state} -> {state}"
        error = values.get("error")
        self._event(connection, before.endpoint, str(state), f"{message}: {error}" if error else message, now)

    def swap(self, name: str, number: int, now: float) -> None:
        """Let revision `number` serve, and retire the one that did: in one transaction, so requests see one of them."""
        with self._write() as connection:
            endpoint = self._endpoint(connection, name)
            new = self._revision(connection, name, number)
            self._move_revision(connection, new, RevisionState.SERVING, now, {"failures": 0, "error": "", "detail": ""})
            if endpoint.serving is not None and endpoint.serving != number:
                old = self._revision(connection, name, endpoint.serving)
                self._move_revision(connection, old, RevisionState.RETIRED, now, {})
            connection.execute(ENDPOINTS.update().where(ENDPOINTS.c.name == name).values(serving=number, reason=""))
            if endpoint.wish < 1:
                self._wish(connection, name, 1, f"revision {number} was proved with one replica", now)

    def roll_back(self, name: str, number: int | None, now: float) -> Revision:
        """Ask for an earlier revision again: `number`, or the one that served before.

        Raises:
            NotFoundError: there is no such revision.
            ConflictError: it has never been built, or serves already.
        """
        with self._write() as connection:
            endpoint = self._endpoint(connection, name)
            if number is None:
                retired = and_(REVISIONS.c.endpoint == name, REVISIONS.c.state == str(RevisionState.RETIRED))
                latest = select(REVISIONS.c.number).where(retired).order_by(REVISIONS.c.since.desc()).limit(1)
                number = connection.execute(latest).scalar()
                if number is None:
                    raise ConflictError(f"`{name}` has no earlier revision to go back to", f"`puna ps {name}`")
            revision = self._revision(connection, name, number)
            if revision.number == endpoint.serving or revision.state in (RevisionState.BUILT, RevisionState.STARTING):
                raise ConflictError(f"revision {number} of `{name}` is {revision.state} already")
            if not revision.bundle:
                raise ConflictError(f"revision {number} of `{name}` was never built", f"`puna rebuild {name}`")
            values = {"asked": self._bump(connection, "asked"), "failures": 0, "error": "", "hint": "", "detail": ""}
            self._move_revision(connection, revision, RevisionState.BUILT, now, values)
            return self._revision(connection, name, number)

    def clear_failures(self, name: str, number: int) -> None:
        """Forget a revision's failures: it has run long enough since."""
        with self._write(routes=False) as connection:
            connection.execute(REVISIONS.update().where(_is(name, number)).values(failures=0, error="", detail=""))

    def add_event(self, endpoint: str, kind: str, message: str, now: float) -> None:
        """Record that something happened."""
        with self._write(routes=False) as connection:
            self._event(connection, endpoint, kind, message, now)

    def events(self, endpoint: str | None = None, after: int = 0, limit: int = 500) -> list[Event]:
        """The latest events, oldest first: of one endpoint or of all, those with an id over `after`."""
        query = select(EVENTS).where(EVENTS.c.id > after).order_by(EVENTS.c.id.desc()).limit(limit)
        if endpoint is not None:
            query = query.where(EVENTS.c.endpoint == endpoint)
        with self._read() as connection:
            return [Event(**row._mapping) for row in connection.execute(query)][::-1]


def _is(endpoint: str, number: int) -> Any:
    return and_(REVISIONS.c.endpoint == endpoint, REVISIONS.c.number == number)


def _but_active(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "active"}


def _endpoint(row: Row[Any]) -> Endpoint:
    return Endpoint(
        name=row.name,
        active=row.active,
        settings=Settings.from_row(row.settings),
        serving=row.serving,
        reason=row.reason,
        created=row.created,
        wish=row.replicas or 0,
        wish_reason=row.wish_reason or "",
        wish_at=row.at or 0.0,
    )


def _revision(row: Row[Any]) -> Revision:
    values = dict(row._mapping)
    values |= {
        "state": RevisionState(row.state),
        "settings": Settings.from_row(row.settings),
        "weights_bytes": int(row.weights_bytes),
    }
    return Revision(**{k: v for k, v in values.items() if k in Revision.__dataclass_fields__})
