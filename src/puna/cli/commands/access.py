"""`puna key`, `secret` and `volume`: callers' keys, values for apps, folders that outlive replicas."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from puna.cli import output
from puna.cli.options import AsJson, pairs
from puna.client import Client
from puna.errors import NotFoundError, UsageError

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
    expires_s = expires_days * 86400 if expires_days else None
    with Client() as client:
        limits = {"rate": rate, "tokens": tokens, "concurrency": concurrency}
        made = client.create_key(scope or ["infer"], name=name, endpoints=endpoint, expires_s=expires_s, limits=limits)
    output.data(made) if json else output.line(made["key"])


@key_app.command("list")
def list_keys(json: AsJson = False) -> None:
    """List keys, without their text."""
    with Client() as client:
        found = client.keys()
    rows = [
        (k["id"], k["name"], ", ".join(k["scope"]), ", ".join(k["endpoints"] or ["all"]), _limits(k), _last_used(k))
        for k in found
    ]
    headings = ("id", "name", "scope", "endpoints", "limits", "last used")
    output.listing(found, json, headings, rows, empty="no keys yet: puna key create NAME")


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
    with Client() as client:
        found = client.secrets()
    rows = [(s["name"], ", ".join(s.get("keys", []))) for s in found]
    output.listing(found, json, ("secret", "names"), rows, empty="no secrets yet: puna secret set NAME KEY=VALUE")


@secret_app.command("delete")
def delete_secret(name: Annotated[str, typer.Argument(help="The set's name.")], json: AsJson = False) -> None:
    """Forget a set of secret values."""
    with Client() as client:
        done = client.delete_secret(name)
    output.data(done) if json else output.line(f"secret {name} is deleted")


volume_app = typer.Typer(no_args_is_help=True, add_completion=False)
Name = Annotated[str, typer.Argument(help="The volume's name.", show_default=False)]
Place = Annotated[str, typer.Argument(help="NAME, or NAME:/path.", show_default=False)]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Folders, with all that is in them.")]


@volume_app.command()
def create(name: Name, json: AsJson = False) -> None:
    """Make a volume; one that is there already stays as it is."""
    with Client() as client:
        made = client.create_volume(name)
    output.data(made) if json else output.line(f"volume {name}, mounted at {made['mount_path']}")


@volume_app.command()
def ls(
    place: Annotated[str, typer.Argument(help="NAME or NAME:/path; all volumes without.")] = "", json: AsJson = False
) -> None:
    """List volumes, or what is in one."""
    with Client() as client:
        found = client.volume_entries(*parsed(place)) if place else client.volumes()
    if place:
        rows = [(e["path"] + "/" * (e["kind"] == "folder"), e["kind"], f"{e['bytes']:,}") for e in found]
        headings, empty = ("path", "kind", "bytes"), f"nothing yet: puna volume cp FILE {place}:/"
    else:
        rows = [(v["name"], v["mount_path"], ", ".join(v["endpoints"])) for v in found]
        headings, empty = ("volume", "mounted at", "used by"), "no volumes yet: puna volume create NAME"
    output.listing(found, json, headings, rows, empty)


@volume_app.command()
def cp(
    source: Annotated[str, typer.Argument(help="A file or folder, or NAME:/path.", show_default=False)],
    target: Annotated[str, typer.Argument(help="NAME:/path, or a file or folder.", show_default=False)],
    recursive: Recursive = False,
    json: AsJson = False,
) -> None:
    """Copy into a volume or out of it."""
    inward, outward = is_place(target), is_place(source)
    if inward == outward:
        raise UsageError("one side must be in a volume, the other on this machine", "puna volume cp FILE NAME:/path")
    with Client() as client:
        if inward:
            copied = _put(client, Path(source), target, recursive)
        else:
            copied = _get(client, source, Path(target), recursive)
    output.data({"files": copied}) if json else output.line(f"{len(copied)} file{'s' * (len(copied) != 1)} copied")


@volume_app.command()
def rm(place: Place, recursive: Recursive = False, json: AsJson = False) -> None:
    """Remove a file or folder of a volume; without a path, the volume itself."""
    name, path = parsed(place)
    with Client() as client:
        if not path:
            if is_place(place) and not recursive:
                raise UsageError(f"{place} is the whole volume", f"puna volume rm {name}")
            done = client.delete_volume(name)
        else:
            entries = client.volume_entries(name, path)
            if not recursive and [e["path"] for e in entries] != [path]:
                raise UsageError(f"{place} is a folder", f"puna volume rm --recursive {place}")
            done = client.delete_volume_file(name, path)
    output.data(done) if json else output.line(f"{place} is deleted")


def is_place(text: str) -> bool:
    """True where a word names something in a volume: `NAME:/path`, `NAME:`, or the platform's infer://volumes/..."""
    name, colon, path = text.partition(":")
    return text.startswith("infer://") or bool(colon and "/" not in name and (not path or path.startswith("/")))


def parsed(text: str) -> tuple[str, str]:
    """`(volume, path)` of `NAME`, `NAME:/path`, `NAME/path` or `infer://volumes/REGION/NAME/path`."""
    if text.startswith("infer://"):
        text = "/".join(text.split("/")[4:])
    name, _, path = text.replace(":", "/", 1).partition("/")
    return name, path.strip("/")


def _put(client: Client, source: Path, target: str, recursive: bool) -> list[str]:
    name, path = parsed(target)
    if not source.exists():
        raise NotFoundError(f"{source} does not exist", "check the path")
    if source.is_dir() and not recursive:
        raise UsageError(f"{source} is a folder", f"puna volume cp --recursive {source} {target}")
    if source.is_dir():
        files = [file for file in sorted(source.rglob("*")) if file.is_file()]
        pairs = [(file, f"{path}/{file.relative_to(source).as_posix()}".lstrip("/")) for file in files]
    else:
        into = not path or target.endswith("/") or _is_folder(client, name, path)
        pairs = [(source, f"{path}/{source.name}".lstrip("/") if into else path)]
    for file, place in pairs:
        with file.open("rb") as content:
            client.put_volume_file(name, place, content)
    return [place for _, place in pairs]


def _is_folder(client: Client, name: str, path: str) -> bool:
    try:
        return [e["path"] for e in client.volume_entries(name, path) if e["kind"] != "folder"] != [path]
    except NotFoundError:
        return False


def _get(client: Client, source: str, target: Path, recursive: bool) -> list[str]:
    name, path = parsed(source)
    entries = [e for e in client.volume_entries(name, path, recursive=True) if e["kind"] == "file"]
    if [e["path"] for e in entries] == [path]:
        pairs = [(path, target / Path(path).name if target.is_dir() else target)]
    elif not recursive:
        raise UsageError(f"{source} is a folder", f"puna volume cp --recursive {source} {target}")
    else:
        pairs = [(e["path"], target / Path(e["path"]).relative_to(path)) for e in entries]
    for place, file in pairs:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as content:
            for chunk in client.volume_file(name, place):
                content.write(chunk)
    return [str(file) for _, file in pairs]
