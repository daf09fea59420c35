"""Calls about sources: what is deployed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from puna.client.transport import Json, Transport, part


class SourceCalls(Transport):
    """Uploaded folders, repositories and models."""

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
