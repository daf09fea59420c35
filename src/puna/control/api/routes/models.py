"""The API's part about published models: versions with where they came from and who serves them, aliases, deletion."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from puna.control.api.bodies import Number
from puna.control.api.pagination import Paged
from puna.control.domain.api_keys import visible
from puna.control.domain.records import Revision
from puna.control.operations.context import Control
from puna.control.resources import models
from puna.errors import ConflictError
from puna.publish.registry import RegisteredVersion, Registry

Json = dict[str, Any]


class Alias(BaseModel):
    """What `PUT /models/{owner}/{model}/aliases/{alias}` takes."""

    model_config = ConfigDict(extra="forbid")
    version: Number


def routes(control: Control) -> APIRouter:
    """The handlers."""
    router = APIRouter(tags=["models"])
    registry = Registry(control.home)

    def revisions() -> list[Revision]:
        return [r for e in control.store.endpoints() for r in control.store.revisions(e.name)]

    @router.get("/models")
    def list_models(request: Request, page: Paged) -> Json:
        """Every version of every published model: size, the run that made it, the endpoints that serve it.

        A key for some endpoints sees those among them only.
        """
        seen = [revision for revision in revisions() if visible(request.state.key, revision.endpoint)]
        users, runs = models.users(control.home, seen), models.trained(control.home)
        return page.show(registry.list(), lambda v: (v.name, v.version), lambda v: _view(v, runs, users))

    @router.put("/models/{owner}/{model}/aliases/{alias}")
    def put_model_alias(owner: str, model: str, alias: str, body: Alias) -> Json:
        """Let an alias mean a version."""
        return plain(registry.alias(f"{owner}/{model}:{body.version}", alias))

    @router.delete("/models/{owner}/{model}/aliases/{alias}")
    def delete_model_alias(owner: str, model: str, alias: str) -> Json:
        """Remove an alias; the version that it meant stays."""
        registry.unalias(f"{owner}/{model}@{alias}")
        return {"deleted": f"{owner}/{model}@{alias}"}

    @router.delete("/models/{owner}/{model}/versions/{version}")
    def delete_model_version(owner: str, model: str, version: Number, force: bool = False) -> Json:
        """Delete a version that no alias points to and no endpoint serves; with `force`, such a one too."""
        found = models.version_of(registry.list(), f"{owner}/{model}", version)
        used = sorted({user["endpoint"] for user in models.users(control.home, revisions()).get(found.digest, ())})
        if used and not force:
            hint = f"`puna delete {used[0]}` first; with force it goes, and {used[0]} cannot be built again"
            raise ConflictError(f"{found.ref} is served by {', '.join(used)}", hint)
        registry.delete(found.ref, force=force)
        return {"deleted": found.ref}

    return router


def _view(version: RegisteredVersion, runs: dict[str, str], users: dict[str, list[Json]]) -> Json:
    more = {"bytes": models.size_bytes(version), "run": models.run_of(version, runs)}
    return plain(version) | more | {"endpoints": users.get(version.digest, [])}


def plain(version: RegisteredVersion) -> Json:
    """A version as plain JSON values; paths become text."""
    values: Json = json.loads(json.dumps(version.__dict__, default=str))
    return values
