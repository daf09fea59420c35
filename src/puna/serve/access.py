"""Who may call what: keys checked against the route table in memory; a revoked one is refused with the next table."""

from __future__ import annotations

from collections.abc import Mapping

from puna.control.domain import api_keys
from puna.errors import NotYetError
from puna.serve.routes_table import KeyRoute

REMEMBERED = 4096  # verified tokens; each costs one SHA-256 to verify again, so the bound is only about memory


class Access:
    """The keys of one table and the tokens that were found to fit them."""

    def __init__(self) -> None:
        self._keys: Mapping[str, KeyRoute] | None = None
        self._verified: dict[str, KeyRoute] = {}

    def use(self, table: Mapping[str, KeyRoute]) -> None:
        """Take a new table's keys; what was verified against other keys is forgotten."""
        if table != self._keys:
            self._keys, self._verified = table, {}

    def check(self, authorization: str, now: float, *, endpoint: str | None, scope: str = "infer") -> KeyRoute:
        """The key of an `Authorization` header that may use `endpoint` (None: something about all of them).

        Raises:
            UnauthorizedError: no key, an unknown, revoked or expired one.
            ForbiddenError: a good key without the right to this.
            NotYetError: there has been no table yet, so nobody knows which keys are good.
        """
        key = self._current(authorization, now)
        api_keys.require(key, scope, endpoint or "")
        return key

    def holder(self, authorization: str, now: float, *, scope: str = "infer") -> KeyRoute:
        """The key of an `Authorization` header, for whichever endpoints it is.

        Raises:
            UnauthorizedError: no key, an unknown, revoked or expired one.
            ForbiddenError: a good key without the scope.
            NotYetError: there has been no table yet.
        """
        key = self._current(authorization, now)
        api_keys.require(key, scope)
        return key

    def _current(self, authorization: str, now: float) -> KeyRoute:
        key = self._verified.get(authorization)
        if key is None:
            return self._verify(authorization, now)
        api_keys.check_expiry(key, now)
        return key

    def _verify(self, authorization: str, now: float) -> KeyRoute:
        token = api_keys.bearer(authorization)
        if token and self._keys is None:
            raise NotYetError("the gateway has not heard from the control plane yet", "retry after 1 s")
        key = api_keys.identify(token, self._keys or {}, now)
        if len(self._verified) >= REMEMBERED:
            self._verified.clear()
        self._verified[authorization] = key
        return key
