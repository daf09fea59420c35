"""`puna volume`: folders that outlive replicas, mounted where apps expect them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from puna.cli import output
from puna.cli.options import AsJson
from puna.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from puna.client import Client

volume_app = typer.Typer(no_args_is_help=True, add_completion=False)
Name = Annotated[str, typer.Argument(help="The volume's name.", show_default=False)]
Place = Annotated[str, typer.Argument(help="NAME, or NAME:/path.", show_default=False)]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Folders, with all that is in them.")]


@volume_app.command()
def create(name: Name, json: AsJson = False) -> None:
    """Make a volume; one that is there already stays as it is."""
    from puna.client import Client

    with Client() as client:
        made = client.create_volume(name)
    output.data(made) if json else output.line(f"volume {name}, mounted at {made['mount_path']}")


@volume_app.command()
def ls(
    place: Annotated[str, typer.Argument(help="NAME or NAME:/path; all volumes without.")] = "", json: AsJson = False
) -> None:
    """List volumes, or what is in one."""
    from puna.client import Client

    with Client() as client:
        if place:
            found = client.volume_entries(*parsed(place))
        else:
            found = client.volumes()
    if json:
        output.data(found)
    elif place:
        rows = [(e["path"] + "/" * (e["kind"] == "folder"), e["kind"], f"{e['bytes']:,}") for e in found]
        output.table(("path", "kind", "bytes"), rows, empty=f"nothing yet: puna volume cp FILE {place}:/")
    else:
        rows = [(v["name"], v["mount_path"], ", ".join(v["endpoints"])) for v in found]
        output.table(("volume", "mounted at", "used by"), rows, empty="no volumes yet: puna volume create NAME")


@volume_app.command()
def cp(
    source: Annotated[str, typer.Argument(help="A file or folder, or NAME:/path.", show_default=False)],
    target: Annotated[str, typer.Argument(help="NAME:/path, or a file or folder.", show_default=False)],
    recursive: Recursive = False,
    json: AsJson = False,
) -> None:
    """Copy into a volume or out of it."""
    from puna.client import Client

    inward, outward = is_place(target), is_place(source)
    if inward == outward:
        raise UsageError("one side must be in a volume, the other on this machine", "puna volume cp FILE NAME:/path")
    with Client() as client:
        copied = (
            _put(client, Path(source), target, recursive) if inward else _get(client, source, Path(target), recursive)
        )
    output.data({"files": copied}) if json else output.line(f"{len(copied)} file{'s' * (len(copied) != 1)} copied")


@volume_app.command()
def rm(place: Place, recursive: Recursive = False, json: AsJson = False) -> None:
    """Remove a file or folder of a volume; without a path, the volume itself."""
    from puna.client import Client

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
    """Whether a word names something in a volume: `NAME:/path`, `NAME:`, or the platform's infer://volumes/..."""
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
        pairs = [(file, f"{path}/{file.relative_to(source).as_posix()}".lstrip("/")) for file in _files(source)]
    else:
        into = not path or target.endswith("/") or _is_folder(client, name, path)
        pairs = [(source, f"{path}/{source.name}".lstrip("/") if into else path)]
    for file, place in pairs:
        with file.open("rb") as content:
            client.put_volume_file(name, place, content)
    return [place for _, place in pairs]


def _files(folder: Path) -> Iterator[Path]:
    for above, _, names in os.walk(folder):
        yield from (Path(above, name) for name in sorted(names) if Path(above, name).is_file())


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
