"""`puna traffic`, `promote` and `diff`: who gets an endpoint's requests, and what differs between its revisions."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from puna.cli import output, packages
from puna.cli.options import AsJson, EndpointName, Wait, pairs
from puna.errors import UsageError

Shares = Annotated[list[str] | None, typer.Argument(help="REVISION=PERCENT; what is left is what serves'.")]
Number = Annotated[int, typer.Argument(help="A revision.", show_default=False)]


def traffic(name: EndpointName, shares: Shares = None, wait: Wait = True, json: AsJson = False) -> None:
    """Divide the requests between two revisions, e.g. 3=90 4=10; without shares, show who gets how much."""
    from puna.client import Client

    asked = _shares(name, shares or [])
    with Client() as client:
        if asked:
            done = client.set_traffic(name, asked)
            if wait:
                client.wait_for_traffic(name, done["revision"], done["percent"])
        found = client.endpoint(name)
    _show_traffic(found, json)


def promote(
    name: EndpointName,
    revision: Annotated[int | None, typer.Argument(help="Which; the second one when not given.")] = None,
    wait: Wait = True,
    json: AsJson = False,
) -> None:
    """Give a revision all requests; the other one is drained and retired."""
    from puna.client import Client

    with Client() as client:
        done = client.promote(name, revision)
        if wait:
            client.wait_for_traffic(name, done["revision"], done["percent"])
        found = client.endpoint(name)
    _show_traffic(found, json)


def diff(name: EndpointName, before: Number, after: Number, json: AsJson = False) -> None:
    """Show what changed from one revision to another: settings, packages, files."""
    from puna.client import Client

    with Client() as client:
        found = client.diff(name, before, after)
    if json:
        output.data(found)
        return
    commits = [found[side]["commit"] for side in ("from", "to")]
    if any(commits):
        output.line(f"commit: {' -> '.join((commit or 'none')[:12] for commit in commits)}")
    headings = ("setting", f"revision {before}", f"revision {after}")
    rows = [(one["name"], one["before"], one["after"]) for one in found["settings"]]
    output.table(headings, rows, empty="the settings are the same")
    packages.show(found["packages"], f"revision {before}", f"revision {after}")
    if found["files"] is None:
        output.line("their files are not compared: one of the two sources has been cleared away")
        return
    for one in found["files"]:
        output.line(f"{one['change']}: {one['path']}" + (f" ({one['why']})" if one["why"] else ""))
        if one["lines"]:
            output.line(one["lines"])
    if not found["files"]:
        output.line("the files are the same")
    if found["is_cut"]:
        output.line("more files differ than are shown")


def _shares(name: str, words: list[str]) -> dict[int, int]:
    example = f"puna traffic {name} 3=90 4=10"
    try:
        return {int(number): int(share.removesuffix("%")) for number, share in pairs(words, example).items()}
    except ValueError:
        raise UsageError(f"{' '.join(words)!r}: shares are whole percent, by revision", example) from None


def _show_traffic(endpoint: dict[str, Any], json: bool) -> None:
    if json:
        output.data(endpoint)
        return
    rows = []
    for one in endpoint["traffic"]:
        share = f"{one['percent']} %" + (f", to have {one['wanted']} %" if one["wanted"] != one["percent"] else "")
        ready = [r for r in endpoint["replicas"] if r["revision"] == one["revision"] and r["state"] == "ready"]
        figures = [one.get(key, "") for key in ("requests", "errors", "p50_ms", "p95_ms")]
        rows.append((one["revision"], share, len(ready), *figures))
    headings = ("revision", "requests", "ready", "answered", "errors", "p50 ms", "p95 ms")
    output.table(headings, rows, empty="nothing serves yet")
