"""Calls about runtimes and builds, and waiting for a build."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from puna.client.transport import Json, Transport, part, still
from puna.errors import BuildError

BUILD_ENDED = frozenset({"succeeded", "failed", "cancelled"})


class BuildCalls(Transport):
    """Runtimes and builds."""

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
        """What differs between two versions of a runtime: lines of the file, and packages."""
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
            still(end, f"build {build_id} has not ended after {timeout_s:g} s", f"`puna logs --build {build_id}`")

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
