"""The OpenAPI document: complete, and true of the application, which is sent what is wrong in every way.

What the document itself allows is generated in test_generated.py. Streams that never end are held to the document by a
test of their own.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from control.place import Place, document, ending, furnished, operations
from puna.config.settings import RANGES
from puna.control.api import openapi

GOLDEN = Path(__file__).with_name("openapi.json")


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


Call = tuple[str, dict[str, Any]]


def calls_of(path: str, operation: dict[str, Any], real: dict[str, Any]) -> list[Call]:
    """Calls of an operation in which one thing is nasty: a name, a parameter or a part of the body."""
    calls: list[Call] = [(url, {}) for url in urls(path, real)]
    here = address(path, real)
    for parameter in operation.get("parameters", ()):
        for value in NASTY:
            text = json.dumps(value) if isinstance(value, list | dict) else str(value)
            if parameter["in"] == "query" and parameter["name"] != "follow":  # followed logs do not end
                calls.append((f"{here}?{parameter['name']}={quote(text.encode(errors='surrogatepass'))}", {}))
    media = operation.get("requestBody", {}).get("content", {})
    if "application/json" in media:
        headers = {"content-type": "application/json"}
        for body in bodies(media["application/json"]["schema"], document()["components"]["schemas"]):
            calls.append((here, {"content": json.dumps(body).encode(), "headers": headers}))
        for raw in (b"", b"{", b"[" * 5000, b"\xff", b'{"a":1}' * 2, b"NaN", b'{"a":Infinity}', b"null", b"9" * 5000):
            calls.append((here, {"content": raw, "headers": headers}))
    return calls


def address(path: str, real: dict[str, Any]) -> str:
    return path.format(**{name: real.get(name, "x") for name in re.findall(r"{(\w+)}", path)})


async def broken(place: Place, operation_id: str, every: int = 1) -> list[tuple[object, ...]]:
    """Make the nasty calls of an operation, or each `every`th: those that break it or are answered as it never says."""
    path, method, operation = operations()[operation_id]
    real = place.real(path)
    found: list[tuple[object, ...]] = []
    transport = httpx.ASGITransport(place.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as api:
        for url, more in calls_of(path, operation, real)[::every]:
            reply = await api.request(method.upper(), url, **more)
            is_told = str(reply.status_code) in operation["responses"] or url.partition("?")[0] != address(path, real)
            if reply.status_code >= 500 or not is_told:
                content = str(more.get("content", b""))[:120]
                found.append((operation_id, url[:120], content, reply.status_code, reply.text[:200]))
    return found


def test_no_operation_is_broken_by_a_sample_of_what_may_be_sent(tmp_path: Path) -> None:
    async def all_of_them(place: Place) -> list[tuple[object, ...]]:
        return [one for operation_id in ending() for one in await broken(place, operation_id, every=29)]

    for place in furnished(tmp_path):
        found = asyncio.run(all_of_them(place))
        assert not found, "\n".join(map(str, found))


@pytest.mark.process
@pytest.mark.parametrize("operation_id", ending())
def test_nothing_that_is_sent_breaks_it(place: Place, operation_id: str) -> None:
    found = asyncio.run(broken(place, operation_id))
    assert not found, "\n".join(map(str, found))


def test_the_document_says_all_of_every_operation() -> None:
    named = [operation["operationId"] for _, _, operation in openapi.operations(document())]
    assert len(named) == len(set(named)) > 60
    tags = {tag["name"] for tag in document()["tags"]}
    for path, method, operation in openapi.operations(document()):
        where = f"{method} {path}"
        assert path.startswith("/api/v1/") and operation["summary"] and operation["description"], where
        assert operation["tags"] and set(operation["tags"]) <= tags, where
        assert operation["security"] in ([{"key": ["deploy"]}], [{"key": ["admin"]}], []), where
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
def test_ranges_are_those_of_the_settings(name: str) -> None:
    ends = ("minimum", "exclusiveMinimum", "maximum")
    shown = document()["components"]["schemas"]["Settings"]["properties"][name]
    sent = document()["components"]["schemas"]["NewSettings"]["properties"][name]["anyOf"]
    said = RANGES[name]
    low = {"exclusiveMinimum" if said.is_over else "minimum": said.low}
    assert {key: value for key, value in shown.items() if key in ends} == {**low, "maximum": said.high}
    assert sent == [shown, {"type": "null"}] and shown["description"]
