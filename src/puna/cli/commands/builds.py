"""`puna build`: what the builder does and did, and how to stop it."""

from __future__ import annotations

from typing import Annotated

import typer

from puna.cli import output
from puna.cli.options import AsJson

build_app = typer.Typer(no_args_is_help=True, add_completion=False)
BuildId = Annotated[str, typer.Argument(help="The build's id, as `puna build list` shows it.", show_default=False)]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the build ends.")]


@build_app.command("list")
def list_builds(json: AsJson = False) -> None:
    """List the latest builds."""
    from puna.client import Client

    with Client() as client:
        found = client.builds()
    if json:
        output.data(found)
        return
    rows = [(b["id"], b["kind"], f"{b['subject']} {b['number']}", b["status"], b["error"]) for b in found]
    output.table(("build", "kind", "of", "status", "error"), rows, empty="nothing was built yet: puna deploy FOLDER")


@build_app.command("show")
def show_build(build: BuildId, json: AsJson = False) -> None:
    """Show a build: its steps with their seconds, and why it failed."""
    from puna.client import Client

    with Client() as client:
        found = client.build(build)
    if json:
        output.data(found)
        return
    output.pairs(
        {key: found[key] for key in ("id", "kind", "subject", "number", "status", "error", "hint") if found[key]}
    )
    steps = [(s["name"], s["state"], "" if s["seconds"] is None else f"{s['seconds']:.1f}") for s in found["steps"]]
    output.table(("step", "state", "seconds"), steps)


@build_app.command("log")
def build_log(build: BuildId, follow: Follow = False) -> None:
    """Print a build's output."""
    from puna.client import Client

    with Client() as client:
        for line in client.build_log(build, follow):
            output.line(line)


@build_app.command("cancel")
def cancel_build(build: BuildId, json: AsJson = False) -> None:
    """Stop a build: one that waits at once, one under way within seconds; what serves goes on."""
    from puna.client import Client

    with Client() as client:
        done = client.cancel_build(build)
    output.data(done) if json else output.line(f"build {build} of {done['subject']} is being stopped")
