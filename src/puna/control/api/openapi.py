"""The API's OpenAPI document: FastAPI's own, with what every operation answers, refuses and asks of its caller.

Handlers stand by noun in `api_*.py` and answer plain dicts. What they answer is written down here, in one table, and
a test calls every operation and holds the answers to it.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from puna import names
from puna.config.ranges import RANGES
from puna.control.api import shapes, shapes_kept, shapes_made, shapes_traffic
from puna.control.domain import records
from puna.control.domain.records import Settings

Json = dict[str, Any]
REF = "#/components/schemas/"


@dataclass(frozen=True)
class Listed:
    """A page of a list of these."""

    item: type[shapes.ApiShape]


@dataclass(frozen=True)
class PlainText:
    """No JSON: what this media type says."""

    media_type: str = "text/plain"
    is_binary: bool = False


# What an operation answers when all is well. Its id is the name of its handler.
ANSWERS: dict[str, type[shapes.ApiShape] | Listed | PlainText] = {
    "health": shapes.Health,
    "list_endpoints": Listed(shapes.Endpoint),
    "get_endpoint": shapes.Endpoint,
    "post_endpoint": shapes.Deployed,
    "patch_endpoint": shapes.PatchedEndpoint,
    "post_activate": shapes.Endpoint,
    "post_deactivate": shapes.Endpoint,
    "post_rebuild": shapes.Deployed,
    "post_rollback": shapes.Deployed,
    "put_traffic": shapes_traffic.Traffic,
    "post_promote": shapes_traffic.Traffic,
    "get_revision_diff": shapes_traffic.RevisionDiff,
    "delete_endpoint": shapes.Deleted,
    "list_events": Listed(shapes.Event),
    "get_logs": PlainText(),
    "get_metrics": shapes.Metrics,
    "get_stream": PlainText("text/event-stream"),
    "post_hook": shapes.Taken,
    "get_webhook": shapes.Webhook,
    "list_deliveries": Listed(shapes.Delivery),
    "post_replay": shapes.Delivery,
    "put_source": shapes_made.SourceDigest,
    "get_source": shapes_made.Source,
    "post_from_git": shapes_made.PulledSource,
    "post_from_model": shapes_made.MadeSource,
    "post_runtime": shapes_made.RuntimeVersion,
    "list_runtimes": Listed(shapes_made.RuntimeVersion),
    "get_runtime": shapes_made.Runtime,
    "get_diff": shapes_made.RuntimeDiff,
    "delete_version": shapes_made.DeletedVersions,
    "delete_runtime": shapes_made.DeletedVersions,
    "post_lint": shapes_made.Linted,
    "post_lint_settings": shapes_made.Judged,
    "list_builds": Listed(shapes_made.Build),
    "get_build": shapes_made.Build,
    "get_build_log": PlainText(),
    "post_cancel": shapes_made.Build,
    "post_key": shapes_kept.NewKey,
    "list_keys": Listed(shapes_kept.Key),
    "delete_key": shapes.Deleted,
    "post_secret": shapes_kept.Secret,
    "list_secrets": Listed(shapes_kept.Secret),
    "delete_secret": shapes.Deleted,
    "post_volume": shapes_kept.MadeVolume,
    "list_volumes": Listed(shapes_kept.Volume),
    "get_volume": shapes_kept.Volume,
    "delete_volume": shapes.Deleted,
    "list_entries": Listed(shapes_kept.Entry),
    "get_file": PlainText("application/octet-stream", is_binary=True),
    "put_file": shapes_kept.Written,
    "delete_file": shapes.Deleted,
    "list_models": Listed(shapes_kept.ListedModel),
    "put_model_alias": shapes_kept.ModelVersion,
    "delete_model_alias": shapes.Deleted,
    "delete_model_version": shapes.Deleted,
    "list_runs": Listed(shapes_kept.ListedRun),
    "get_run": shapes_kept.Run,
    "post_merge": shapes_made.QueuedBuild,
    "post_publish": shapes_made.QueuedBuild,
    "post_link": shapes_kept.Link,
    "post_session": shapes_kept.NewKey,
    "get_whoami": shapes_kept.Caller,
    "get_usage": shapes_made.Usage,
    "get_usage_csv": PlainText("text/csv"),
    "get_machine": shapes_kept.Machine,
    "list_log_lines": Listed(shapes_kept.LogLine),
}
# Bodies that handlers read by themselves.
BODIES = {
    "put_source": ("application/octet-stream", "A project folder as tar.gz."),
    "put_file": ("application/octet-stream", "The file's content."),
    "post_hook": ("application/json", "What the sender says, signed with the endpoint's secret."),
}
ASKING = {"post_from_git", "post_from_model", "post_endpoint", "post_rebuild"}
"""Operations that may ask other machines: not more than so many at once."""
NAMING = {"get_machine"}
"""Operations whose query names things that may not be there."""
KEY = r"^[\x21-\x7e]{1,255}$"
# What names in paths look like: nothing else can be found, and is answered with 404.
PATTERNS = {
    "/endpoints/{name}": names.pattern("endpoint"),
    "/hooks/{name}": names.pattern("endpoint"),
    "/runtimes/{name}": names.pattern("runtime"),
    "/secrets/{name}": names.pattern("secret"),
    "/volumes/{name}": names.pattern("volume"),
    "/builds/{build_id}": "^[0-9a-f]{12}$",
    "/keys/{key_id}": "^[0-9a-f]{8}$",
    "/sources/{digest}": "^[0-9a-f]{16,64}$",
}
# Why each operation may be refused, by status.
REFUSALS = {
    400: "What was sent makes no sense.",
    401: "No key, or an unknown, revoked or expired one.",
    403: "The key has no right to this, or a page of another origin asks.",
    404: "There is no such thing.",
    409: "The thing is in a state that forbids this, or the same call is in flight.",
    413: "The body is too long.",
    422: "The Idempotency-Key came before, with another call.",
    429: "Too many repositories and models are being fetched; `Retry-After` says when to ask again.",
    500: "It failed here; the message says how.",
    503: "The control plane starts again; ask once more in a second.",
    507: "The machine refuses: disk full, no such device.",
}
TAGS = {
    "endpoints": "Deploy, look, change, roll back, read logs.",
    "sources": "Project folders, repositories and models that are deployed.",
    "webhooks": "What repositories say of their changes.",
    "builds": "What is made of a source, a runtime or a training run.",
    "runtimes": "Environments with versions.",
    "keys": "Who may call what.",
    "secrets": "Values that apps get in their environment.",
    "volumes": "Folders that outlive replicas.",
    "models": "Published models.",
    "runs": "Training runs.",
    "events": "Changes as they come.",
    "usage": "Requests and GPU-seconds, added up.",
    "machine": "GPUs, who holds them, and whether a model fits.",
    "console": "What the console asks.",
    "health": "Whether it is there.",
}
ABOUT = """The control plane of one Puna. Send `Authorization: Bearer puna_...`: a key of scope `deploy`, or `admin` for
keys and secrets. Lists come in pages: `next` is the `after` of the next one, and null at the end. Calls that change
something take an `Idempotency-Key`: the same call with the same key within a day gets the first answer."""


def complete(app: FastAPI, is_open: Callable[[str], bool]) -> None:
    """Let an application serve the whole document; `is_open` says which paths need no key."""
    made = app.openapi

    def openapi() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(made(), is_open)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend the document


def operation_id(route: APIRoute) -> str:
    """An operation's id: the name of its handler."""
    return route.name


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    """Path, method and operation of everything in a document."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def _completed(document: Json, is_open: Callable[[str], bool]) -> Json:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)  # FastAPI's own errors: ours have another shape
    answers = _shapes(schemas)
    document["info"]["description"] = ABOUT
    used = {tag for _, _, operation in operations(document) for tag in operation.get("tags", ())}
    document["tags"] = [{"name": name, "description": text} for name, text in TAGS.items() if name in used]
    bearer = {"type": "http", "scheme": "bearer", "description": "A key: `puna key create` makes one."}
    document["components"]["securitySchemes"] = {"key": bearer}
    for path, method, operation in operations(document):
        operation["security"] = [] if is_open(path) else [{"key": []}]
        _answer(operation, answers)
        _ask(path, method, operation)
        _refuse(path, method, operation)
    _settings(schemas, document["paths"])
    return document


def _shapes(schemas: Json) -> dict[type[shapes.ApiShape], Json]:
    """Add every shape to the document; the schema of each answer by its type."""
    wanted: set[type[shapes.ApiShape]] = {shapes.Error}
    for answer in ANSWERS.values():
        if not isinstance(answer, PlainText):
            wanted.add(answer.item if isinstance(answer, Listed) else answer)
    named = sorted(wanted, key=lambda kind: kind.__name__)
    inputs: list[tuple[type[shapes.ApiShape], JsonSchemaMode, TypeAdapter[Any]]]
    inputs = [(kind, "validation", TypeAdapter(kind)) for kind in named]
    found, defined = TypeAdapter.json_schemas(inputs, ref_template=REF + "{model}")
    schemas |= defined.get("$defs", {})
    return {kind: schema for (kind, _), schema in found.items()}


def _answer(operation: Json, answers: dict[type[shapes.ApiShape], Json]) -> None:
    """Say what comes when all is well."""
    answer = ANSWERS.get(operation["operationId"])
    status = next(code for code in operation["responses"] if code.startswith("2"))
    if answer is None:
        return  # a test tells
    content: Json
    if isinstance(answer, PlainText):
        schema = {"type": "string", "format": "binary"} if answer.is_binary else {"type": "string"}
        content = {answer.media_type: {"schema": schema}}
    elif isinstance(answer, Listed):
        items = {"type": "array", "items": answers[answer.item]}
        following = {"type": ["string", "null"], "description": "The `after` of the next page; null at the end."}
        page: Json = {"type": "object", "properties": {"items": items, "next": following}}
        page |= {"required": ["items", "next"], "additionalProperties": False}
        content = {"application/json": {"schema": page}}
    else:
        content = {"application/json": {"schema": answers[answer]}}
    operation["responses"] = {status: {"description": "Done.", "content": content}}
    if operation["operationId"] == "post_hook":
        operation["responses"]["200"] = {"description": "Ignored; the message says why.", "content": content}


def _ask(path: str, method: str, operation: Json) -> None:
    """Say what a caller may send beside what FastAPI knows."""
    parameters = operation.setdefault("parameters", [])
    for start, pattern in PATTERNS.items():
        for parameter in parameters:
            name = start[start.index("{") + 1 : -1]
            if path.startswith(f"/api/v1{start}") and parameter["in"] == "path" and parameter["name"] == name:
                parameter["schema"]["pattern"] = pattern
    if operation["operationId"] in BODIES:
        media_type, description = BODIES[operation["operationId"]]
        schema: Json = {} if media_type == "application/json" else {"type": "string", "format": "binary"}
        body = {"required": True, "description": description, "content": {media_type: {"schema": schema}}}
        operation["requestBody"] = body
    if method != "get" and operation["security"]:
        schema = {"type": "string", "pattern": KEY}
        about = "The same call with the same key within a day gets the first answer, and is not done again."
        key = {"name": "Idempotency-Key", "in": "header", "required": False, "schema": schema, "description": about}
        parameters.append(key)
    if not parameters:
        del operation["parameters"]


def _refuse(path: str, method: str, operation: Json) -> None:
    """Say which errors there may be."""
    statuses = {500, 503}
    if operation["security"]:
        statuses |= {401, 403}
    if operation.get("parameters") or "requestBody" in operation:
        statuses.add(400)
    if "{" in path or "requestBody" in operation or operation["operationId"] in NAMING:
        statuses.add(404)
    if method != "get":
        statuses |= {401, 403, 409, 413, 507}
    if method != "get" and operation["security"]:
        statuses.add(422)
    if operation["operationId"] in ASKING:
        statuses.add(429)
    for status in sorted(statuses):
        error = {"application/json": {"schema": {"$ref": f"{REF}Error"}}}
        operation["responses"][str(status)] = {"description": REFUSALS[status], "content": error}


def _settings(schemas: Json, paths: Json) -> None:
    """Settings as they are shown, and as they are sent: any of them, null for what stays as it is."""
    shown: Json = TypeAdapter(Settings).json_schema()
    said = _attribute_texts(Settings)
    for name, schema in shown["properties"].items():
        schema.pop("default", None)
        schema.pop("title", None)
        if name in said:
            schema["description"] = said[name]
        if name in RANGES:
            schema["minimum"], schema["maximum"] = RANGES[name]
    shown |= {"required": list(shown["properties"]), "additionalProperties": False}
    shown |= {"description": "Scaling, limits, machine and environment of one endpoint."}
    sent = {name: {"anyOf": [schema, {"type": "null"}]} for name, schema in shown["properties"].items()}
    git = {name: {"type": "string"} for name in sorted(records.GIT - {"commit"})}
    sent["git"] = {"anyOf": [{"type": "object", "properties": git, "additionalProperties": False}, {"type": "null"}]}
    schemas["Settings"] = shown
    about = "Settings to change; null, or not there, is as it was."
    schemas["NewSettings"] = {"type": "object", "properties": sent, "additionalProperties": False, "description": about}
    for body in ("Deploy", "PlannedDeploy"):
        schemas[body]["properties"]["settings"] = {"$ref": f"{REF}NewSettings"}
    patch = paths["/api/v1/endpoints/{name}"]["patch"]["requestBody"]["content"]["application/json"]
    patch["schema"] = {"$ref": f"{REF}NewSettings"}


def _attribute_texts(kind: type) -> dict[str, str]:
    """The text under each attribute of a class."""
    body = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for this, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(this, ast.AnnAssign) and isinstance(this.target, ast.Name) and isinstance(following, ast.Expr):
            if isinstance(following.value, ast.Constant):
                found[this.target.id] = " ".join(str(following.value.value).split())
    return found
