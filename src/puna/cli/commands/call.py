"""`puna call` and `puna usage`: one request to an endpoint from plain words, and requests added up."""

from __future__ import annotations

import json as jsons
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from puna.cli import credentials, output
from puna.cli.options import AsJson, EndpointName, Timeout, pairs
from puna.client import Client
from puna.config import schema
from puna.errors import UsageError


@dataclass(frozen=True)
class CallReply:
    """An endpoint's answer: name -> value, or values when there are several; and how long it took."""

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


def usage(
    endpoint: Annotated[str | None, typer.Argument(help="Only this endpoint.", show_default=False)] = None,
    since: Annotated[str, typer.Option(help="From when: 24h, 7d, a date, ISO 8601.")] = "30d",
    until: Annotated[str, typer.Option(help="To when; now if not given.", show_default=False)] = "",
    by: Annotated[str, typer.Option(help="One or more of endpoint, key, day, hour.")] = "endpoint",
    csv: Annotated[Path | None, typer.Option(help="Write a table for spreadsheets here.", show_default=False)] = None,
    json: AsJson = False,
) -> None:
    """Show what was asked of endpoints and what they held of GPUs, by whole hours (UTC)."""
    asked = {"since": since, "until": until, "by": by, "endpoint": endpoint or ""}
    with Client() as client:
        if csv is not None:
            text = client.usage_csv(**asked)
            try:
                csv.write_text(text, encoding="utf-8", newline="")
            except OSError as error:
                raise UsageError(f"{csv} cannot be written: {error.strerror}", "choose another --csv FILE") from None
            output.data({"written": str(csv)}) if json else output.line(f"written: {csv}")
            return
        found = client.usage(**asked)
    if json:
        output.data(found)
        return
    words = found["by"]
    headings = (*words, "requests", "failed", "infer s", "GPU s")
    rows = [(*(_cell(item, word) for word in words), *_figures(item)) for item in found["items"]]
    if len(rows) > 1:
        rows.append(("total", *("" for _ in words[1:]), *_figures(found["total"])))
    output.table(headings, rows, empty="nothing was asked in that time: puna call NAME")


def _cell(item: dict[str, Any], word: str) -> str:
    if word == "key":
        return f"{item['key_name']} {item['key']}".strip()
    if word == "endpoint":
        return str(item["endpoint"])
    at = datetime.fromtimestamp(item["start"], UTC)
    return at.strftime("%Y-%m-%d" if word == "day" else "%Y-%m-%d %H:00")


def _figures(item: dict[str, Any]) -> tuple[str, ...]:
    return (f"{item['requests']:,}", f"{item['failed']:,}", f"{item['infer_s']:,.1f}", f"{item['gpu_s']:,.1f}")
