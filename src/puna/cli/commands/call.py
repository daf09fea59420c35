"""`puna call`: one request to an endpoint, from plain words."""

from __future__ import annotations

import json as jsons
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from puna.cli import credentials, output
from puna.cli.options import AsJson, EndpointName, Timeout, pairs
from puna.errors import UsageError

if TYPE_CHECKING:
    from puna.client import Client


@dataclass(frozen=True)
class CallReply:
    """What an endpoint answered: name -> value, or values when there are several; and how long it took."""

    outputs: Mapping[str, Any]
    seconds: float
    headers: Mapping[str, str]


def call(
    name: EndpointName,
    inputs: Annotated[
        list[str] | None, typer.Argument(help="NAME=VALUE, or NAME=@FILE; the schema's examples when none.")
    ] = None,
    timeout: Timeout = 900,
    json: AsJson = False,
) -> None:
    """Call an endpoint: puna call my-app prompt="What is AI?"."""
    from puna.client import Client

    with Client() as client:
        reply = infer(client, name, _inputs(inputs or []), timeout)
    if json:
        waits = {k: v for k, v in reply.headers.items() if k.startswith("x-puna-")}
        output.data({"outputs": reply.outputs, "seconds": round(reply.seconds, 4), "headers": waits})
        return
    for key, value in reply.outputs.items():
        text = value if isinstance(value, str) else jsons.dumps(value)
        output.line(text if len(reply.outputs) == 1 else f"{key}: {text}")
    output.note(f"{reply.seconds:.3f} s")


def infer(client: Client, name: str, values: Mapping[str, Any], timeout_s: float = 900) -> CallReply:
    """Call an endpoint with plain values; without any, with its schema's examples.

    Raises:
        SchemaError: an input is unknown, missing or of the wrong type.
        PunaError: the kind that stands for the reply's status.
    """
    from puna.config import schema

    described = schema.from_json(client.endpoint(name)["schema"] or {"inputs": []})
    body = described.request_from_pairs(values) if values else described.example_request()
    key = client.key or credentials.key_for(client, name)
    began = time.perf_counter()
    answer, headers = client.infer_with_headers(name, body["inputs"], key=key, timeout_s=timeout_s)
    seconds = time.perf_counter() - began
    outputs = {out["name"]: out["data"][0] if out["shape"] == [1] else out["data"] for out in answer["outputs"]}
    return CallReply(outputs, seconds, headers)


def _inputs(words: list[str]) -> dict[str, str]:
    found = pairs(words, 'puna call my-app prompt="What is AI?"')
    for key, value in found.items():
        if value.startswith("@"):
            try:
                with open(value[1:], encoding="utf-8") as file:
                    found[key] = file.read()
            except OSError as error:
                raise UsageError(f"{value[1:]} cannot be read: {error.strerror}", "check the path") from None
    return found
