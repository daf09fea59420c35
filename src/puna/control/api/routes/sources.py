"""The API's part about sources that are fetched or made here, before they are deployed."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from puna.control.domain import api_keys
from puna.control.domain.api_keys import owner
from puna.control.domain.records import Key
from puna.control.domain.settings import parse_git
from puna.control.operations.context import Control
from puna.control.operations.origins import WantedModel

Json = dict[str, Any]
Engine = Literal["auto", "vllm", "transformers"]


class Repository(BaseModel):
    """A git repository: URL, branch (its own choice when empty), folder in it, and the secret set that opens it."""

    model_config = ConfigDict(extra="forbid")
    url: str
    branch: str = ""
    folder: str = ""
    credential: str = ""


class ModelName(BaseModel):
    """A model: published here, in a version or under an alias, else of that name on the Hugging Face Hub."""

    model_config = ConfigDict(extra="forbid")
    name: str
    version: int | None = None
    alias: str | None = None
    engine: Engine = "auto"
    credential: str = ""
    """The secret set whose HF_TOKEN opens it on the hub."""


class FromModel(BaseModel):
    """What `POST /sources/from-model` takes.

    A model in one word is `owner/name`, `owner/name:3` or `owner/name@alias`.
    """

    model_config = ConfigDict(extra="forbid")
    model: ModelName | str
    engine: Engine | None = None


def wanted_model(model: ModelName | str, engine: str | None = None) -> WantedModel:
    """What a request says of a model; `engine` beside it goes before that in it."""
    said = model if isinstance(model, ModelName) else ModelName(name=model)
    return WantedModel(said.name, said.version, said.alias, engine or said.engine, said.credential)


def routes(control: Control) -> APIRouter:
    """The handlers."""
    router = APIRouter(tags=["sources"])

    @router.post("/sources/from-git")
    async def post_from_git(body: Repository, request: Request) -> Json:
        """Fetch a repository's newest commit as a source, with what its project file says; nothing is deployed."""
        key = request.state.key
        return await control.fetches.run(owner(key), partial(_from_git, control, body, key))

    @router.post("/sources/from-model")
    async def post_from_model(body: FromModel, request: Request) -> Json:
        """Make the app of a model as a source, with the settings that it gets; nothing is deployed."""
        key = request.state.key
        return await control.fetches.run(owner(key), partial(_from_model, control, body, key))

    return router


def _from_git(control: Control, body: Repository, key: Key | None) -> Json:
    said = parse_git(body.model_dump(), {})
    api_keys.check_credential(control.store.endpoints(), key, body.credential, body.url)
    pulled = control.pull(said)
    shown: Json = {"digest": pulled.source, "commit": pulled.commit, "name": pulled.name}
    shown |= {"settings": dict(pulled.settings)}
    return shown | {"runtime": pulled.runtime, "runtime_version": pulled.runtime_version}


def _from_model(control: Control, body: FromModel, key: Key | None) -> Json:
    wanted = wanted_model(body.model, body.engine)
    api_keys.check_credential(control.store.endpoints(), key, wanted.credential)
    made = control.make(wanted)
    shown: Json = {"digest": made.source, "name": made.name, "settings": dict(made.settings)}
    return shown | {"model": made.model, "engine": made.engine}
