"""Published models: versions with where they came from and who serves them, aliases, deletion."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from pydantic import BaseModel
from typing_extensions import TypedDict

from puna.control.api.bodies import Number
from puna.control.api.query import Listed, Paged
from puna.control.api.routing import Deleted, Right, Routes
from puna.control.domain.api_keys import visible
from puna.control.domain.records import Revision, view
from puna.control.operations.context import Control
from puna.control.resources import models
from puna.control.resources.models import ServedBy
from puna.errors import ConflictError
from puna.publish.registry import RegisteredVersion, Registry

Json = dict[str, Any]


class ModelVersion(TypedDict):
    """One version of a published model."""

    name: str
    """`owner/name`."""
    version: int
    digest: str
    path: str
    aliases: list[str]
    created: str
    """UTC, ISO 8601."""
    lineage: dict[str, str]
    """Role -> digest or name: base, dataset, recipe, adapter."""
    verification: Json | None
    """The figures of the check that the merged model is the trained one."""
    kind: str
    """`model` or `adapter`."""


class ListedModel(ModelVersion):
    """One version of a published model, with its size, the run that made it and the endpoints that serve it."""

    bytes: int | None
    """Null when its weights are gone."""
    run: str | None
    endpoints: list[ServedBy]


class Alias(BaseModel, extra="forbid"):
    """The body of `PUT /models/{owner}/{model}/aliases/{alias}`."""

    version: Number


def routes(control: Control) -> Routes:
    """The handlers."""
    route = Routes("models")
    registry = Registry(control.home)

    def revisions() -> list[Revision]:
        return [r for e in control.store.endpoints() for r in control.store.revisions(e.name)]

    @route("GET /models", Right.OWN)
    def list_models(request: Request, page: Paged) -> Listed[ListedModel]:
        """Every version of every published model: size, the run that made it, the endpoints that serve it.

        A key for some endpoints sees those among them only.
        """
        seen = [revision for revision in revisions() if visible(request.state.key, revision.endpoint)]
        users, runs = models.users(control.home, seen), models.trained(control.home)
        return page.show(registry.list(), lambda v: (v.name, v.version), lambda v: _listed(v, runs, users))

    @route("PUT /models/{owner}/{model}/aliases/{alias}", Right.ALL)
    def put_model_alias(owner: str, model: str, alias: str, body: Alias) -> ModelVersion:
        """Let an alias mean a version."""
        version = registry.alias(f"{owner}/{model}:{body.version}", alias)
        return view(ModelVersion, version, path=str(version.path))

    @route("DELETE /models/{owner}/{model}/aliases/{alias}", Right.ALL)
    def delete_model_alias(owner: str, model: str, alias: str) -> Deleted:
        """Remove an alias; the version that it meant stays."""
        registry.unalias(f"{owner}/{model}@{alias}")
        return {"deleted": f"{owner}/{model}@{alias}"}

    @route("DELETE /models/{owner}/{model}/versions/{version}", Right.ALL)
    def delete_model_version(owner: str, model: str, version: Number, force: bool = False) -> Deleted:
        """Delete a version that no alias points to and no endpoint serves; with `force`, such a one too."""
        found = models.version_of(registry.list(), f"{owner}/{model}", version)
        used = sorted({user["endpoint"] for user in models.users(control.home, revisions()).get(found.digest, ())})
        if used and not force:
            hint = f"`puna delete {used[0]}` first; with force it goes, and {used[0]} cannot be built again"
            raise ConflictError(f"{found.ref} is served by {', '.join(used)}", hint)
        registry.delete(found.ref, force=force)
        return {"deleted": found.ref}

    return route


def _listed(version: RegisteredVersion, runs: dict[str, str], users: dict[str, list[ServedBy]]) -> ListedModel:
    run, endpoints = models.run_of(version, runs), users.get(version.digest, [])
    size = models.size_bytes(version)
    return view(ListedModel, version, path=str(version.path), bytes=size, run=run, endpoints=endpoints)
