"""Runtimes: upload, list, what a version holds, who uses it, what differs between two, and its end."""

from __future__ import annotations

import contextlib
import difflib
from typing import Annotated

from fastapi import Path
from pydantic import BaseModel
from typing_extensions import TypedDict

from puna import names
from puna.artifacts import SHORT
from puna.config import runtime as spec
from puna.control.api.bodies import Number
from puna.control.api.query import Listed, Paged
from puna.control.api.routing import Answer, Right, Routes
from puna.control.domain import records
from puna.control.domain.records import view
from puna.control.domain.states import BuildState, RevisionState
from puna.control.operations.comparison import ChangedPackages, Package, changed_packages, packages
from puna.control.operations.context import Control
from puna.errors import NotFoundError
from puna.home import Home
from puna.packaging import inventory
from puna.packaging.environment import Environment
from puna.packaging.inventory import Inventory

RuntimeName = Annotated[str, Path(json_schema_extra={"pattern": names.pattern("runtime")})]


class RuntimeUpload(BaseModel, extra="forbid"):
    """The body of `POST /runtimes`."""

    name: str
    yaml: str


class RuntimeVersion(TypedDict):
    """One version of a runtime."""

    name: str
    version: int
    digest: str
    status: BuildState
    build_id: str
    created: float


class RuntimeUse(TypedDict):
    """A revision that needs a version of a runtime."""

    endpoint: str
    revision: int
    version: int
    state: RevisionState
    is_serving: bool


class Runtime(RuntimeVersion):
    """One version of a runtime: its file, what lies on the disk, who uses it, and what other versions there are."""

    yaml: str
    python_version: str | None
    packages: list[Package] | None
    """Null as long as nothing is installed."""
    size_bytes: int | None
    error: str
    hint: str
    log: str
    """Where its build's log is."""
    endpoints: list[RuntimeUse]
    versions: list[RuntimeVersion]


_From = TypedDict("_From", {"from": int})  # no name that a class can have


class RuntimeDiff(_From):
    """The differences between two versions of a runtime."""

    name: str
    to: int
    yaml: str
    """The file's lines, as a unified diff."""
    packages: ChangedPackages | None
    """Null when one of the two is not installed."""


class DeletedVersions(TypedDict):
    """Which versions of a runtime were deleted."""

    name: str
    deleted: list[int]


def routes(control: Control) -> Routes:
    """The handlers."""
    route, store = Routes("runtimes"), control.store

    @route("POST /runtimes", Right.ALL, Answer(202))
    def post_runtime(body: RuntimeUpload) -> RuntimeVersion:
        """Upload a runtime file; the same content as the newest version makes no new one."""
        names.check("runtime", body.name)
        digest = spec.parse_text(body.yaml).digest
        made = store.add_runtime(body.name, digest, body.yaml, control.clock())
        control.wake()
        return _version(made)

    @route("GET /runtimes", Right.OWN)
    def list_runtimes(page: Paged) -> Listed[RuntimeVersion]:
        """Every version of every runtime, by name and newest first."""
        return page.show(store.runtimes(), lambda r: (r.name, -r.version), _version)

    @route("GET /runtimes/{name}", Right.ALL)
    def get_runtime(name: RuntimeName, version: Number | None = None) -> Runtime:
        """One version of a runtime, the newest unless another is asked for: file, packages, size, and who uses it."""
        return _shown(control, store.runtime(name, version))

    @route("GET /runtimes/{name}/versions/{a}/diff/{b}", Right.ALL)
    def get_diff(name: RuntimeName, a: Number, b: Number) -> RuntimeDiff:
        """Compare version `a` with version `b`: the file's lines, and the packages as installed."""
        before, after = store.runtime(name, a), store.runtime(name, b)
        old, new = _inventory(control.home, before), _inventory(control.home, after)
        lines = difflib.unified_diff(
            before.yaml.splitlines(), after.yaml.splitlines(), f"version {a}", f"version {b}", lineterm=""
        )
        return {
            "name": name,
            "from": a,
            "to": b,
            "yaml": "\n".join(lines),
            "packages": None if old is None or new is None else changed_packages(old, new),
        }

    @route("DELETE /runtimes/{name}/versions/{version}", Right.ALL)
    def delete_version(name: RuntimeName, version: Number) -> DeletedVersions:
        """Delete a version that no endpoint needs; its number is not used again, its environment goes when unused."""
        return {"name": name, "deleted": store.delete_runtime(name, version)}

    @route("DELETE /runtimes/{name}", Right.ALL)
    def delete_runtime(name: RuntimeName) -> DeletedVersions:
        """Delete all versions of a runtime, when no endpoint needs any."""
        return {"name": name, "deleted": store.delete_runtime(name)}

    return route


def _shown(control: Control, version: records.Runtime) -> Runtime:
    """A version with what lies on the disk of it; what is asked for, as long as nothing does."""
    store, held = control.store, _inventory(control.home, version)
    build = store.build(version.build_id)
    uses = [use for use in store.uses_of_runtime(version.name) if use.is_needed]
    return {
        **_version(version),
        "yaml": version.yaml,
        "python_version": held.python_version if held else spec.parse_text(version.yaml).python_version,
        "packages": packages(held.packages) if held else None,
        "size_bytes": held.size_bytes if held else None,
        "error": build.error,
        "hint": build.hint,
        "log": f"/api/v1/builds/{version.build_id}/log",
        "endpoints": [view(RuntimeUse, use) for use in uses],
        "versions": [_version(one) for one in store.runtimes(version.name)],
    }


def _version(runtime: records.Runtime) -> RuntimeVersion:
    return view(RuntimeVersion, runtime, status=runtime.state)


def _inventory(home: Home, version: records.Runtime) -> Inventory | None:
    if version.state is not BuildState.SUCCEEDED:
        return None
    with contextlib.suppress(NotFoundError, FileNotFoundError):
        return inventory.take(Environment.open(home.environments / version.digest[:SHORT]).path)
    return None
