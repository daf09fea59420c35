"""The API's part about one runtime: what a version holds, who uses it, what differs between two, and its end."""

from __future__ import annotations

import contextlib
import difflib
from typing import Annotated, Any

from annotated_types import Ge, Le
from fastapi import APIRouter

from puna.artifacts import SHORT
from puna.config import runtime as spec
from puna.control import views
from puna.control.domain.records import Runtime
from puna.control.domain.states import BuildState
from puna.control.operations.context import Control
from puna.errors import NotFoundError
from puna.home import Home
from puna.packaging import inventory
from puna.packaging.environment import Environment
from puna.packaging.inventory import Inventory

Json = dict[str, Any]
Version = Annotated[int, Ge(1), Le(2**31 - 1)]


def routes(control: Control) -> APIRouter:
    """The handlers."""
    router, store = APIRouter(tags=["runtimes"]), control.store

    @router.get("/runtimes/{name}")
    def get_runtime(name: str, version: Version | None = None) -> Json:
        """One version of a runtime, the newest unless another is asked for: file, packages, size, and who uses it."""
        found = store.runtime(name, version)
        uses = store.uses_of_runtime(name)
        shown = views.runtime_view(found) | {"yaml": found.yaml} | _held(control.home, found)
        build = store.build(found.build_id)
        shown |= {"error": build.error, "hint": build.hint, "log": f"/api/v1/builds/{found.build_id}/log"}
        shown["endpoints"] = [
            {
                "endpoint": use.endpoint,
                "revision": use.revision,
                "version": use.version,
                "state": use.state,
                "is_serving": use.is_serving,
            }
            for use in uses
            if use.is_needed
        ]
        return shown | {"versions": [views.runtime_view(one) for one in store.runtimes(name)]}

    @router.get("/runtimes/{name}/versions/{a}/diff/{b}")
    def get_diff(name: str, a: Version, b: Version) -> Json:
        """What differs from version `a` to version `b`: the file's lines, and the packages as installed."""
        before, after = store.runtime(name, a), store.runtime(name, b)
        lines = difflib.unified_diff(
            before.yaml.splitlines(), after.yaml.splitlines(), f"version {a}", f"version {b}", lineterm=""
        )
        return {
            "name": name,
            "from": a,
            "to": b,
            "yaml": "\n".join(lines),
            "packages": _changes(control, before, after),
        }

    @router.delete("/runtimes/{name}/versions/{version}")
    def delete_version(name: str, version: Version) -> Json:
        """Delete a version that no endpoint needs; its number is not used again, its environment goes when unused."""
        return {"name": name, "deleted": store.delete_runtime(name, version)}

    @router.delete("/runtimes/{name}")
    def delete_runtime(name: str) -> Json:
        """Delete all versions of a runtime, when no endpoint needs any."""
        return {"name": name, "deleted": store.delete_runtime(name)}

    return router


def _changes(control: Control, before: Runtime, after: Runtime) -> Json | None:
    """None when one of the two environments is not there: not built yet, failed, or cleared away."""
    old, new = _inventory(control.home, before), _inventory(control.home, after)
    if old is None or new is None:
        return None
    found = inventory.compare(old.packages, new.packages)
    return {
        "added": [{"name": name, "version": version} for name, version in found.added.items()],
        "removed": [{"name": name, "version": version} for name, version in found.removed.items()],
        "changed": [{"name": n, "before": was, "after": now} for n, (was, now) in found.changed.items()],
    }


def _held(home: Home, version: Runtime) -> Json:
    """What lies on the disk; what is asked for, as long as nothing does."""
    found = _inventory(home, version)
    if found is None:
        return {"python_version": spec.parse_text(version.yaml).python_version, "packages": None, "size_bytes": None}
    packages = [{"name": name, "version": number} for name, number in found.packages.items()]
    return {"python_version": found.python_version, "packages": packages, "size_bytes": found.size_bytes}


def _inventory(home: Home, version: Runtime) -> Inventory | None:
    if version.state is not BuildState.SUCCEEDED:
        return None
    with contextlib.suppress(NotFoundError, FileNotFoundError):
        return inventory.take(Environment.open(home.environments / version.digest[:SHORT]))
    return None
