"""`puna usage`: requests and GPU-seconds, by endpoint, key, day or hour."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from puna.cli import output
from puna.cli.options import AsJson
from puna.errors import UsageError


def usage(
    endpoint: Annotated[str | None, typer.Argument(help="Only this endpoint.", show_default=False)] = None,
    since: Annotated[str, typer.Option(help="From when: 24h, 7d, a date, ISO 8601.")] = "30d",
    until: Annotated[str, typer.Option(help="To when; now if not given.", show_default=False)] = "",
    by: Annotated[str, typer.Option(help="One or more of endpoint, key, day, hour.")] = "endpoint",
    csv: Annotated[Path | None, typer.Option(help="Write a table for spreadsheets here.", show_default=False)] = None,
    json: AsJson = False,
) -> None:
    """Show what was asked of endpoints and what they held of GPUs, by whole hours (UTC)."""
    from puna.client import Client

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
    rows = [_usage_row(item, words) for item in found["items"]]
    if len(rows) > 1:
        rows.append(("total", *("" for _ in words[1:]), *_figures(found["total"])))
    output.table(headings, rows, empty="nothing was asked in that time: puna call NAME")


def _usage_row(item: dict[str, Any], words: list[str]) -> tuple[str, ...]:
    return (*(_cell(item, word) for word in words), *_figures(item))


def _cell(item: dict[str, Any], word: str) -> str:
    if word == "key":
        return f"{item['key_name']} {item['key']}".strip()
    if word == "endpoint":
        return str(item["endpoint"])
    at = datetime.fromtimestamp(item["start"], UTC)
    return at.strftime("%Y-%m-%d" if word == "day" else "%Y-%m-%d %H:00")


def _figures(item: dict[str, Any]) -> tuple[str, ...]:
    return (f"{item['requests']:,}", f"{item['failed']:,}", f"{item['infer_s']:,.1f}", f"{item['gpu_s']:,.1f}")
