"""Who may call what: keys checked against the route table in memory; a revoked one is refused with the next table."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from puna.deploy.keys import OPENS, digest
from puna.errors import ForbiddenError, NotYetError, UnauthorizedError
from puna.serve.routes_table import KeyRoute

REMEMBERED = 4096  # verified tokens; each costs one SHA-256 to verify again, so the bound is only about memory


class Access:
    """The keys of one table and the tokens that were found to fit them."""

    def __init__(self) -> None:
        self._keys: Mapping[str, KeyRoute] | None = None
        self._verified: dict[str, KeyRoute] = {}

    def use(self, keys: Mapping[str, KeyRoute]) -> None:
        """Take a new table's keys; what was verified against other keys is forgotten."""
        if keys != self._keys:
            self._keys, self._verified = keys, {}

    def check(self, authorization: str, now: float, *, endpoint: str | None, scope: str = "infer") -> KeyRoute:
        """The key of an `Authorization` header that may use `endpoint` (None: something about all of them).

        Raises:
            UnauthorizedError: no key, an unknown, revoked or expired one.
            ForbiddenError: a good key without the right to this.
            NotYetError: there has been no table yet, so nobody knows which keys are good.
        """
        key = self.holder(authorization, now, scope=scope)
        if key.endpoints is not None and endpoint not in key.endpoints:
            what = endpoint or "what concerns all endpoints"
            raise ForbiddenError(f"the key {key.id} is not for {what}", "puna key create")
        return key

    def holder(self, authorization: str, now: float, *, scope: str = "infer") -> KeyRoute:
        """The key of an `Authorization` header, for whichever endpoints it is.

        Raises:
            UnauthorizedError: no key, an unknown, revoked or expired one.
            ForbiddenError: a good key without the scope.
            NotYetError: there has been no table yet.
        """
        key = self._verified.get(authorization) or self._verify(authorization)
        if key.expires is not None and key.expires <= now:
            raise UnauthorizedError(f"the key {key.id} has expired", "make another: puna key create")
        if not any(scope in OPENS.get(mine, ()) for mine in key.scope):
            raise ForbiddenError(f"the key {key.id} has no scope `{scope}`", f"puna key create --scope {scope}")
        return key

    def _verify(self, authorization: str) -> KeyRoute:
        kind, _, token = authorization.partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            raise UnauthorizedError("send a key: Authorization: Bearer puna_...", "make one: puna key create")
        if self._keys is None:
            raise NotYetError("the gateway has not heard from the control plane yet", "retry after 1 s")
        token = token.strip()
        key_id = token.split("_")[1] if token.count("_") >= 2 else ""
        key = self._keys.get(key_id)
        secret = token.split("_", 2)[2] if key else ""
        # An unknown id takes the same path, so that the time of the refusal does not tell which ids exist.
        found = digest(key.salt if key else "", secret)
        if key is None or not hmac.compare_digest(found, key.sha256):
            raise UnauthorizedError("this key is unknown or revoked", "make another: puna key create")
        if len(self._verified) >= REMEMBERED:
            self._verified.clear()
        self._verified[authorization] = key
        return key
