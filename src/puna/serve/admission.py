"""The way in and out that all addresses of inference share: key, limits and revision before, counts after.

Keys are checked against the route table in memory; a revoked one is refused with the next table.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from puna.control.domain import api_keys
from puna.control.wire import KeyRoute
from puna.errors import NotYetError
from puna.serve.counts import RequestCounts
from puna.serve.dispatch.call import Call
from puna.serve.dispatch.dispatcher import Dispatcher
from puna.serve.dispatch.endpoint_pool import EndpointPool
from puna.serve.limits import KeyLimiter

REMEMBERED = 4096  # verified tokens; each costs one SHA-256 to verify again, so the bound is only about memory


class Keyring:
    """The keys of one table and the tokens that were found to fit them."""

    def __init__(self) -> None:
        self._keys: Mapping[str, KeyRoute] | None = None
        self._verified: dict[str, KeyRoute] = {}

    def use(self, table: Mapping[str, KeyRoute]) -> None:
        """Take a new table's keys; what was verified against other keys is forgotten."""
        if table != self._keys:
            self._keys, self._verified = table, {}

    def check(self, authorization: str, now: float, endpoint: str | None = None) -> KeyRoute:
        """The key of an `Authorization` header, if it may call `endpoint`; empty: all of them, None: any at all.

        Raises:
            UnauthorizedError: no key, an unknown, revoked or expired one.
            ForbiddenError: a good key without the right to this.
            NotYetError: there has been no table yet, so nobody knows which keys are good.
        """
        key = self._verified.get(authorization)
        if key is None:
            key = self._verify(authorization, now)
        else:
            api_keys.check_expiry(key, now)
        api_keys.require(key, "infer", endpoint)
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


class Admission:
    """Lets calls in, and counts them out."""

    def __init__(self, pool: EndpointPool, limits: KeyLimiter, counts: RequestCounts) -> None:
        self.access = Keyring()
        self.pool, self.limits, self.counts = pool, limits, counts

    def enter(self, call: Call, key: KeyRoute) -> None:
        """Let a call in, whose key may use its endpoint.

        Raises:
            RateLimitError: the key has asked for more than it may.
        """
        call.key = key.id
        if key.limits is not None:
            call.use = self.limits.use(key)
            call.use.enter(time.monotonic())

    def dispatcher(self, call: Call, revision: str, adapter: str = "") -> Dispatcher:
        """The dispatcher of the call's endpoint, or of one of the two revisions that share it.

        `revision` is what the client asks for, if anything; the second is left out where it cannot load `adapter`.

        Raises:
            NotFoundError: no endpoint of that name.
        """
        dispatcher = self.pool.find(call.endpoint)
        if dispatcher.split is None or (adapter and adapter not in dispatcher.split.dispatcher.route.adapters):
            return dispatcher
        return dispatcher.split.pick(dispatcher, call, revision)

    @staticmethod
    def leave(call: Call, tokens: int = 0) -> None:
        """Give back what a call has of its key's limits; it cost so many tokens."""
        if call.use is not None:
            call.use.leave(tokens, time.monotonic())

    def count(self, call: Call, status: int, began: float) -> None:
        """Count an answered call that came at `began`, on `time.perf_counter`'s clock; 499: its client left."""
        # A name that no endpoint has must not become a label: anyone could fill the memory with labels.
        known = call.endpoint in self.pool.by_name
        self.counts.answered(call.endpoint if known else "", status, call, began)
