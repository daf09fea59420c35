"""Options that several commands share, written once."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is done.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds to wait at most.")]
EndpointName = Annotated[str, typer.Argument(help="The endpoint's name.", show_default=False)]
RunName = Annotated[str, typer.Argument(help="A run's name, or `last`.", show_default=False)]
