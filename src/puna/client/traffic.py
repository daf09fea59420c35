"""Calls about who gets an endpoint's requests: shares, promotion, what differs between revisions."""

from __future__ import annotations

import time
from collections.abc import Mapping

from puna.client.transport import Json, Transport, part, still
from puna.errors import DeployError

LOST = frozenset({"failed", "superseded", "cancelled", "retired"})
"""States of revisions that will not serve by themselves."""


class TrafficCalls(Transport):
    """Divides the requests of an endpoint between two revisions."""

    def set_traffic(self, name: str, shares: Mapping[int, int]) -> Json:
        """Give revisions their percent of the requests: `{3: 90, 4: 10}`; one of two is the one that serves.

        The reply says which `revision` is to have which `percent`, and who has what now: `traffic`.
        """
        body = {"shares": {str(number): share for number, share in shares.items()}}
        return self._call("PUT", f"{_path(name)}/traffic", json=body)

    def promote(self, name: str, revision: int | None = None) -> Json:
        """Give a revision all requests; the second one of a split when None. The reply is as `set_traffic`'s."""
        return self._call("POST", f"{_path(name)}/promote", json={"revision": revision})

    def diff(self, name: str, before: int, after: int) -> Json:
        """What changed from one revision to another: settings, packages, files."""
        return self._call("GET", f"{_path(name)}/revisions/{int(before)}/diff/{int(after)}")

    def wait_for_traffic(self, name: str, revision: int, percent: int = 100, timeout_s: float = 1800) -> Json:
        """The endpoint once `revision` has so much of the requests.

        Raises:
            DeployError: it will not have it, and why; what served before still does.
            UnavailableError: it does not have it within `timeout_s`.
        """
        end = time.monotonic() + timeout_s
        while True:
            endpoint = self._call("GET", _path(name))
            has = {one["revision"]: one["percent"] for one in endpoint["traffic"]}.get(revision, 0)
            if has == percent:
                return endpoint
            mine: Json = next((r for r in endpoint["revisions"] if r["number"] == revision), {"state": "cancelled"})
            is_aimed = mine.get("percent") == percent or (endpoint["revision"] == revision and has)
            if mine["state"] in LOST or not is_aimed:
                message = mine.get("error") or f"revision {revision} of `{name}` is {mine['state']} with {has} %"
                raise DeployError(message, mine.get("hint") or f"`puna events {name}`", mine.get("detail", ""))
            why = endpoint["reason"] or f"it is {mine['state']}"
            message = f"revision {revision} of `{name}` has {has} % after {timeout_s:g} s: {why}"
            still(end, message, f"`puna events {name}`")


def _path(name: str) -> str:
    return f"/endpoints/{part(name)}"
