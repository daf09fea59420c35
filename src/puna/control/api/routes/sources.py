"""Sources: uploaded, fetched or made here before they are deployed, and looked at."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal, cast

from fastapi import Path, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from typing_extensions import TypedDict

from puna.config import schema
from puna.config.settings import parse_git
from puna.control.api import bodies
from puna.control.api.openapi import Problem
from puna.control.api.routing import Answer, Body, Right, Routes
from puna.control.domain import api_keys
from puna.control.domain.api_keys import owner
from puna.control.domain.records import Key, view
from puna.control.operations.context import Control
from puna.control.operations.origins import WantedModel
from puna.control.resources import revision_files
from puna.errors import PunaError
from puna.packaging import source

Json = dict[str, Any]
Engine = Literal["auto", "vllm", "transformers"]
Digest = Annotated[str, Path(json_schema_extra={"pattern": "^[0-9a-f]{16,64}$"})]
MAX_SOURCE_BYTES = 512 * 1024 * 1024


class SourceDigest(TypedDict):
    """The digest that a deploy names."""

    digest: str


class UploadedSource(TypedDict):
    """An uploaded source: its files and what they declare."""

    digest: str
    files: list[str]
    """500 of them, at most."""
    schema: list[str] | None
    """The inputs, one a line."""
    project: Json | None
    """What inferless.yaml says."""
    runtime: str | None
    """The text of its runtime file."""
    error: Problem | None
    """Why it is no app."""


class PulledSource(TypedDict):
    """A repository's newest commit, kept as a source."""

    digest: str
    commit: str
    name: str
    settings: Json
    runtime: str | None
    runtime_version: int | None


class MadeSource(TypedDict):
    """The app that was made for a model, kept as a source."""

    digest: str
    name: str
    settings: Json
    model: str
    engine: str


class Repository(BaseModel, extra="forbid"):
    """A git repository: URL, branch (its own choice when empty), folder in it, and the secret set that opens it."""

    url: str
    branch: str = ""
    folder: str = ""
    credential: str = ""


class ModelName(BaseModel, extra="forbid"):
    """A model: published here, in a version or under an alias, else of that name on the Hugging Face Hub."""

    name: str
    version: int | None = None
    alias: str | None = None
    engine: Engine = "auto"
    credential: str = ""
    """The secret set whose HF_TOKEN opens it on the hub."""


class FromModel(BaseModel, extra="forbid"):
    """The body of `POST /sources/from-model`.

    A model in one word is `owner/name`, `owner/name:3` or `owner/name@alias`.
    """

    model: ModelName | str
    engine: Engine | None = None


def wanted_model(model: ModelName | str, engine: str | None = None) -> WantedModel:
    """The model that a request means; `engine` beside it goes before that in it."""
    said = model if isinstance(model, ModelName) else ModelName(name=model)
    return WantedModel(said.name, said.version, said.alias, engine or said.engine, said.credential)


def routes(control: Control) -> Routes:
    """The handlers."""
    route = Routes("sources")
    _uploaded(route, control)

    @route("POST /sources/from-git", Right.OWN, Answer(refuses=(429,)))
    async def post_from_git(body: Repository, request: Request) -> PulledSource:
        """Fetch a repository's newest commit as a source, with what its project file says; nothing is deployed."""
        key = request.state.key
        return await control.fetches.run(owner(key), partial(_from_git, control, body, key))

    @route("POST /sources/from-model", Right.OWN, Answer(refuses=(429,)))
    async def post_from_model(body: FromModel, request: Request) -> MadeSource:
        """Make the app of a model as a source, with the settings that it gets; nothing is deployed."""
        key = request.state.key
        return await control.fetches.run(owner(key), partial(_from_model, control, body, key))

    return route


def _uploaded(route: Routes, control: Control) -> None:
    @route("PUT /sources", Right.OWN, body=Body("application/octet-stream", "A project folder as tar.gz."))
    async def put_source(request: Request) -> SourceDigest:
        """Upload a project folder as tar.gz; the reply's digest is what a deploy names."""
        body = await bodies.read(request, MAX_SOURCE_BYTES, "source", "weights belong in `puna publish`")
        unpacked = await run_in_threadpool(source.unpack, body, control.home)
        return {"digest": unpacked.digest}

    @route("GET /sources/{digest}", Right.OWN)
    def get_source(digest: Digest) -> UploadedSource:
        """An uploaded source: its files, the inputs it declares, its runtime file, and what is wrong with it."""
        folder = revision_files.find_source(control.home, digest).path / "files"
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        shown: UploadedSource = {
            "digest": digest,
            "files": names[:500],
            "schema": None,
            "project": None,
            "runtime": None,
            "error": None,
        }
        try:
            settings = source.check(folder)
            inputs = schema.read_literal(folder / "input_schema.py")
            shown["schema"] = None if inputs is None else inputs.describe().splitlines()
            shown["project"] = settings.as_dict()
            if settings.runtime_file:
                shown["runtime"] = (folder / settings.runtime_file).read_text(errors="replace")
        except PunaError as error:
            shown["error"] = cast(Problem, error.as_json()["error"])
        return shown


def _from_git(control: Control, body: Repository, key: Key | None) -> PulledSource:
    said = parse_git(body.model_dump(), {})
    api_keys.check_credential(control.store.endpoints(), key, body.credential, body.url)
    pulled = control.pull(said)
    return view(PulledSource, pulled, digest=pulled.source)


def _from_model(control: Control, body: FromModel, key: Key | None) -> MadeSource:
    wanted = wanted_model(body.model, body.engine)
    api_keys.check_credential(control.store.endpoints(), key, wanted.credential)
    made = control.make(wanted)
    return view(MadeSource, made, digest=made.source)
