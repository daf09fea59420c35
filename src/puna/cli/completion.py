"""`puna completion SHELL`: a static script, made from the command table."""

from __future__ import annotations

from collections.abc import Iterable

from puna.cli import output
from puna.errors import UsageError

SCRIPTS = {
    "bash": 'complete -o default -W "{words}" puna',
    "zsh": "compctl -k '({words})' + -f puna",
    "fish": 'complete -c puna -n __fish_use_subcommand -f -a "{words}"',
}


def show(arguments: list[str], commands: Iterable[str]) -> int:
    """Print the script for one shell.

    Raises:
        UsageError: the shell is not one of bash, zsh, fish.
    """
    shell = arguments[0] if arguments else ""
    if shell not in SCRIPTS:
        raise UsageError(f"no completion for {shell or 'nothing'!r}", "puna completion bash|zsh|fish")
    output.line(SCRIPTS[shell].format(words=" ".join(commands)))
    return 0
