"""The OpenAPI document: complete, and true of the application, which is called with what the document allows and more.

Streams that never end are held to the document by a test of their own: a generated call would wait for their end.
"""

from __future__ import annotations

import atexit
import contextlib
import difflib
import functools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from control.place import Place, document, furnished
from puna.config.ranges import OVER_ZERO, RANGES
from puna.control.api import openapi
from puna.control.api.app import create_app
from puna.control.domain.records import Settings
from puna.control.store.store import Store
from puna.errors import UsageError
from puna.home import Home

EXAMPLES = int(os.environ.get("PUNA_FUZZ_EXAMPLES", "6"))
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
GOLDEN = Path(__file__).with_name("openapi.json")
ENDLESS = {"get_stream"}
"""What never ends, whatever is sent."""


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place that is only read."""
    yield from furnished(tmp_path_factory.mktemp("read"))


@pytest.fixture
def place(operation_id: str, read: Place, tmp_path: Path) -> Iterator[Place]:
    """A place in which the operation can do what it does: one of its own when it changes something."""
    method = next(method for _, method, operation in operations() if operation["operationId"] == operation_id)
    if method == "get":
        yield read
    else:
        yield from furnished(tmp_path)


@functools.cache
def operations() -> list[tuple[str, str, dict[str, Any]]]:
    return list(openapi.operations(document()))


def ids() -> list[str]:
    return [operation["operationId"] for _, _, operation in operations()]


@functools.cache
def described() -> dict[str, Any]:
    """Every operation of the application's document by its id, as schemathesis reads it: from an empty application."""
    root = tempfile.mkdtemp(prefix="puna-described-")
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    home = Home(Path(root) / "home")
    store = Store(f"sqlite:///{home.database}")
    atexit.register(store.close)
    loaded = schemathesis.openapi.from_asgi("/api/openapi.json", create_app(store, home))
    every = [found.ok() for found in loaded.get_all_operations()]
    return {found.definition.raw["operationId"]: found for found in every}


@pytest.mark.parametrize("operation_id", sorted(set(ids()) - ENDLESS))
def test_the_application_keeps_to_its_document(place: Place, operation_id: str) -> None:
    operation = described()[operation_id]
    real = next((names for part, names in place.names.items() if f"/api/v1{part}" in operation.path), {})
    bounded = settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

        @bounded
        @given(case=operation.as_strategy(generation_mode=mode), is_real=st.booleans())
        def hold(case: Any, is_real: bool) -> None:
            if is_real:
                case.path_parameters.update({k: v for k, v in real.items() if k in case.path_parameters})
            if isinstance(case.query, dict) and "follow" in case.query:
                case.query["follow"] = False  # logs that are followed do not end
            case.call_and_validate(app=place.app, checks=CHECKS)

        with contextlib.suppress(Unsatisfiable):  # nothing of it can be wrong
            hold()


NASTY: list[Any] = [
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    10**30,
    1e308,
    "",
    "\0",
    "a\0b",
    "\ud800",
    "..",
    "../..",
    "x" * 5000,
]
NASTY += [
    "\u0663",
    "\u202e\U0001f999",
    "' OR 1=1 --",
    "%00",
    "{}",
    [],
    {},
    [None],
    {"": None},
    [["a"] * 50],
    {"a": {"b": {}}},
]


def bodies(schema: dict[str, Any], components: dict[str, Any]) -> Iterator[Any]:
    """Bodies in which one thing is nasty, all else being plausible."""
    schema = components[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    if "anyOf" in schema:
        for one in schema["anyOf"]:
            yield from bodies(one, components)
    plain = {
        "name": "app",
        "yaml": "build: {}",
        "scope": ["infer"],
        "values": {"A": "1"},
        "source": "a" * 64,
        "url": "u",
    }
    plain |= {"version": 1, "token": "t", "model": "acme/chat"}
    known = {
        key: plain[key] for key in schema.get("properties", {}) if key in plain and key in schema.get("required", ())
    }
    for value in NASTY:
        yield value
        for key in schema.get("properties", {}):
            yield {**known, key: value}
            if isinstance(value, str | None):
                yield {**known, key: {"a": value}}
                yield {**known, key: [value]}


def urls(path: str, real: dict[str, Any]) -> Iterator[str]:
    """Addresses in which one name is nasty, all else being there."""
    parts = ["%00", "a%00b", "%ff", "%ed%a0%80", "..", "%2e%2e", "..%2f..", "x" * 3000, "%D9%A3", "-1", "0", "1e3"]
    parts += [
        str(2**31),
        str(2**63),
        "9" * 400,
        "%F0%9F%A6%99",
        "%20",
        "a/b",
        "*",
        "%25",
        "null",
        "\u0663".encode().hex(),
    ]
    names = re.findall(r"{(\w+)}", path)
    for name in names:
        for part in parts:
            yield path.format(**{other: real.get(other, "x") for other in names} | {name: part})
    if not names:
        yield path


@pytest.mark.parametrize("operation_id", sorted(set(ids()) - ENDLESS))
def test_nothing_that_is_sent_breaks_it(place: Place, operation_id: str) -> None:
    path, method, operation = next(o for o in operations() if o[2]["operationId"] == operation_id)
    real = next((names for part, names in place.names.items() if f"/api/v1{part}" in path), {})
    calls: list[tuple[str, dict[str, Any]]] = [(url, {}) for url in urls(path, real)]
    here = path.format(**{name: real.get(name, "x") for name in re.findall(r"{(\w+)}", path)})
    for parameter in operation.get("parameters", ()):
        for value in NASTY:
            text = json.dumps(value) if isinstance(value, list | dict) else str(value)
            if parameter["in"] == "query":
                calls.append((f"{here}?{parameter['name']}={quote(text.encode(errors='surrogatepass'))}", {}))
    media = operation.get("requestBody", {}).get("content", {})
    if "application/json" in media:
        headers = {"content-type": "application/json"}
        for body in bodies(media["application/json"]["schema"], document()["components"]["schemas"]):
            calls.append((here, {"content": json.dumps(body).encode(), "headers": headers}))
        for raw in (b"", b"{", b"[" * 5000, b"\xff", b'{"a":1}' * 2, b"NaN", b'{"a":Infinity}', b"null", b"9" * 5000):
            calls.append((here, {"content": raw, "headers": headers}))
    broken = []
    with TestClient(place.app, raise_server_exceptions=False) as api:
        for url, more in calls:
            if "follow=" in url:
                continue  # followed logs do not end
            reply = api.request(method.upper(), url, **more)
            is_told = str(reply.status_code) in operation["responses"] or url.partition("?")[0] != here
            if reply.status_code >= 500 or not is_told:
                broken.append((url[:120], str(more.get("content", b""))[:120], reply.status_code, reply.text[:200]))
    assert not broken, "\n".join(map(str, broken))


def test_the_document_says_all_of_every_operation() -> None:
    named = [operation["operationId"] for _, _, operation in openapi.operations(document())]
    assert len(named) == len(set(named)) and set(named) == set(openapi.ANSWERS)
    tags = {tag["name"] for tag in document()["tags"]}
    for path, method, operation in openapi.operations(document()):
        where = f"{method} {path}"
        assert path.startswith("/api/v1/") and operation["summary"] and operation["description"], where
        assert operation["tags"] and set(operation["tags"]) <= tags, where
        assert operation["security"] in ([{"key": []}], []), where
        for status, answer in operation["responses"].items():
            schemas = [content["schema"] for content in answer["content"].values()]
            assert schemas and {} not in schemas and answer["description"], (where, status)
            if status >= "400":
                assert schemas == [{"$ref": "#/components/schemas/Error"}], (where, status)
        for parameter in operation.get("parameters", ()):
            assert parameter["schema"].get("type") or parameter["schema"].get("anyOf"), (where, parameter)
    free = {path for path, _, operation in openapi.operations(document()) if not operation["security"]}
    assert free == {"/api/v1/health", "/api/v1/console/sessions", "/api/v1/hooks/{name}"}


def test_the_document_differs_from_the_golden_one_only_where_it_is_meant_to() -> None:
    served = document() | {"info": {**document()["info"], "version": ""}}
    text = json.dumps(served, indent=1, sort_keys=True) + "\n"
    if os.environ.get("PUNA_WRITE_GOLDEN"):
        GOLDEN.write_text(text)
    now, before = text.splitlines(), GOLDEN.read_text().splitlines()
    lines = list(difflib.unified_diff(before, now, "openapi.json", "served", lineterm=""))
    assert not lines, "\n".join(["if this is meant, `make openapi` writes it:", *lines[:200]])


def test_objects_of_the_document_are_closed() -> None:
    for name, schema in document()["components"]["schemas"].items():
        if "properties" in schema:
            assert schema.get("additionalProperties") is False, name


@pytest.mark.parametrize("name", RANGES)
def test_ranges_are_where_the_settings_refuse(name: str) -> None:
    low, high = RANGES[name]
    room = {"max_replica": 1000} if name == "min_replica" else {}
    for value in (high, 0.001 if name in OVER_ZERO else low):
        if name != "poll_s" or value in (0, high):
            Settings(**{"min_replica": 0, **room, name: value})  # type: ignore[arg-type]
    for value in (low - 1, high + 1):
        with pytest.raises(UsageError, match=name):
            Settings(**{"min_replica": 0, **room, name: value})  # type: ignore[arg-type]
