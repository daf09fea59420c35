"""Who gets an endpoint's requests, as asked for: shares of two revisions, all to one, or back to the one before."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from puna.deploy.control import Control
from puna.deploy.records import Endpoint
from puna.deploy.splits import WHOLE
from puna.deploy.states import PENDING, RevisionState
from puna.errors import ConflictError, NotFoundError, UsageError


def divide(control: Control, name: str, shares: Mapping[int, int]) -> int:
    """Give two revisions their shares of the requests, in percent, or one all of them; the one that is to change.

    One of two is the revision that serves; what is not said is its. The other is rolled out when it has no share yet.

    Raises:
        UsageError: these are no shares.
        NotFoundError: there is no such revision.
        ConflictError: the other one was never built, or nothing serves yet.
    """
    endpoint, asked = control.store.endpoint(name), {number: share for number, share in shares.items() if share}
    usage = f'e.g. `puna traffic {name} 3=90 4=10`, {{"shares": {{"3": 90, "4": 10}}}}'
    if not asked or any(share < 0 for share in asked.values()):
        raise UsageError("shares are percent of the requests, by revision", usage)
    for number in asked:
        control.store.revision(name, number)
    if len(asked) == 1 and WHOLE not in asked.values() and endpoint.serving not in (None, *asked):
        asked[endpoint.serving] = WHOLE - sum(asked.values())  # type: ignore[index]
    if len(asked) > 2 or sum(asked.values()) != WHOLE:
        raise UsageError(f"{_said(asked)}: the shares of one or two revisions must make up 100 %", usage)
    if len(asked) == 1:
        return promote(control, name, *asked)
    others = [number for number in asked if number != endpoint.serving]
    if len(others) != 1:
        serves = f"revision {endpoint.serving} serves" if endpoint.serving is not None else "nothing serves yet"
        raise ConflictError(f"`{name}`: {serves}, and it must be one of the two", f"`puna ps {name}`")
    return control.store.share(name, others[0], asked[others[0]], control.clock()).number


def promote(control: Control, name: str, number: int | None = None) -> int:
    """Give a revision all requests, once it has the replicas for them: the second one of a split when None; which.

    Raises:
        NotFoundError: there is no such revision.
        ConflictError: there is no second one, or it was never built.
    """
    store, now = control.store, control.clock()
    endpoint = store.endpoint(name)
    number = _second(control, endpoint) if number is None else store.revision(name, number).number
    if number == endpoint.serving:
        _unite(control, endpoint)
    else:
        store.share(name, number, WHOLE, now)
    return number


def roll_back(control: Control, name: str, number: int | None = None) -> int:
    """Take a split away, or roll an earlier revision out again, the one before when None; which is to serve.

    Raises:
        NotFoundError: there is no such revision.
        ConflictError: there is none before, it was never built, or has a share already.
    """
    store = control.store
    endpoint = store.endpoint(name)
    coming = [r for r in store.revisions(name) if r.state in PENDING and r.percent < WHOLE]
    if endpoint.serving is not None and number in (None, endpoint.serving) and (endpoint.split or coming):
        _unite(control, endpoint)
        return endpoint.serving
    if endpoint.split is not None and number == endpoint.split.revision:
        raise ConflictError(
            f"revision {number} of `{name}` has {endpoint.split.percent} %", f"`puna promote {name} {number}`"
        )
    return store.roll_back(name, number, control.clock()).number


def _second(control: Control, endpoint: Endpoint) -> int:
    """The revision that has a share beside the one that serves, or is to have one."""
    if endpoint.split is not None:
        return endpoint.split.revision
    coming = [r for r in control.store.revisions(endpoint.name) if r.state in PENDING and r.percent < WHOLE]
    if not coming:
        name = endpoint.name
        raise ConflictError(f"no second revision of `{name}` has a share", f"`puna promote {name} REVISION`")
    return max(coming, key=lambda revision: revision.asked).number


def _unite(control: Control, endpoint: Endpoint) -> None:
    """All requests to the revision that serves; what is on its way to a share is given up."""
    store, name = control.store, endpoint.name
    store.unite(name, control.clock())
    for revision in store.revisions(name):
        is_coming = revision.state in (RevisionState.QUEUED, RevisionState.BUILDING) and revision.percent < WHOLE
        if is_coming and revision.build_id:
            with contextlib.suppress(ConflictError, NotFoundError):  # it ended in between
                store.cancel_build(revision.build_id, control.clock())


def _said(shares: Mapping[int, int]) -> str:
    return ", ".join(f"{number}={share}" for number, share in shares.items())
