"""Calls about what endpoints use and share: runtimes, builds, models, runs, volumes, keys, secrets, the machine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO
from urllib.parse import quote

from puna.client.transport import Json, Transport, part, poll, read_health
from puna.errors import BuildError

BUILD_ENDED = frozenset({"succeeded", "failed", "cancelled"})


class ResourceCalls(Transport):
    """Resources that endpoints use and share, and the machine itself."""

    # -- runtimes and builds

    def upload_runtime(self, name: str, yaml: str) -> Json:
        """Upload a runtime file's text; its environment is built in the background (`build_id`)."""
        return self._call("POST", "/runtimes", json={"name": name, "yaml": yaml})

    def runtimes(self) -> list[Json]:
        """Every version of every runtime."""
        return self._items("/runtimes")

    def runtime(self, name: str, version: int | None = None) -> Json:
        """One version of a runtime, the newest when None: its file, packages as installed, size, and who uses it."""
        query = "" if version is None else f"?version={int(version)}"
        return self._call("GET", f"/runtimes/{part(name)}{query}")

    def runtime_diff(self, name: str, before: int, after: int) -> Json:
        """Differences between two versions of a runtime: lines of the file, and packages."""
        return self._call("GET", f"/runtimes/{part(name)}/versions/{int(before)}/diff/{int(after)}")

    def delete_runtime(self, name: str, version: int | None = None) -> Json:
        """Delete a version of a runtime that no endpoint needs; all versions when None."""
        which = "" if version is None else f"/versions/{int(version)}"
        return self._call("DELETE", f"/runtimes/{part(name)}{which}")

    def builds(self) -> list[Json]:
        """Every build, oldest first."""
        return self._items("/builds")[::-1]

    def build(self, build_id: str) -> Json:
        """One build."""
        return self._call("GET", f"/builds/{part(build_id)}")

    def build_log(self, build_id: str, follow: bool = True, search: str = "") -> Iterator[str]:
        """A build's output, line by line; with `follow` until it ends, with `search` the lines that have it in them.

        A build that is followed goes on when its control plane starts again, and so do its lines.
        """
        lines = self._following if follow else self._lines
        return lines(f"/builds/{part(build_id)}/log", {"follow": int(follow), "search": search})

    def cancel_build(self, build_id: str) -> Json:
        """Cancel a build."""
        return self._call("POST", f"/builds/{part(build_id)}/cancel")

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
            poll(end, f"build {build_id} has not ended after {timeout_s:g} s", f"`puna logs --build {build_id}`")

    def check_settings(self, name: str, settings: Mapping[str, Any]) -> Json:
        """Ask whether a deploy of that name with these settings would be taken; nothing is deployed.

        Raises:
            UsageError, NotFoundError, MachineError: it would be refused, and why.
        """
        return self._call("POST", "/lint/settings", json={"name": name, "settings": dict(settings)})

    def lint_runtime(self, yaml: str) -> Json:
        """Read a runtime file's text without building it.

        Raises:
            RuntimeSpecError: it is wrong.
        """
        return self._call("POST", "/lint/runtime", json={"yaml": yaml})

    # -- models and runs

    def models(self) -> list[Json]:
        """Every version of every published model."""
        return self._items("/models")

    def alias_model(self, name: str, version: int, alias: str) -> Json:
        """Let an alias of `owner/name` mean a version."""
        return self._call("PUT", f"/models/{quote(name)}/aliases/{part(alias)}", json={"version": version})

    def unalias_model(self, name: str, alias: str) -> Json:
        """Remove an alias of `owner/name`."""
        return self._call("DELETE", f"/models/{quote(name)}/aliases/{part(alias)}")

    def delete_model(self, name: str, version: int, force: bool = False) -> Json:
        """Delete a version of `owner/name`; with `force` also one that an alias or an endpoint names."""
        query = f"?force={int(force)}"
        return self._call("DELETE", f"/models/{quote(name)}/versions/{int(version)}{query}")

    def runs(self) -> list[Json]:
        """Every training run."""
        return self._items("/runs")

    def run(self, name: str) -> Json:
        """One training run."""
        return self._call("GET", f"/runs/{part(name)}")

    def merge_run(self, name: str, base: str | None = None) -> Json:
        """Merge and verify a finished run in the background; `wait_for_build` waits for the reply's `build_id`."""
        return self._call("POST", f"/runs/{part(name)}/merge", json={"base": base})

    def publish_run(self, name: str, model: str | None = None, **options: Any) -> Json:
        """Publish a merged run as `owner/name` as a build; `options`: `aliases`, `adapter`, `force`, `hub`."""
        return self._call("POST", f"/runs/{part(name)}/publish", json={"name": model, **options})

    # -- volumes

    def create_volume(self, name: str) -> Json:
        """Make a volume, unless it is there."""
        return self._call("POST", "/volumes", json={"name": name})

    def volumes(self) -> list[Json]:
        """Every volume, and the endpoints that use it."""
        return self._items("/volumes")

    def delete_volume(self, name: str) -> Json:
        """Delete a volume that no endpoint uses, with all that is in it."""
        return self._call("DELETE", f"/volumes/{part(name)}")

    def volume_entries(self, name: str, path: str = "", recursive: bool = False) -> list[Json]:
        """Entries of a folder of a volume, or the file at `path`."""
        return self._items(f"/volumes/{part(name)}/entries", {"path": path, "recursive": int(recursive)})

    def volume_file(self, name: str, path: str) -> Iterator[bytes]:
        """A file's content, in pieces."""
        return self._stream(f"/volumes/{part(name)}/files/{quote(path)}", {}, lambda reply: reply.iter_bytes())

    def put_volume_file(self, name: str, path: str, content: BinaryIO) -> Json:
        """Write a file of a volume."""
        return self._call("PUT", f"/volumes/{part(name)}/files/{quote(path)}", content=content)

    def delete_volume_file(self, name: str, path: str) -> Json:
        """Remove a file or folder of a volume."""
        return self._call("DELETE", f"/volumes/{part(name)}/files/{quote(path)}")

    def volume(self, name: str) -> Json:
        """One volume."""
        return self._call("GET", f"/volumes/{part(name)}")

    # -- keys and secrets

    def create_key(
        self,
        scope: Sequence[str],
        name: str = "",
        endpoints: Sequence[str] | None = None,
        expires_s: float | None = None,
        limits: Mapping[str, str | int | None] | None = None,
    ) -> Json:
        """Make an API key; its text is in the reply's `key`, and nowhere else.

        `limits` are what it may ask for: `{"rate": "10/s", "tokens": "100k/min", "concurrency": 8}`, or some of them.
        """
        allowed = None if endpoints is None else list(endpoints)
        body = {"name": name, "scope": list(scope), "endpoints": allowed, "expires_s": expires_s, **(limits or {})}
        return self._call("POST", "/keys", json=body)

    def console_link(self) -> Json:
        """A link that opens the console once: `{"url", "expires_s"}`; over the control socket only."""
        return self._call("POST", "/console/links")

    def keys(self) -> list[Json]:
        """Every key, without its text."""
        return self._items("/keys")

    def delete_key(self, key_id: str) -> Json:
        """Revoke a key."""
        return self._call("DELETE", f"/keys/{part(key_id)}")

    def set_secret(self, name: str, values: Mapping[str, str]) -> Json:
        """Keep a set of secret values."""
        return self._call("POST", "/secrets", json={"name": name, "values": dict(values)})

    def secrets(self) -> list[Json]:
        """Names of the secret sets and of the values in them."""
        return self._items("/secrets")

    def delete_secret(self, name: str) -> Json:
        """Forget a set of secret values."""
        return self._call("DELETE", f"/secrets/{part(name)}")

    def whoami(self) -> Json:
        """Rights of this client's key."""
        return self._call("GET", "/whoami")

    def open_session(self, token: str) -> Json:
        """Turn the token of a console link into an administrator's key of twelve hours; it is in the reply's `key`."""
        return self._call("POST", "/console/sessions", json={"token": token})

    # -- the machine

    def health(self) -> Json:
        """Health of the control plane's parts, its version and address; a part that does not work raises nothing."""
        return self._call("GET", "/health", read=read_health)

    def usage(self, since: str = "30d", until: str = "", by: str = "endpoint", endpoint: str = "") -> Json:
        """Requests and GPU-seconds by `endpoint`, `key`, `day`, `hour`, or several of them with commas."""
        query = {"since": since, "until": until, "by": by, "endpoint": endpoint}
        return self._call("GET", "/usage", params=query)

    def usage_csv(self, since: str = "30d", until: str = "", by: str = "hour,endpoint,key", endpoint: str = "") -> str:
        """The same as a table for spreadsheets."""
        query = {"since": since, "until": until, "by": by, "endpoint": endpoint}
        return "".join(self._stream("/usage.csv", query, lambda reply: reply.iter_text()))

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
