"""One command of a build: its lines streamed, its environment clean, its descendants ended when it ends."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from puna.config.repository import CREDENTIALS
from puna.errors import BuildError
from puna.process import command as supervised

MAX_LINE_BYTES = 1 << 20
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class BuildCancelledError(BuildError):
    """Somebody asked for the build to stop; nothing of it is left."""


def masked(line: str) -> str:
    """`line` without the credentials of addresses in it and without terminal colours."""
    return CREDENTIALS.sub("***", _ANSI.sub("", line))


def run(
    argv: Sequence[str],
    env: Mapping[str, str],
    folder: Path,
    *,
    log: Callable[[str], None],
    cancelled: Callable[[], bool],
) -> tuple[int, list[str]]:
    """Run `argv` in `folder`, each line of its output given to `log`; `(exit status, lines)`.

    What `cancelled` raises ends the command as well.

    Raises:
        BuildCancelledError: `cancelled()` became true; the command and its descendants are gone.
    """
    lines: list[str] = []
    rest = b""

    def receive(piece: bytes) -> None:
        nonlocal rest
        *whole, rest = (rest + piece).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            whole, rest = [*whole, rest], b""
        for raw in whole:
            tell(raw)

    def tell(raw: bytes) -> None:
        # Carriage returns are how progress bars rewrite a line: what follows the last is what a person would see.
        lines.append(masked(raw.decode(errors="replace").rstrip("\r").rsplit("\r", 1)[-1]))
        log(lines[-1])

    def check() -> None:
        if cancelled():
            raise BuildCancelledError("the build was cancelled", "nothing of it is left; start it again when ready")

    status = supervised.run(argv, env, receive, folder=folder, check=check)
    if rest:
        tell(rest)
    return status, lines
