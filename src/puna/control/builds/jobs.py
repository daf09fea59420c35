"""Jobs on a finished training run: `puna merge` and `puna publish`, as a shell would run them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from puna.control.domain.records import Build
from puna.errors import BuildError
from puna.home import Home
from puna.packaging import command

KINDS = ("merge", "publish")
ERROR, HINT = "error: ", "hint:"
LAST_LINES = 20


def argv(kind: str, run: str, arguments: Mapping[str, Any]) -> list[str]:
    """The command after `puna`."""
    words = [kind]
    if base := arguments.get("base"):
        words += ["--base", str(base)]
    for alias in arguments.get("aliases", ()):
        words += ["--alias", str(alias)]
    if hub := arguments.get("hub"):
        words += ["--hub", str(hub)]
    words += [f"--{flag}" for flag in ("private", "force", "adapter") if arguments.get(flag)]
    names = [run, *([str(arguments["name"])] if arguments.get("name") else [])]
    return [*words, "--", *names]


def run(build: Build, home: Home, log: Callable[[str], None], cancelled: Callable[[], bool]) -> None:
    """Run it in a process of its own, which takes torch, the model and the GPU's memory with it when it ends.

    Raises:
        BuildError: it failed, with the error that it printed; or it was cancelled.
    """
    said: list[str] = []

    def tell(line: str) -> None:
        said.append(line)
        if not line.startswith((ERROR, HINT)):  # the builder writes both, once, when it is told of the error
            log(line)

    words = argv(build.kind, build.subject, build.arguments)
    log(f"$ puna {' '.join(words)}")
    env = {**os.environ, "PUNA_HOME": str(home.root), "PYTHONUNBUFFERED": "1"}
    status, _ = command.run([sys.executable, "-P", "-m", "puna", *words], env, home.root, log=tell, cancelled=cancelled)
    if status != 0:
        raise _error(build, status, said)


def _error(build: Build, status: int, said: list[str]) -> BuildError:
    message = next((line.removeprefix(ERROR) for line in reversed(said) if line.startswith(ERROR)), "")
    hint = next((line.removeprefix(HINT).strip() for line in reversed(said) if line.startswith(HINT)), "")
    if message:
        return BuildError(message, hint)
    what = f"signal {status - 128}" if status > 128 else f"status {status}"
    hint = "the machine may be out of memory: `dmesg`" if status == 128 + 9 else f"`puna {build.kind}` in a shell"
    last = "\n".join(said[-LAST_LINES:])
    return BuildError(f"`puna {build.kind} {build.subject}` ended with {what}", hint, last)
