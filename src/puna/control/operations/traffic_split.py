"""Who gets an endpoint's requests, as asked for: shares of two revisions, all to one, or back to the one before."""

from __future__ import annotations

from collections.abc import Mapping

from puna.control.domain.splits import WHOLE
from puna.control.operations.context import Control
from puna.errors import UsageError


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
    return control.store.divide(name, asked, control.clock())


def promote(control: Control, name: str, number: int | None = None) -> int:
    """Give a revision all requests, once it has the replicas for them: the second one of a split when None; which.

    Raises:
        NotFoundError: there is no such revision.
        ConflictError: there is no second one, or it was never built.
    """
    promoted = control.store.promote(name, number, control.clock())
    control.wake()  # builds may have been cancelled
    return promoted


def roll_back(control: Control, name: str, number: int | None = None) -> int:
    """Take a split away, or roll an earlier revision out again, the one before when None; which is to serve.

    Raises:
        NotFoundError: there is no such revision.
        ConflictError: there is none before, it was never built, or has a share already.
    """
    revision = control.store.roll_back(name, number, control.clock())
    control.wake()
    return revision.number


def _said(shares: Mapping[int, int]) -> str:
    return ", ".join(f"{number}={share}" for number, share in shares.items())
