"""Calls about published models and training runs."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from puna.client.transport import Json, Transport, part


class ModelCalls(Transport):
    """Models and runs."""

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
