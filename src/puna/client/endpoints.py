"""Calls about endpoints: their sources, deploys, changes, logs and traffic, and waiting for a rollout."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from puna.client.transport import Json, Transport, part, poll
from puna.errors import DeployError

REVISION_LOST = frozenset({"failed", "superseded", "cancelled", "retired"})
"""States of revisions that will not serve by themselves."""


class EndpointCalls(Transport):
    """Sources, endpoints made of them, their webhooks, logs and figures, and their traffic."""

    # -- sources

    def put_source(self, data: bytes) -> str:
        """Upload a packed project folder; returns its digest."""
        return str(self._call("PUT", "/sources", content=data)["digest"])

    def source_from_git(self, repository: Mapping[str, str]) -> Json:
        """Fetch a repository's newest commit as a source: its digest, commit and what its project file says."""
        return self._call("POST", "/sources/from-git", json=dict(repository))

    def source_from_model(self, model: str | Mapping[str, Any], engine: str = "auto") -> Json:
        """Make the app of a published model, or of one on the hub, as a source: its digest, name and settings."""
        return self._call("POST", "/sources/from-model", json={"model": model, "engine": engine})

    def source(self, digest: str) -> Json:
        """An uploaded source: its files, the inputs it declares, its runtime file, and what is wrong with it."""
        return self._call("GET", f"/sources/{part(digest)}")

    # -- endpoints

    def deploy_source(
        self,
        name: str,
        source: str,
        runtime: str | None,
        settings: Json,
        runtime_version: int | None = None,
        traffic: int = 100,
    ) -> Json:
        """Deploy an uploaded source: `{"endpoint", "revision", "build_id", "unchanged"}`.

        `traffic` is the percent of the requests that it gets beside the revision that serves; so for each deploy.
        """
        body = {"name": name, "source": source, "runtime": runtime, "runtime_version": runtime_version}
        return self._call("POST", "/endpoints", json=body | {"settings": settings, "traffic": traffic})

    def deploy(
        self,
        folder: Path,
        name: str,
        *,
        runtime: str | None = None,
        settings: Mapping[str, Any] | None = None,
        runtime_version: int | None = None,
        traffic: int = 100,
    ) -> Json:
        """Pack a project folder, upload it and deploy it.

        Raises:
            ProjectError: the folder is no project.
        """
        from puna.packaging import source  # only those who deploy need to pack

        source.check(folder)
        digest = self.put_source(source.pack(folder))
        return self.deploy_source(name, digest, runtime, dict(settings or {}), runtime_version, traffic)

    def deploy_git(
        self,
        repository: Mapping[str, str],
        name: str = "",
        runtime: str | None = None,
        settings: Mapping[str, Any] | None = None,
        runtime_version: int | None = None,
        traffic: int = 100,
    ) -> Json:
        """Deploy the newest commit of a repository: `url`, and `branch`, `folder`, `credential` where needed.

        `name` is the project's own when empty; the reply has it, with the `commit`.
        """
        body = {"name": name, "git": dict(repository), "runtime": runtime, "runtime_version": runtime_version}
        return self._call("POST", "/endpoints", json=body | {"settings": dict(settings or {}), "traffic": traffic})

    def deploy_model(
        self,
        model: str | Mapping[str, Any],
        name: str = "",
        runtime: str | None = None,
        settings: Mapping[str, Any] | None = None,
        runtime_version: int | None = None,
        traffic: int = 100,
    ) -> Json:
        """Deploy a published model, `owner/name`, `owner/name:3` or `owner/name@alias`, or one on the hub.

        As a mapping it has `name`, `version`, `alias`, `engine`, and `credential`: the secret with its HF_TOKEN.
        """
        body = {"name": name, "model": model, "runtime": runtime, "runtime_version": runtime_version}
        return self._call("POST", "/endpoints", json=body | {"settings": dict(settings or {}), "traffic": traffic})

    def webhook(self, name: str) -> Json:
        """The webhook's address and secret, and whether pushes are deployed."""
        return self._call("GET", f"/endpoints/{part(name)}/webhook")

    def deliver(self, name: str, body: bytes, headers: Mapping[str, str]) -> Json:
        """Deliver a push event as a repository's host does; `headers` sign the body with the endpoint's secret."""
        return self._call("POST", f"/hooks/{part(name)}", content=body, headers=dict(headers))

    def deliveries(self, name: str) -> list[Json]:
        """Deliveries to an endpoint's webhook, newest first, and what became of each."""
        return self._items(f"/endpoints/{part(name)}/deliveries")

    def replay_delivery(self, name: str, number: int) -> Json:
        """Process a delivery once more."""
        return self._call("POST", f"/endpoints/{part(name)}/deliveries/{int(number)}/replay")

    def wait_for_endpoint(self, name: str, revision: int, timeout_s: float = 1800) -> Json:
        """The endpoint once `revision` serves, or has its share.

        Raises:
            DeployError: the revision failed, or another took its place; hint and detail are the revision's own.
            UnavailableError: it does not serve within `timeout_s`.
        """
        end = time.monotonic() + timeout_s
        while True:
            endpoint = self.endpoint(name)
            if revision in [one["revision"] for one in endpoint["traffic"]]:
                return endpoint
            mine: Json = next((r for r in endpoint["revisions"] if r["number"] == revision), {"state": "cancelled"})
            if mine["state"] in REVISION_LOST:
                message = mine.get("error") or f"revision {revision} of `{name}` is {mine['state']}"
                raise DeployError(message, mine.get("hint", ""), mine.get("detail", ""))
            why = endpoint["reason"] or f"revision {revision} is {mine['state']}"
            poll(end, f"`{name}` does not serve after {timeout_s:g} s: {why}", f"`puna logs {name}`")

    def endpoints(self) -> list[Json]:
        """Every endpoint."""
        return self._items("/endpoints")

    def endpoint(self, name: str) -> Json:
        """One endpoint."""
        return self._call("GET", f"/endpoints/{part(name)}")

    def patch(self, name: str, **settings: Any) -> Json:
        """Change settings of an endpoint; `runtime` and `runtime_version` build it on another as a new revision."""
        return self._call("PATCH", f"/endpoints/{part(name)}", json=settings)

    def activate(self, name: str) -> Json:
        """Serve again."""
        return self._call("POST", f"/endpoints/{part(name)}/activate")

    def deactivate(self, name: str) -> Json:
        """Stop every replica and refuse requests."""
        return self._call("POST", f"/endpoints/{part(name)}/deactivate")

    def rebuild(self, name: str) -> Json:
        """Build again, as a new revision: a repository's newest commit, or the newest source."""
        return self._call("POST", f"/endpoints/{part(name)}/rebuild")

    def rollback(self, name: str, revision: int | None = None) -> Json:
        """Serve an earlier revision again; the one before when None."""
        return self._call("POST", f"/endpoints/{part(name)}/rollback", json={"revision": revision})

    def delete(self, name: str) -> Json:
        """Delete an endpoint and stop its replicas."""
        return self._call("DELETE", f"/endpoints/{part(name)}")

    def logs(
        self, name: str, follow: bool = False, lines: int = 200, replica: str | None = None, **wanted: Any
    ) -> Iterator[str]:
        """Lines that an app printed; with `follow` without end.

        `wanted` may have `search`, a part of the line, `request`, a call's id, `since`, and `times` to see when.
        """
        query = {"follow": int(follow), "lines": lines} | ({"replica": replica} if replica else {})
        return self._lines(f"/endpoints/{part(name)}/logs", query | wanted)

    def log_lines(self, name: str, limit: int = 200, after: str = "", **wanted: Any) -> Json:
        """The same as items with `at`, `replica`, `stream`, `request` and `text`, the newest first.

        `after` is a page's `next`; `wanted` may have `replica`, `search`, `request`, `since` and `until`.
        """
        query = {"limit": limit, "after": after} | wanted
        return self._call("GET", f"/endpoints/{part(name)}/logs/lines", params=query)

    def events(self, name: str, after: int = 0) -> list[Json]:
        """Events of an endpoint since the event of id `after`, oldest first."""
        return self._items(f"/endpoints/{part(name)}/events", {"after": after})

    def metrics(self, name: str) -> Json:
        """The last half hour of an endpoint in figures, a point every five seconds."""
        return self._call("GET", f"/endpoints/{part(name)}/metrics")

    def watch(self) -> Iterator[Json]:
        """Endpoints and builds that are new or changed, as they change, without end; all of them at first."""
        lines = self._lines("/events/stream", {})
        return (json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:"))

    # -- traffic

    def set_traffic(self, name: str, shares: Mapping[int, int]) -> Json:
        """Give revisions their percent of the requests: `{3: 90, 4: 10}`; one of two is the one that serves.

        The reply says which `revision` is to have which `percent`, and who has what now: `traffic`.
        """
        body = {"shares": {str(number): share for number, share in shares.items()}}
        return self._call("PUT", f"/endpoints/{part(name)}/traffic", json=body)

    def promote(self, name: str, revision: int | None = None) -> Json:
        """Give a revision all requests; the second one of a split when None. The reply is as `set_traffic`'s."""
        return self._call("POST", f"/endpoints/{part(name)}/promote", json={"revision": revision})

    def diff(self, name: str, before: int, after: int) -> Json:
        """Differences between two revisions: settings, packages, files."""
        return self._call("GET", f"/endpoints/{part(name)}/revisions/{int(before)}/diff/{int(after)}")

    def wait_for_traffic(self, name: str, revision: int, percent: int = 100, timeout_s: float = 1800) -> Json:
        """The endpoint once `revision` has so much of the requests.

        Raises:
            DeployError: it will not have it, and why; what served before still does.
            UnavailableError: it does not have it within `timeout_s`.
        """
        end = time.monotonic() + timeout_s
        while True:
            endpoint = self.endpoint(name)
            has = {one["revision"]: one["percent"] for one in endpoint["traffic"]}.get(revision, 0)
            if has == percent:
                return endpoint
            mine: Json = next((r for r in endpoint["revisions"] if r["number"] == revision), {"state": "cancelled"})
            is_aimed = mine.get("percent") == percent or (endpoint["revision"] == revision and has)
            if mine["state"] in REVISION_LOST or not is_aimed:
                message = mine.get("error") or f"revision {revision} of `{name}` is {mine['state']} with {has} %"
                raise DeployError(message, mine.get("hint") or f"`puna events {name}`", mine.get("detail", ""))
            why = endpoint["reason"] or f"it is {mine['state']}"
            message = f"revision {revision} of `{name}` has {has} % after {timeout_s:g} s: {why}"
            poll(end, message, f"`puna events {name}`")
