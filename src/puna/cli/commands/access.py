"""`puna key` and `puna secret`: who may call, and what an app may know."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from puna.cli import output
from puna.cli.options import AsJson, pairs

key_app = typer.Typer(no_args_is_help=True, add_completion=False)
secret_app = typer.Typer(no_args_is_help=True, add_completion=False)


@key_app.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="What the key is for.")] = "",
    scope: Annotated[list[str] | None, typer.Option(help="infer, deploy or admin; may be repeated.")] = None,
    endpoint: Annotated[list[str] | None, typer.Option(help="Only this endpoint; may be repeated.")] = None,
    expires_days: Annotated[float | None, typer.Option(help="Days it works for; for ever when not given.")] = None,
    rate: Annotated[str | None, typer.Option(help="Most calls in a time: 10/s, 600/min or 5k/h.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Most tokens of OpenAI's paths in a time: 100k/min.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Most calls at once, waiting ones included.")] = None,
    json: AsJson = False,
) -> None:
    """Make an API key; its text is shown once."""
    from puna.client import Client

    expires_s = expires_days * 86400 if expires_days else None
    with Client() as client:
        limits = {"rate": rate, "tokens": tokens, "concurrency": concurrency}
        made = client.create_key(scope or ["infer"], name=name, endpoints=endpoint, expires_s=expires_s, limits=limits)
    output.data(made) if json else output.line(made["key"])


@key_app.command("list")
def list_keys(json: AsJson = False) -> None:
    """List keys, without their text."""
    from puna.client import Client

    with Client() as client:
        found = client.keys()
    if json:
        output.data(found)
        return
    rows = [
        (k["id"], k["name"], ", ".join(k["scope"]), ", ".join(k["endpoints"] or ["all"]), _limits(k), _last_used(k))
        for k in found
    ]
    headings = ("id", "name", "scope", "endpoints", "limits", "last used")
    output.table(headings, rows, empty="no keys yet: puna key create NAME")


def _last_used(key: Mapping[str, Any]) -> str:
    """The hour in UTC; use is counted by hours."""
    return time.strftime("%Y-%m-%d %H h UTC", time.gmtime(key["last_used"])) if key["last_used"] else "never"


def _limits(key: Mapping[str, Any]) -> str:
    told = [key.get("rate"), key.get("tokens") and f"{key['tokens']} tokens"]
    told.append(key.get("concurrency") and f"{key['concurrency']} at once")
    return ", ".join(filter(None, told))


@key_app.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(help="The key's id.")], json: AsJson = False) -> None:
    """Stop a key from working, at once."""
    from puna.client import Client

    with Client() as client:
        done = client.delete_key(key_id)
    output.data(done) if json else output.line(f"key {key_id} is revoked")


@secret_app.command("set")
def set_secret(
    name: Annotated[str, typer.Argument(help="The set's name.")],
    values: Annotated[list[str], typer.Argument(help="NAME=VALUE, or NAME for one that is asked for.")],
    json: AsJson = False,
) -> None:
    """Keep a set of values, encrypted; an endpoint names the set to get them as environment variables.

    Everybody on the machine can read a command while it runs: the value of a NAME alone is taken from the variable of
    that name, or asked for.
    """
    from puna.client import Client

    values = [value if "=" in value else f"{value}={_untyped(value)}" for value in values]
    named = pairs(values, f"puna secret set {name} NAME=VALUE")
    with Client() as client:
        done = client.set_secret(name, named)
    output.data(done) if json else output.line(f"secret {name} is set")


def _untyped(name: str) -> str:
    return os.environ.get(name) or str(typer.prompt(f"value of {name}", hide_input=True))


@secret_app.command("list")
def list_secrets(json: AsJson = False) -> None:
    """List secret sets and the names in them; values are never shown."""
    from puna.client import Client

    with Client() as client:
        found = client.secrets()
    if json:
        output.data(found)
        return
    rows = [(s["name"], ", ".join(s.get("keys", []))) for s in found]
    output.table(("secret", "names"), rows, empty="no secrets yet: puna secret set NAME KEY=VALUE")


@secret_app.command("delete")
def delete_secret(name: Annotated[str, typer.Argument(help="The set's name.")], json: AsJson = False) -> None:
    """Forget a set of secret values."""
    from puna.client import Client

    with Client() as client:
        done = client.delete_secret(name)
    output.data(done) if json else output.line(f"secret {name} is deleted")
