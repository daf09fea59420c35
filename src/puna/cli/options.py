"""Options that several commands share, written once."""

from __future__ import annotations

from typing import Annotated

import typer

from puna.errors import UsageError

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is done.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds to wait at most.")]
EndpointName = Annotated[str, typer.Argument(help="The endpoint's name.", show_default=False)]
RunName = Annotated[str, typer.Argument(help="A run's name, or `last`.", show_default=False)]


def pairs(words: list[str], hint: str) -> dict[str, str]:
    """`NAME=VALUE` words as a mapping; the last of a name counts.

    Raises:
        UsageError: a word has no `=`; with `hint`.
    """
    for word in words:
        if "=" not in word:
            raise UsageError(f"{word!r} is not NAME=VALUE", hint)
    return dict(word.split("=", 1) for word in words)
