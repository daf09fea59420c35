"""The API's part about volumes: make, look, fill, empty, delete; one that an endpoint uses is not deleted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from puna.control.api.pagination import Paged
from puna.control.domain.states import PENDING, RevisionState
from puna.control.operations.context import Control
from puna.control.resources.volumes import DEFAULT_ROOT, Volumes
from puna.errors import ConflictError, ForbiddenError

Json = dict[str, Any]
CHUNK_BYTES = 1 << 20


class NewVolume(BaseModel):
    """What `POST /volumes` takes."""

    model_config = ConfigDict(extra="forbid")
    name: str


def routes(control: Control) -> APIRouter:
    """The handlers."""
    router = APIRouter(tags=["volumes"], dependencies=[Depends(all_endpoints)])
    volumes = Volumes(control.home)
    _volumes(router, control, volumes)
    _files(router, volumes)
    return router


def all_endpoints(request: Request) -> None:
    """A key for some endpoints only may not see or change what belongs to all."""
    key = request.state.key
    if key is not None and key.endpoints is not None:
        raise ForbiddenError(f"key {key.id} opens some endpoints only, and this belongs to all", "`puna key create`")


def _volumes(router: APIRouter, control: Control, volumes: Volumes) -> None:
    def view(name: str, used: Mapping[str, list[str]] | None = None) -> Json:
        where = {"mount_path": f"{DEFAULT_ROOT}/{name}", "path": str(volumes.folder(name))}
        return {"name": name, **where, "endpoints": (users(control) if used is None else used).get(name, [])}

    @router.post("/volumes", status_code=201)
    def post_volume(body: NewVolume) -> Json:
        """Make a volume; one that is there already stays as it is."""
        created = volumes.create(body.name)
        return view(body.name) | {"created": created}

    @router.get("/volumes")
    def list_volumes(page: Paged) -> Json:
        """Every volume, and the endpoints that use it."""
        used = users(control)
        return page.show(volumes.names(), lambda name: (name,), lambda name: view(name, used))

    @router.get("/volumes/{name}")
    def get_volume(name: str) -> Json:
        """One volume."""
        return view(name)

    @router.delete("/volumes/{name}")
    def delete_volume(name: str) -> Json:
        """Delete a volume with all that is in it, unless an endpoint uses it."""
        volumes.folder(name)
        if used := users(control).get(name):
            raise ConflictError(f"volume `{name}` is used by {', '.join(used)}", f"`puna delete {used[0]}` first")
        volumes.delete(name)
        return {"deleted": name}


def _files(router: APIRouter, volumes: Volumes) -> None:
    @router.get("/volumes/{name}/entries")
    def list_entries(name: str, page: Paged, path: str = "", recursive: bool = False) -> Json:
        """What is in a folder of a volume; links are shown and never followed."""
        return page.show(volumes.entries(name, path, recursive), lambda entry: (entry.path,), dataclasses.asdict)

    @router.get("/volumes/{name}/files/{path:path}")
    def get_file(name: str, path: str) -> Response:
        """A file's content."""
        return StreamingResponse(_chunks(volumes.open(name, path)), media_type="application/octet-stream")

    @router.put("/volumes/{name}/files/{path:path}", status_code=201)
    async def put_file(name: str, path: str, request: Request) -> Json:
        """Write a file, folders above it included; it appears whole or not at all."""
        with volumes.writing(name, path) as file:
            async for chunk in request.stream():
                await run_in_threadpool(file.write, chunk)
            size = file.tell()
        return {"path": path, "bytes": size}

    @router.delete("/volumes/{name}/files/{path:path}")
    def delete_file(name: str, path: str) -> Json:
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
