"""The API's OpenAPI document: FastAPI's own, with what every route declares that it answers, refuses and asks.

Models of answers are the return types of the handlers. They are documented, not validated; a test calls every route
and holds the answers to them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NotRequired, get_args, get_origin, get_type_hints

from fastapi import FastAPI
from pydantic import ConfigDict, TypeAdapter
from pydantic.json_schema import JsonSchemaMode
from starlette.responses import Response
from typing_extensions import TypedDict, get_original_bases

from puna.config.settings import GIT, Settings
from puna.control.api.query import Listed
from puna.control.api.routing import Right, Route, declared

Json = dict[str, Any]
REF = "#/components/schemas/"
KEY = r"^[\x21-\x7e]{1,255}$"
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


class Problem(TypedDict):
    """The error itself."""

    code: str
    """A stable name for programs, e.g. `not_found`."""
    message: str
    """What happened to which thing."""
    hint: str
    """What to do, e.g. the next command to type; may be empty."""
    detail: NotRequired[str]
    """More text, e.g. a traceback or the last lines of a log."""


class Error(TypedDict):
    """The body of every error."""

    error: Problem


def complete(app: FastAPI) -> None:
    """Let an application make the whole document."""
    made = app.openapi

    def openapi() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(made(), declared(app.routes))
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend the document


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    """Path, method and operation of everything in a document."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def _completed(document: Json, routes: list[Route]) -> Json:
    shown = [route for route in routes if route.include_in_schema]
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)  # FastAPI's own errors: ours have another shape
    schemas |= _schemas(frozenset([Error, *(_item(_model(route)) for route in shown)]))
    document["info"]["description"] = ABOUT
    used = {tag for route in shown for tag in route.tags}
    document["tags"] = [{"name": name, "description": text} for name, text in TAGS.items() if name in used]
    bearer = {"type": "http", "scheme": "bearer", "description": "A key: `puna key create` makes one."}
    document["components"]["securitySchemes"] = {"key": bearer}
    for route in shown:
        method = next(iter(route.methods or ())).lower()
        operation = document["paths"][route.path_format][method]
        operation["security"] = [] if route.needs is Right.OPEN else [{"key": [route.needs.scope]}]
        _answer(route, operation)
        _ask(route, method, operation)
        _refuse(route, method, operation)
    _settings(schemas, document["paths"])
    return document


def _model(route: Route) -> Any:
    """The type of a route's answer; a text is the media type of what is no JSON.

    Raises:
        TypeError: it declares none.
    """
    model = route.answer.model or get_type_hints(route.handler).get("return")
    if model is None or (isinstance(model, type) and issubclass(model, Response)):
        raise TypeError(f"{route.path} does not say what it answers: give its handler a return type, or its Answer")
    return model


def _item(model: Any) -> Any:
    """The model, or that of a list's items."""
    return get_args(model)[0] if get_origin(model) is Listed else model


@functools.cache
def _schemas(models: frozenset[Any]) -> Json:
    """The schema of each model, and of all in them, by its name; closed to other keys."""
    kinds = sorted((model for model in models if not isinstance(model, str)), key=lambda model: model.__name__)
    config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    inputs: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]]
    inputs = [(kind.__name__, "serialization", TypeAdapter(tuple[kind], config=config)) for kind in kinds]  # type: ignore[valid-type]
    found: Json = TypeAdapter.json_schemas(inputs, ref_template=REF + "{model}")[1]["$defs"]
    for kind in kinds:
        for base in get_original_bases(kind):  # texts of inherited keys: pydantic reads those of the class alone
            for key, value in found.get(base.__name__, {}).get("properties", {}).items():
                if "description" in value:
                    found[kind.__name__]["properties"][key].setdefault("description", value["description"])
    for schema in found.values():
        for key, value in schema.get("properties", {}).items():
            if value.pop("default", ...) is not ...:  # of a record: it is always answered
                schema["required"].append(key)
    return found


def _answer(route: Route, operation: Json) -> None:
    """Say what comes when all is well."""
    model, content = _model(route), {}
    if isinstance(model, str):
        schema = {"type": "string", "format": "binary"} if model.endswith("octet-stream") else {"type": "string"}
        content = {model: {"schema": schema}}
    elif get_origin(model) is Listed:
        items = {"type": "array", "items": {"$ref": REF + _item(model).__name__}}
        following = {"type": ["string", "null"], "description": "The `after` of the next page; null at the end."}
        page: Json = {"type": "object", "properties": {"items": items, "next": following}}
        page |= {"required": ["items", "next"], "additionalProperties": False}
        content = {"application/json": {"schema": page}}
    else:
        content = {"application/json": {"schema": {"$ref": REF + model.__name__}}}
    said = {route.answer.status: "Done."} | dict(route.answer.also or {})
    operation["responses"] = {str(status): {"description": text, "content": content} for status, text in said.items()}


def _ask(route: Route, method: str, operation: Json) -> None:
    """Say what a caller may send beside what FastAPI knows."""
    parameters = operation.setdefault("parameters", [])
    if route.own_body is not None:
        media_type = route.own_body.media_type
        schema: Json = {} if media_type == "application/json" else {"type": "string", "format": "binary"}
        content = {media_type: {"schema": schema}}
        operation["requestBody"] = {"required": True, "description": route.own_body.description, "content": content}
    if method != "get" and operation["security"]:
        schema = {"type": "string", "pattern": KEY}
        about = "The same call with the same key within a day gets the first answer, and is not done again."
        key = {"name": "Idempotency-Key", "in": "header", "required": False, "schema": schema, "description": about}
        parameters.append(key)
    if not parameters:
        del operation["parameters"]


def _refuse(route: Route, method: str, operation: Json) -> None:
    """Say which errors there may be."""
    statuses = {500, 503, *route.answer.refuses}
    if operation["security"]:
        statuses |= {401, 403}
    if operation.get("parameters") or "requestBody" in operation:
        statuses.add(400)
    if "{" in route.path or "requestBody" in operation:
        statuses.add(404)
    if method != "get":
        statuses |= {401, 403, 409, 413, 507}
    if method != "get" and operation["security"]:
        statuses.add(422)
    for status in sorted(statuses):
        error = {"application/json": {"schema": {"$ref": f"{REF}Error"}}}
        operation["responses"][str(status)] = {"description": REFUSALS[status], "content": error}


def _settings(schemas: Json, paths: Json) -> None:
    """Settings as they are shown, and as they are sent: any of them, null for what stays as it is."""
    shown: Json = Settings.model_json_schema()
    for schema in shown["properties"].values():
        del schema["title"]
        schema.pop("default", None)
        if "description" in schema:
            schema["description"] = " ".join(schema["description"].split())
    shown |= {"required": list(shown["properties"])}
    sent = {name: {"anyOf": [schema, {"type": "null"}]} for name, schema in shown["properties"].items()}
    git = {name: {"type": "string"} for name in sorted(GIT - {"commit"})}
    sent["git"] = {"anyOf": [{"type": "object", "properties": git, "additionalProperties": False}, {"type": "null"}]}
    schemas["Settings"] = shown
    about = "Settings to change; null, or not there, is as it was."
    schemas["NewSettings"] = {"type": "object", "properties": sent, "additionalProperties": False, "description": about}
    for model in ("Endpoint", "PatchedEndpoint"):
        schemas[model]["properties"]["settings"] = {"$ref": f"{REF}Settings"}
    for body in ("Deploy", "PlannedDeploy"):
        schemas[body]["properties"]["settings"] = {"$ref": f"{REF}NewSettings"}
    patch = paths["/api/v1/endpoints/{name}"]["patch"]["requestBody"]["content"]["application/json"]
    patch["schema"] = {"$ref": f"{REF}NewSettings"}
