"""`puna runtime`: environments with a name and versions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from puna.cli import output
from puna.cli.options import AsJson, Wait

app = typer.Typer(no_args_is_help=True, add_completion=False)
RuntimeFile = Annotated[Path, typer.Argument(help="inferless-runtime-config.yaml.", show_default=False)]
RuntimeName = Annotated[
    str | None, typer.Option("--name", help="The runtime's name; the folder's when not given.", show_default=False)
]


@app.command()
def upload(file: RuntimeFile, name: RuntimeName = None, wait: Wait = True, json: AsJson = False) -> None:
    """Build a runtime from its file, with its log; a new version of it when the name is taken."""
    from puna import pipeline
    from puna.client import Client

    with Client() as client:
        chosen = name or file.resolve().parent.name
        done = pipeline.upload_runtime(client, file, chosen, output.Watch(quiet=json), wait=wait)
        if json:
            output.data(done)
        else:
            output.line(f"runtime {done['name']} version {done['version']} is {done['status']} ({done['digest'][:16]})")
            output.line(f"next: puna deploy {file.parent}")


# The platform's newer CLI calls it `create`.
app.command("create", hidden=True)(upload)


@app.command("list")
def list_runtimes(json: AsJson = False) -> None:
    """List runtimes and their versions."""
    from puna.client import Client

    with Client() as client:
        found = client.runtimes()
    if json:
        output.data(found)
        return
    rows = [(r["name"], r["version"], r["status"], r["digest"][:16]) for r in found]
    output.table(("runtime", "version", "status", "digest"), rows, empty="no runtimes yet: puna runtime upload FILE")


@app.command()
def show(name: Annotated[str, typer.Argument(help="The runtime's name.")], json: AsJson = False) -> None:
    """Show a runtime's newest version."""
    from puna.client import Client

    with Client() as client:
        found = client.runtime(name)
    output.data(found) if json else output.pairs(found)
