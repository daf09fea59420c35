"""The client of a running Puna: the JSON API one to one, and a few calls that wait; no server code is imported."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import httpx

from puna.connection import Connection, Json, read_json, unreachable
from puna.errors import BuildError, DeployError, UnavailableError

POLL_S = 0.25
BUILD_ENDED = frozenset({"succeeded", "failed", "cancelled"})
REVISION_LOST = frozenset({"failed", "superseded", "cancelled", "retired"})


class Client(Connection):
    """Talks to the control plane: over its Unix socket on this machine, or by HTTP with a key.

    Use it as a context manager, or `close` it.
    """

    # ---- sources, runtimes, builds ---------------------------------------------------------------------------

    def health(self) -> Json:
        """Version and address of the control plane."""
        return self._call("GET", "/health")

    def put_source(self, data: bytes) -> str:
        """Upload a packed project folder; returns its digest."""
        return str(self._call("PUT", "/sources", content=data)["digest"])

    def source_from_git(self, repository: Mapping[str, str]) -> Json:
        """Fetch a repository's newest commit as a source: its digest, commit and what its project file says."""
        return self._call("POST", "/sources/from-git", json=dict(repository))

    def source_from_model(self, model: str | Mapping[str, Any], engine: str = "auto") -> Json:
        """Make the app of a published model, or of one on the hub, as a source: its digest, name and settings."""
        return self._call("POST", "/sources/from-model", json={"model": model, "engine": engine})

    def upload_runtime(self, name: str, yaml: str) -> Json:
        """Upload a runtime file's text; its environment is built in the background (`build_id`)."""
        return self._call("POST", "/runtimes", json={"name": name, "yaml": yaml})

    def runtimes(self) -> list[Json]:
        """Every version of every runtime."""
        return self._items("/runtimes")

    def runtime(self, name: str, version: int | None = None) -> Json:
        """One version of a runtime, the newest when None: its file, packages as installed, size, and who uses it."""
        query = "" if version is None else f"?version={int(version)}"
        return self._call("GET", f"/runtimes/{_part(name)}{query}")

    def runtime_diff(self, name: str, before: int, after: int) -> Json:
        """What differs between two versions of a runtime: lines of the file, and packages."""
        return self._call("GET", f"/runtimes/{_part(name)}/versions/{int(before)}/diff/{int(after)}")

    def delete_runtime(self, name: str, version: int | None = None) -> Json:
        """Delete a version of a runtime that no endpoint needs; all versions when None."""
        which = "" if version is None else f"/versions/{int(version)}"
        return self._call("DELETE", f"/runtimes/{_part(name)}{which}")

    def builds(self) -> list[Json]:
        """Every build, oldest first."""
        return self._items("/builds")[::-1]

    def build(self, build_id: str) -> Json:
        """One build."""
        return self._call("GET", f"/builds/{_part(build_id)}")

    def build_log(self, build_id: str, follow: bool = True) -> Iterator[str]:
        """A build's output, line by line; with `follow` until it ends."""
        return self._lines(f"/builds/{_part(build_id)}/log", {"follow": int(follow)})

    def cancel_build(self, build_id: str) -> Json:
        """Cancel a build."""
        return self._call("POST", f"/builds/{_part(build_id)}/cancel")

    def wait_for_build(self, build_id: str, timeout_s: float = 3600) -> Json:
        """The build once it has succeeded.

        Raises:
            BuildError: it failed or was cancelled; hint and detail are the build's own.
            UnavailableError: it has not ended within `timeout_s`.
        """
        end = time.monotonic() + timeout_s
        while True:
            build = self.build(build_id)
            if build["status"] == "succeeded":
                return build
            if build["status"] in BUILD_ENDED:
                message = build["error"] or f"build {build_id} was {build['status']}"
                raise BuildError(message, build["hint"], build["detail"])
            _still(end, f"build {build_id} has not ended after {timeout_s:g} s", f"`puna logs --build {build_id}`")

    # ---- endpoints -------------------------------------------------------------------------------------------

    def deploy_source(
        self, name: str, source: str, runtime: str | None, settings: Json, runtime_version: int | None = None
    ) -> Json:
        """Deploy an uploaded source: `{"endpoint", "revision", "build_id", "unchanged"}`."""
        body = {"name": name, "source": source, "runtime": runtime, "runtime_version": runtime_version}
        return self._call("POST", "/endpoints", json=body | {"settings": settings})

    def deploy(
        self,
        folder: Path,
        name: str,
        *,
        runtime: str | None = None,
        settings: Mapping[str, Any] | None = None,
        runtime_version: int | None = None,
    ) -> Json:
        """Pack a project folder, upload it and deploy it.

        Raises:
            ProjectError: the folder is no project.
        """
        from puna.build import source  # only those who deploy need to pack

        source.check(folder)
        digest = self.put_source(source.pack(folder))
        return self.deploy_source(name, digest, runtime, dict(settings or {}), runtime_version)

    def deploy_git(
        self,
        repository: Mapping[str, str],
        name: str = "",
        runtime: str | None = None,
        settings: Mapping[str, Any] | None = None,
        runtime_version: int | None = None,
    ) -> Json:
        """Deploy the newest commit of a repository: `url`, and `branch`, `folder`, `credential` where needed.

        `name` is the project's own when empty; the reply has it, with the `commit`.
        """
        body = {"name": name, "git": dict(repository), "runtime": runtime, "runtime_version": runtime_version}
        return self._call("POST", "/endpoints", json=body | {"settings": dict(settings or {})})

    def deploy_model(
        self,
        model: str | Mapping[str, Any],
        name: str = "",
        runtime: str | None = None,
        settings: Mapping[str, Any] | None = None,
        runtime_version: int | None = None,
    ) -> Json:
        """Deploy a published model, `owner/name`, `owner/name:3` or `owner/name@alias`, or one on the hub.

        As a mapping it has `name`, `version`, `alias`, `engine`, and `credential`: the secret with its HF_TOKEN.
        """
        body = {"name": name, "model": model, "runtime": runtime, "runtime_version": runtime_version}
        return self._call("POST", "/endpoints", json=body | {"settings": dict(settings or {})})

    def webhook(self, name: str) -> Json:
        """The address and the secret that a repository is told, and whether its pushes are deployed."""
        return self._call("GET", f"/endpoints/{_part(name)}/webhook")

    def deliveries(self, name: str) -> list[Json]:
        """What was said of an endpoint's repository, newest first, and what became of it."""
        return self._items(f"/endpoints/{_part(name)}/deliveries")

    def replay_delivery(self, name: str, number: int) -> Json:
        """Do as if a delivery came now."""
        return self._call("POST", f"/endpoints/{_part(name)}/deliveries/{int(number)}/replay")

    def wait_for_endpoint(self, name: str, revision: int, timeout_s: float = 1800) -> Json:
        """The endpoint once `revision` serves.

        Raises:
            DeployError: the revision failed, or another took its place; hint and detail are the revision's own.
            UnavailableError: it does not serve within `timeout_s`.
        """
        end = time.monotonic() + timeout_s
        while True:
            endpoint = self.endpoint(name)
            if endpoint["revision"] == revision:
                return endpoint
            mine: Json = next((r for r in endpoint["revisions"] if r["number"] == revision), {"state": "cancelled"})
            if mine["state"] in REVISION_LOST:
                message = mine.get("error") or f"revision {revision} of `{name}` is {mine['state']}"
                raise DeployError(message, mine.get("hint", ""), mine.get("detail", ""))
            why = endpoint["reason"] or f"revision {revision} is {mine['state']}"
            _still(end, f"`{name}` does not serve after {timeout_s:g} s: {why}", f"`puna logs {name}`")

    def endpoints(self) -> list[Json]:
        """Every endpoint."""
        return self._items("/endpoints")

    def endpoint(self, name: str) -> Json:
        """One endpoint."""
        return self._call("GET", f"/endpoints/{_part(name)}")

    def patch(self, name: str, **settings: Any) -> Json:
        """Change settings of an endpoint; `runtime` and `runtime_version` build it on another as a new revision."""
        return self._call("PATCH", f"/endpoints/{_part(name)}", json=settings)

    def activate(self, name: str) -> Json:
        """Serve again."""
        return self._call("POST", f"/endpoints/{_part(name)}/activate")

    def deactivate(self, name: str) -> Json:
        """Stop every replica and refuse requests."""
        return self._call("POST", f"/endpoints/{_part(name)}/deactivate")

    def rebuild(self, name: str) -> Json:
        """Build again, as a new revision: a repository's newest commit, or the newest source."""
        return self._call("POST", f"/endpoints/{_part(name)}/rebuild")

    def rollback(self, name: str, revision: int | None = None) -> Json:
        """Serve an earlier revision again; the one before when None."""
        return self._call("POST", f"/endpoints/{_part(name)}/rollback", json={"revision": revision})

    def delete(self, name: str) -> Json:
        """Delete an endpoint and stop its replicas."""
        return self._call("DELETE", f"/endpoints/{_part(name)}")

    def logs(self, name: str, follow: bool = False, lines: int = 200, replica: str | None = None) -> Iterator[str]:
        """What an app printed, line by line; with `follow` without end."""
        query = {"follow": int(follow), "lines": lines} | ({"replica": replica} if replica else {})
        return self._lines(f"/endpoints/{_part(name)}/logs", query)

    def events(self, name: str, after: int = 0) -> list[Json]:
        """What happened to an endpoint since the event of id `after`, oldest first."""
        return self._items(f"/endpoints/{_part(name)}/events", {"after": after})

    def usage(self, since: str = "30d", until: str = "", by: str = "endpoint", endpoint: str = "") -> Json:
        """Requests and GPU-seconds by `endpoint`, `key`, `day`, `hour`, or several of them with commas."""
        query = {"since": since, "until": until, "by": by, "endpoint": endpoint}
        return self._call("GET", "/usage", params=query)

    def usage_csv(self, since: str = "30d", until: str = "", by: str = "hour,endpoint,key", endpoint: str = "") -> str:
        """The same as a table for spreadsheets."""
        query = {"since": since, "until": until, "by": by, "endpoint": endpoint}
        return "".join(self._stream("/usage.csv", query, lambda reply: reply.iter_text()))

    # ---- keys, secrets, models, runs -------------------------------------------------------------------------

    def create_key(
        self,
        scope: Sequence[str],
        name: str = "",
        endpoints: Sequence[str] | None = None,
        expires_s: float | None = None,
    ) -> Json:
        """Make an API key; its text is in the reply's `key`, and nowhere else."""
        allowed = None if endpoints is None else list(endpoints)
        body = {"name": name, "scope": list(scope), "endpoints": allowed, "expires_s": expires_s}
        return self._call("POST", "/keys", json=body)

    def console_link(self) -> Json:
        """A link that opens the console once: `{"url", "expires_s"}`; over the control socket only."""
        return self._call("POST", "/console/links")

    def keys(self) -> list[Json]:
        """Every key, without its text."""
        return self._items("/keys")

    def delete_key(self, key_id: str) -> Json:
        """Revoke a key."""
        return self._call("DELETE", f"/keys/{_part(key_id)}")

    def set_secret(self, name: str, values: Mapping[str, str]) -> Json:
        """Keep a set of secret values."""
        return self._call("POST", "/secrets", json={"name": name, "values": dict(values)})

    def secrets(self) -> list[Json]:
        """Names of the secret sets and of the values in them."""
        return self._items("/secrets")

    def delete_secret(self, name: str) -> Json:
        """Forget a set of secret values."""
        return self._call("DELETE", f"/secrets/{_part(name)}")

    def create_volume(self, name: str) -> Json:
        """Make a volume, unless it is there."""
        return self._call("POST", "/volumes", json={"name": name})

    def volumes(self) -> list[Json]:
        """Every volume, and the endpoints that use it."""
        return self._items("/volumes")

    def delete_volume(self, name: str) -> Json:
        """Delete a volume that no endpoint uses, with all that is in it."""
        return self._call("DELETE", f"/volumes/{_part(name)}")

    def volume_entries(self, name: str, path: str = "", recursive: bool = False) -> list[Json]:
        """What is in a folder of a volume, or the file at `path`."""
        return self._items(f"/volumes/{_part(name)}/entries", {"path": path, "recursive": int(recursive)})

    def volume_file(self, name: str, path: str) -> Iterator[bytes]:
        """A file's content, in pieces."""
        return self._stream(f"/volumes/{_part(name)}/files/{quote(path)}", {}, lambda reply: reply.iter_bytes())

    def put_volume_file(self, name: str, path: str, content: BinaryIO) -> Json:
        """Write a file of a volume."""
        return self._call("PUT", f"/volumes/{_part(name)}/files/{quote(path)}", content=content)

    def delete_volume_file(self, name: str, path: str) -> Json:
        """Remove a file or folder of a volume."""
        return self._call("DELETE", f"/volumes/{_part(name)}/files/{quote(path)}")

    def models(self) -> list[Json]:
        """Every version of every published model."""
        return self._items("/models")

    def alias_model(self, name: str, version: int, alias: str) -> Json:
        """Let an alias of `owner/name` mean a version."""
        return self._call("PUT", f"/models/{quote(name)}/aliases/{_part(alias)}", json={"version": version})

    def unalias_model(self, name: str, alias: str) -> Json:
        """Remove an alias of `owner/name`."""
        return self._call("DELETE", f"/models/{quote(name)}/aliases/{_part(alias)}")

    def delete_model(self, name: str, version: int, force: bool = False) -> Json:
        """Delete a version of `owner/name`; with `force` also one that an alias or an endpoint names."""
        query = f"?force={int(force)}"
        return self._call("DELETE", f"/models/{quote(name)}/versions/{int(version)}{query}")

    def runs(self) -> list[Json]:
        """Every training run."""
        return self._items("/runs")

    def run(self, name: str) -> Json:
        """One training run."""
        return self._call("GET", f"/runs/{_part(name)}")

    def merge_run(self, name: str, base: str | None = None) -> Json:
        """Merge and verify a finished run in the background; `wait_for_build` waits for the reply's `build_id`."""
        return self._call("POST", f"/runs/{_part(name)}/merge", json={"base": base})

    def publish_run(self, name: str, model: str | None = None, **options: Any) -> Json:
        """Publish a merged run as `owner/name` as a build; `options`: `aliases`, `adapter`, `force`, `hub`."""
        return self._call("POST", f"/runs/{_part(name)}/publish", json={"name": model, **options})

    def machine(
        self,
        model: str = "",
        source: str = "",
        weights_bytes: int = 0,
        requests: int | None = None,
        context: int | None = None,
    ) -> Json:
        """This machine's GPUs, who holds them, and whether a model fits: a published one, a source's, or so many bytes.

        The estimate is for `requests` at once of `context` tokens each.
        """
        query = {"model": model, "source": source, "weights_bytes": weights_bytes}
        query |= {"requests": requests, "context": context}
        return self._call("GET", "/machine", params={key: value for key, value in query.items() if value})

    # ---- inference -------------------------------------------------------------------------------------------

    def infer(self, name: str, inputs: Sequence[Json], key: str | None = None, timeout_s: float = 7200) -> Json:
        """Call an endpoint through the gateway with KServe v2 inputs; the reply as JSON.

        Raises:
            PunaError: the kind that stands for the reply's status.
        """
        return self.infer_with_headers(name, inputs, key, timeout_s)[0]

    def infer_with_headers(
        self, name: str, inputs: Sequence[Json], key: str | None = None, timeout_s: float = 7200
    ) -> tuple[Json, Mapping[str, str]]:
        """As `infer`, with the reply's headers: `x-puna-queue-ms` and the like say what it waited for.

        Raises:
            PunaError: the kind that stands for the reply's status.
        """
        bearer = key or self.key
        headers = {"authorization": f"Bearer {bearer}"} if bearer else {}
        url = f"{(self.url or self.health()['url']).rstrip('/')}/v2/models/{_part(name)}/infer"
        try:
            reply = httpx.post(url, json={"inputs": list(inputs)}, headers=headers, timeout=timeout_s)
        except httpx.TransportError as error:
            raise unreachable(url, error) from None
        return read_json(reply), reply.headers


def _part(text: str) -> str:
    return quote(str(text), safe="")


def _still(end: float, message: str, hint: str) -> None:
    if time.monotonic() > end:
        raise UnavailableError(message, hint)
    time.sleep(POLL_S)
