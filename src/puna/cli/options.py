"""Options that several commands share, written once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Annotated, Any

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


def takes_settings(names: Iterable[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of some settings of an endpoint; those that were given come as its `settings`.

    Type, text and range of each are the setting's own, and a value outside is refused before anything is done.
    """
    from puna.config.reading import Origin
    from puna.config.settings import Settings, check, setting

    options = {name: setting(name).option.split() for name in names}
    origin = Origin(words={name: words[0] for name, words in options.items()})

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**given: Any) -> None:
            said = {name: value for name in options if (value := given.pop(name)) is not None}
            check(said, origin)
            command(**given, settings=said)

        signature = inspect.signature(command, eval_str=True)
        own = [one for one in signature.parameters.values() if one.name != "settings"]
        made = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[
                    Settings.model_fields[name].annotation | None,  # type: ignore[operator]
                    typer.Option(*words, help=_help(name), show_default=False),
                ],
            )
            for name, words in options.items()
        ]
        run.__signature__ = signature.replace(parameters=[*own, *made])  # type: ignore[attr-defined]
        return run

    return decorated


def _help(name: str) -> str:
    from puna.config.settings import RANGES, Settings

    said = " ".join((Settings.model_fields[name].description or "").split()).rstrip(".")
    return f"{said} ({RANGES[name]})." if name in RANGES else f"{said}."
