"""`puna console`: a link that opens the web console, once."""

from __future__ import annotations

from typing import Annotated

import typer

from puna.cli import output
from puna.cli.options import AsJson
from puna.client import Client


def console(
    browse: Annotated[bool, typer.Option("--open", help="Open it in this machine's browser.")] = False,
    json: AsJson = False,
) -> None:
    """Print a one-time link to the console; it signs whoever opens it in as administrator for twelve hours."""
    with Client() as client:
        made = client.console_link()
    if json:
        output.data(made)
    else:
        output.line(made["url"])
        output.note(f"it works once, within {made['expires_s'] / 60:.0f} minutes")
    if browse:
        import webbrowser

        webbrowser.open(made["url"])
