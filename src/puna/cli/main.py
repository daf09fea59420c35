"""The command table, and the one place where an error becomes an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from typing import Any

from puna import __version__
from puna.cli import output
from puna.errors import PunaError, UsageError, nearest


@dataclass(frozen=True)
class Command:
    """One word after `puna`: where its code is, and its line in `puna --help`."""

    target: str
    help: str

    def load(self) -> Any:
        """The function, or typer application, of this word; its module is imported now."""
        module, _, attribute = self.target.partition(":")
        return getattr(importlib.import_module(f"puna.cli.commands.{module}"), attribute)


# Grouped as the story goes; `puna --help` is printed from this table alone, so that it loads no command.
TABLE: dict[str, dict[str, Command]] = {
    "The story": {
        "demo": Command("demo:demo", "The whole story on a tiny Llama, in a throw-away home."),
        "ship": Command("training:ship", "Recipe to endpoint in one go: train, merge, publish, init, deploy."),
    },
    "Training": {
        "data": Command("training:data_app", "Prepare a recipe's dataset and look at its tokens."),
        "train": Command("training:train", "Fine-tune as a recipe says; --dry-run shows the plan only."),
        "merge": Command("training:merge", "Adapter and base become one model, verified against the trained one."),
        "publish": Command("training:publish", "Give a merged model a name; --hub also pushes it."),
        "runs": Command("training:runs", "List training runs."),
        "run": Command("training:run_app", "Show one run: figures, loss curve, report."),
        "model": Command("training:model_app", "List, show, alias and delete published models."),
    },
    "Serving": {
        "up": Command("up:up", "Run the control plane and the gateway."),
        "down": Command("up:down", "Stop what `puna up` runs."),
        "machine": Command("up:machine", "Show this machine's GPUs, who holds them, and whether a model fits."),
        "console": Command("up:console", "Print a one-time link to the web console."),
        "init": Command("deploy:init", "Write the four files of an app that serves a model."),
        "dev": Command("deploy:dev", "Run an app once in its own environment, without a server."),
        "runtime": Command("builds:runtime_app", "Upload, generate, compare, select and delete runtimes."),
        "build": Command("builds:build_app", "List, show, follow and cancel builds."),
        "deploy": Command("deploy:deploy", "Build a folder, a git repository or a model and roll it out."),
        "call": Command("call:call", "Call an endpoint: puna call my-app prompt='What is AI?'."),
        "ps": Command("endpoints:ps", "List endpoints and their replicas, or show one: puna ps my-app."),
        "logs": Command("endpoints:logs", "Show an endpoint's call log; -f follows."),
        "events": Command("endpoints:events", "Show what happened to an endpoint, and why."),
        "usage": Command("call:usage", "Show requests and GPU-seconds by endpoint, key, day or hour; --csv."),
        "scale": Command("deploy:scale", "Change replicas, delays and limits without a rebuild."),
        "activate": Command("endpoints:activate", "Let an endpoint take requests again."),
        "deactivate": Command("endpoints:deactivate", "Stop every replica and refuse requests."),
        "rebuild": Command("endpoints:rebuild", "Build the newest commit or source again and roll it out."),
        "webhook": Command("deploy:webhook", "What a repository calls after a push, and what it has said."),
        "traffic": Command("endpoints:traffic", "Divide the requests between two revisions: 3=90 4=10."),
        "promote": Command("endpoints:promote", "Give one of two revisions all requests."),
        "diff": Command("endpoints:diff", "Show what changed from one revision to another."),
        "rollback": Command("endpoints:rollback", "Take a split away, or serve an earlier revision again."),
        "delete": Command("endpoints:delete", "Delete an endpoint and stop its replicas."),
    },
    "Access": {
        "key": Command("access:key_app", "Create, list and revoke API keys."),
        "volume": Command("access:volume_app", "Create, list, fill and delete volumes."),
        "secret": Command("access:secret_app", "Set, list and delete secrets."),
    },
}
COMMANDS = {name: command for group in TABLE.values() for name, command in group.items()}
SCRIPTS = {
    "bash": 'complete -o default -W "{words}" puna',
    "zsh": "compctl -k '({words})' + -f puna",
    "fish": 'complete -c puna -n __fish_use_subcommand -f -a "{words}"',
}
# Spellings of the Inferless platform's two CLI generations.
ALIASES = {
    "log": "logs",
    "builds": "build",
    "models": "model",
    "runtimes": "runtime",
    "secrets": "secret",
    "keys": "key",
    "volumes": "volume",
}


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit: 0 when it did what was asked, else the error's own code."""
    words = sys.argv[1:] if arguments is None else arguments
    sys.modules["httpx._main"] = None  # type: ignore[assignment]  # its command line, which loads pygments: 0.2 s
    sys.exit(run(words))


def run(words: list[str]) -> int:
    """Run one command; returns the exit code."""
    as_json = "--json" in words
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except PunaError as error:
        output.error(error, as_json=as_json)
        return error.exit_code
    except KeyboardInterrupt:
        output.error(PunaError("interrupted", "nothing half-written was kept; run the command again"), as_json=as_json)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone, e.g. `puna logs | head`; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        output.command_table(TABLE)
        return 0
    if words[0] in ("--version", "-V", "version"):
        output.line(f"puna {__version__}")
        return 0
    name = ALIASES.get(words[0], words[0])
    if name == "completion":
        return _complete(words[1:])
    if name not in COMMANDS:
        raise UsageError(f"there is no command `{name}`", nearest(name, COMMANDS) or "puna --help lists them")
    import typer

    target = COMMANDS[name].load()
    app = target
    if not isinstance(target, typer.Typer):
        app = typer.Typer(add_completion=False)
        app.command(name, context_settings={"help_option_names": ["-h", "--help"]})(target)
    # BadParameter < UsageError < ClickException: typer carries click inside and does not export its names.
    complaint: type[Exception] = typer.BadParameter.__mro__[2]
    try:
        code = app(words[1:], prog_name=f"puna {name}", standalone_mode=False)
    except complaint as problem:
        said = str(getattr(problem, "format_message", problem.__str__)())
        if not said:
            return 2  # a group without a command: its help has been printed
        raise UsageError(said, f"puna {name} --help") from None
    except typer.Abort:
        raise KeyboardInterrupt from None
    return code if isinstance(code, int) else 0


def _complete(arguments: list[str]) -> int:
    """Print the completion script for one shell."""
    shell = arguments[0] if arguments else ""
    if shell not in SCRIPTS:
        raise UsageError(f"no completion for {shell or 'nothing'!r}", "puna completion bash|zsh|fish")
    output.line(SCRIPTS[shell].format(words=" ".join(COMMANDS)))
    return 0
