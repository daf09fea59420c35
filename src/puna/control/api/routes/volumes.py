"""Volumes: make, look, fill, empty, delete; one that an endpoint uses is not deleted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, BinaryIO

from fastapi import Path, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse
from typing_extensions import TypedDict

from puna import names
from puna.control.api.query import Listed, Paged
from puna.control.api.routing import Answer, Body, Deleted, Right, Routes
from puna.control.domain.states import PENDING, RevisionState
from puna.control.operations.context import Control
from puna.control.resources.volumes import DEFAULT_ROOT, VolumeEntry, Volumes
from puna.errors import ConflictError

VolumeName = Annotated[str, Path(json_schema_extra={"pattern": names.pattern("volume")})]
CHUNK_BYTES = 1 << 20
CONTENT = Body("application/octet-stream", "The file's content.")


class Volume(TypedDict):
    """A folder that outlives replicas."""

    name: str
    mount_path: str
    path: str
    """Where it lies on this machine."""
    endpoints: list[str]
    """Those that use it."""


class MadeVolume(Volume):
    """A volume that was asked for."""

    created: bool
    """False when it was there already."""


class WrittenFile(TypedDict):
    """A file that was written."""

    path: str
    bytes: int


class NewVolume(BaseModel, extra="forbid"):
    """The body of `POST /volumes`."""

    name: str


def routes(control: Control) -> Routes:
    """The handlers."""
    route = Routes("volumes")
    volumes = Volumes(control.home)
    _volumes(route, control, volumes)
    _files(route, volumes)
    return route


def _volumes(route: Routes, control: Control, volumes: Volumes) -> None:
    def view(name: str, used: Mapping[str, list[str]] | None = None) -> Volume:
        return {
            "name": name,
            "mount_path": f"{DEFAULT_ROOT}/{name}",
            "path": str(volumes.folder(name)),
            "endpoints": (users(control) if used is None else used).get(name, []),
        }

    @route("POST /volumes", Right.ALL, Answer(201))
    def post_volume(body: NewVolume) -> MadeVolume:
        """Make a volume; one that is there already stays as it is."""
        created = volumes.create(body.name)
        return {**view(body.name), "created": created}

    @route("GET /volumes", Right.ALL)
    def list_volumes(page: Paged) -> Listed[Volume]:
        """Every volume, and the endpoints that use it."""
        used = users(control)
        return page.show(volumes.names(), lambda name: (name,), lambda name: view(name, used))

    @route("GET /volumes/{name}", Right.ALL)
    def get_volume(name: VolumeName) -> Volume:
        """One volume."""
        return view(name)

    @route("DELETE /volumes/{name}", Right.ALL)
    def delete_volume(name: VolumeName) -> Deleted:
        """Delete a volume with all that is in it, unless an endpoint uses it."""
        volumes.folder(name)
        if used := users(control).get(name):
            raise ConflictError(f"volume `{name}` is used by {', '.join(used)}", f"`puna delete {used[0]}` first")
        volumes.delete(name)
        return {"deleted": name}


def _files(route: Routes, volumes: Volumes) -> None:
    @route("GET /volumes/{name}/entries", Right.ALL)
    def list_entries(name: VolumeName, page: Paged, path: str = "", recursive: bool = False) -> Listed[VolumeEntry]:
        """List a folder of a volume; links are shown and never followed."""
        return page.show(volumes.entries(name, path, recursive), lambda entry: (entry.path,), lambda entry: entry)

    @route("GET /volumes/{name}/files/{path:path}", Right.ALL, Answer(model="application/octet-stream"))
    def get_file(name: VolumeName, path: str) -> Response:
        """A file's content."""
        return StreamingResponse(_chunks(volumes.open(name, path)), media_type="application/octet-stream")

    @route("PUT /volumes/{name}/files/{path:path}", Right.ALL, Answer(201), body=CONTENT)
    async def put_file(name: VolumeName, path: str, request: Request) -> WrittenFile:
        """Write a file, folders above it included; it appears whole or not at all."""
        with volumes.writing(name, path) as file:
            async for chunk in request.stream():
                await run_in_threadpool(file.write, chunk)
            size = file.tell()
        return {"path": path, "bytes": size}

    @route("DELETE /volumes/{name}/files/{path:path}", Right.ALL)
    def delete_file(name: VolumeName, path: str) -> Deleted:
        """Remove a file, or a folder with all that is in it."""
        volumes.remove(name, path)
        return {"deleted": f"{name}:/{path}"}


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def users(control: Control) -> dict[str, list[str]]:
    """By a volume's name, the endpoints whose settings, serving or pending revisions name it."""
    snapshot = control.store.snapshot()
    named = [(endpoint.name, endpoint.settings) for endpoint in snapshot.endpoints]
    for revision in snapshot.revisions:
        if revision.state in PENDING or revision.state is RevisionState.SERVING:
            named.append((revision.endpoint, revision.settings))
    found: dict[str, set[str]] = {}
    for endpoint, settings in named:
        for volume in settings.volumes:
            found.setdefault(volume, set()).add(endpoint)
    return {volume: sorted(names) for volume, names in found.items()}
