"""The store's part about who gets an endpoint's requests, as asked for: shares, promotion, rollback."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, and_, func, select

from puna.control.domain.records import WHOLE, Endpoint, Revision
from puna.control.domain.states import PENDING, RevisionState
from puna.control.store.endpoints import is_revision, revision_of, split_text
from puna.control.store.revisions import IN_BUILD, DeployStore
from puna.control.store.schema import REVISIONS, SPLITS
from puna.errors import ConflictError


class TrafficStore(DeployStore):
    """Requests to change an endpoint's traffic; each is judged in the transaction that does it."""

    def divide(self, name: str, shares: Mapping[int, int], now: float) -> int:
        """Give two revisions, of which one serves, their shares in percent; the number of the other one.

        Raises:
            NotFoundError: there is no such revision.
            ConflictError: the other one was never built, or neither serves.
        """
        with self._write() as connection:
            endpoint = self._endpoint(connection, name)
            others = [number for number in shares if number != endpoint.serving]
            if len(others) != 1:
                serves = f"revision {endpoint.serving} serves" if endpoint.serving is not None else "nothing serves yet"
                raise ConflictError(f"`{name}`: {serves}, and it must be one of the two", f"`puna ps {name}`")
            self._share(connection, endpoint, others[0], shares[others[0]], now)
            return others[0]

    def promote(self, name: str, number: int | None, now: float) -> int:
        """Give a revision all requests, once it has the replicas for them: the second one when None; which.

        Raises:
            NotFoundError: there is no such revision.
            ConflictError: there is no second one, or it was never built.
        """
        with self._write() as connection:
            endpoint = self._endpoint(connection, name)
            if number is None:
                number = self._second(connection, endpoint)
            if number == endpoint.serving:
                self._end_split(connection, endpoint, now)
            else:
                self._share(connection, endpoint, number, WHOLE, now)
            return number

    def _share(self, connection: Connection, endpoint: Endpoint, number: int, percent: int, now: float) -> None:
        """Ask that a revision gets so much of the requests: at once if it has a share, else when it is ready.

        With all of them, one that has a share takes the rest once it has the replicas for it.
        """
        name, revision = endpoint.name, self._revision(connection, endpoint.name, number)
        if percent < WHOLE and endpoint.serving is None:
            raise ConflictError(f"nothing of `{name}` serves that revision {number} could share with")
        mine, wanted = is_revision(name, number), f"revision {number} is to have {percent} %"
        if endpoint.split is not None and number == endpoint.split.revision and percent < WHOLE:
            connection.execute(REVISIONS.update().where(mine).values(percent=percent))
            connection.execute(SPLITS.update().where(SPLITS.c.endpoint == name).values(percent=percent))
            wanted = split_text(endpoint.serving, number, percent)
        elif number in endpoint.shares or revision.state in PENDING:
            values = {"percent": percent, "asked": self._bump(connection, "asked"), "error": ""}
            # Since now: a promotion that finds no room gives up as a rollout does.
            later = {"since": now} if number in endpoint.shares else {}
            connection.execute(REVISIONS.update().where(mine).values(**values, **later))
        else:
            self._ask_again(connection, revision, percent, now)
        self._event(connection, name, "traffic", wanted, now)

    def _end_split(self, connection: Connection, endpoint: Endpoint, now: float) -> None:
        """All requests to the serving revision: take a split away, and give up what is on its way to a share."""
        if endpoint.serving is not None and endpoint.split is not None:
            self._route_all_to(connection, endpoint, endpoint.serving, now)
        for revision in self._coming(connection, endpoint.name):
            if revision.state not in IN_BUILD:
                self._move_revision(connection, revision, RevisionState.SUPERSEDED, now, {})
        for build in self._unended(connection):
            revision_of_it = self._revision_of(connection, build)
            if revision_of_it is not None and build.subject == endpoint.name and revision_of_it.percent < WHOLE:
                self._cancel(connection, build, now)

    def roll_back(self, name: str, number: int | None, now: float) -> Revision:
        """Take a split away, or ask for an earlier revision again: `number`, or the one that served before.

        Raises:
            NotFoundError: there is no such revision.
            ConflictError: it has never been built, or has a share already.
        """
        with self._write() as connection:
            endpoint = self._endpoint(connection, name)
            has_second = endpoint.split is not None or self._coming(connection, name)
            if endpoint.serving is not None and number in (None, endpoint.serving) and has_second:
                self._end_split(connection, endpoint, now)
                return self._revision(connection, name, endpoint.serving)
            if endpoint.split is not None and number == endpoint.split.revision:
                what = f"revision {number} of `{name}` has {endpoint.split.percent} %"
                raise ConflictError(what, f"`puna promote {name} {number}`")
            if number is None:
                number = self._served_before(connection, name)
            revision = self._revision(connection, name, number)
            if number in endpoint.shares or revision.state in (RevisionState.BUILT, RevisionState.STARTING):
                raise ConflictError(f"revision {number} of `{name}` is {revision.state} already")
            self._ask_again(connection, revision, WHOLE, now)
            return self._revision(connection, name, number)

    @staticmethod
    def _served_before(connection: Connection, name: str) -> int:
        retired = and_(REVISIONS.c.endpoint == name, REVISIONS.c.state == str(RevisionState.RETIRED))
        alone = func.coalesce(REVISIONS.c.percent, WHOLE) == WHOLE
        latest = select(REVISIONS.c.number).where(retired, alone).order_by(REVISIONS.c.asked.desc()).limit(1)
        number = connection.execute(latest).scalar()
        if number is None:
            raise ConflictError(f"`{name}` has no earlier revision to go back to", f"`puna ps {name}`")
        return int(number)

    @staticmethod
    def _coming(connection: Connection, name: str) -> list[Revision]:
        """Revisions on their way to a share, in the order they were asked for."""
        states = REVISIONS.c.state.in_([str(state) for state in PENDING])
        mine = and_(REVISIONS.c.endpoint == name, states, REVISIONS.c.percent < WHOLE)
        rows = connection.execute(select(REVISIONS).where(mine).order_by(REVISIONS.c.asked)).all()
        return [revision_of(row) for row in rows]

    def _second(self, connection: Connection, endpoint: Endpoint) -> int:
        """The revision that has a share beside the one that serves, or is to have one."""
        if endpoint.split is not None:
            return endpoint.split.revision
        coming = self._coming(connection, endpoint.name)
        if not coming:
            name = endpoint.name
            raise ConflictError(f"no second revision of `{name}` has a share", f"`puna promote {name} REVISION`")
        return coming[-1].number

    def _ask_again(self, connection: Connection, revision: Revision, percent: int, now: float) -> None:
        """Roll a revision out that has been built before."""
        name, number = revision.endpoint, revision.number
        if not revision.bundle:
            raise ConflictError(f"revision {number} of `{name}` was never built", f"`puna rebuild {name}`")
        values = {"asked": self._bump(connection, "asked"), "failures": 0, "error": "", "hint": "", "detail": ""}
        self._move_revision(connection, revision, RevisionState.BUILT, now, values | {"percent": percent})
