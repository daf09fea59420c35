"""`puna webhook`: what a repository is to call after a push, and what it has said so far."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from puna.cli import output
from puna.cli.options import AsJson, EndpointName


def webhook(
    name: EndpointName,
    auto_rebuild: Annotated[
        bool | None, typer.Option("--auto-rebuild/--no-auto-rebuild", help="Deploy each push.", show_default=False)
    ] = None,
    poll: Annotated[
        float | None, typer.Option(help="Ask for new commits every so many seconds; 0: never.", show_default=False)
    ] = None,
    replay: Annotated[int | None, typer.Option(help="Do as if this delivery came now.", show_default=False)] = None,
    json: AsJson = False,
) -> None:
    """Show address and secret for a repository's settings, and the deliveries so far; or change and repeat."""
    from puna.client import Client

    changes = {"auto_rebuild": auto_rebuild, "poll_s": poll}
    changes = {key: value for key, value in changes.items() if value is not None}
    with Client() as client:
        if changes:
            client.patch(name, **changes)
        if replay is not None:
            client.replay_delivery(name, replay)
        told, deliveries = client.webhook(name), client.deliveries(name)
    if json:
        output.data({**told, "deliveries": deliveries})
        return
    git = told["git"]
    if not git:
        output.line(f"{name} is not built from a repository: puna deploy --git URL --name {name}")
        return
    output.line(f"repository: {git['url']} {git.get('branch', '')} at commit {git.get('commit', '?')[:12]}")
    output.line(f"pushes:     {_pushes(name, told)}")
    output.line(f"url:        {told['url']}")
    output.line(f"secret:     {told['secret']}")
    output.line("content:    application/json, push events")
    rows = [_delivery_row(one) for one in deliveries]
    output.table(("delivery", "at", "from", "outcome", "revision", "commit", "why"), rows, empty="nothing came yet")


def _pushes(name: str, told: dict[str, Any]) -> str:
    if not told["auto_rebuild"]:
        return f"are not deployed: puna webhook {name} --auto-rebuild"
    return "are deployed" + (f"; it is asked every {told['poll_s']:g} s as well" if told["poll_s"] else "")


def _delivery_row(one: dict[str, Any]) -> tuple[Any, ...]:
    at = datetime.fromtimestamp(one["at"]).strftime("%m-%d %H:%M:%S")
    outcome = f"{one['outcome']}, {one['state']}" if one["state"] else one["outcome"]
    sender = f"{one['sender']} {one['event']}".strip()
    return (one["id"], at, sender, outcome, one["revision"] or "", one["commit"][:12], one["message"])
