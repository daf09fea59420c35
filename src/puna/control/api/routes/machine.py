"""The API's part about this machine: its GPUs, who holds and uses them, and whether a model fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Query, Request

from puna.artifacts import Adapter
from puna.backends import machine
from puna.backends.base import GpuDevice
from puna.control.domain.api_keys import visible
from puna.control.domain.records import Key, Snapshot
from puna.control.operations.context import Control
from puna.control.resources import models, revision_files
from puna.control.resources.models import ModelSize, Need
from puna.errors import UsageError
from puna.home import Home
from puna.packaging import bundle
from puna.publish.registry import RegisteredVersion, Registry

Json = dict[str, Any]
SHARES = {"whole": 1.0, "half": 0.5}
NEAR_ZERO = 1e-6


def routes(control: Control) -> APIRouter:
    """The handlers under /api/v1."""
    router = APIRouter(tags=["machine"])

    @router.get("/machine")
    def get_machine(
        request: Request,
        model: str = "",
        source: str = "",
        weights_bytes: int = Query(0, ge=0),
        requests: int = Query(models.REQUESTS, ge=1, le=100_000),
        context: int = Query(0, ge=0, le=100_000_000),
    ) -> Json:
        """Cores, memory and GPUs, who holds which share of them, and whether a model fits a whole one or a half.

        A key for some endpoints sees that others hold a share, and not which.

        The model is a published one, those that an uploaded source names, or any of so many bytes; the estimate is for
        `requests` at once of `context` tokens each.
        """
        wanted = _wanted(control.home, model, source, weights_bytes)
        need = wanted.need(requests, context) if wanted else None
        found, snapshot = machine.capacity(control.devices), control.store.snapshot()
        free = control.devices.free_bytes()
        gpus = []
        for gpu in found.gpus:
            holders = [_named(holder, request.state.key) for holder in _holders(gpu, snapshot, control)]
            gpus.append(_tile(gpu, free.get(gpu.index, 0), holders, need))
        shown: Json = {"cpus": found.cpus, "memory_bytes": found.memory_bytes, "gpus": gpus, "model": None, "fit": None}
        if wanted and need:
            shown["model"] = {"name": wanted.name, "kv_bytes_per_token": wanted.kv_bytes_per_token} | need.as_dict()
            shown["fit"] = models.fit(need, found.memory_bytes, is_free=True)
        return shown

    return router


def _wanted(home: Home, model: str, source: str, weights_bytes: int) -> ModelSize | None:
    """The model that is asked about; None when none is."""
    if sum(map(bool, (model, source, weights_bytes))) > 1:
        raise UsageError("several of model, source and weights_bytes were named", "name one")
    registry = Registry(home)
    names = [model] if model else []
    if source:
        names = bundle.models_named(
            revision_files.find_source(home, source), {version.name for version in registry.list()}
        )
    if names:
        parts: dict[str, ModelSize] = {}
        for name in names:
            parts |= _parts(registry, registry.resolve(name))
        return models.together(", ".join(names), list(parts.values()))
    return ModelSize(f"{weights_bytes} bytes", weights_bytes) if weights_bytes else None


def _parts(registry: Registry, version: RegisteredVersion) -> dict[str, ModelSize]:
    """Digest -> what is loaded: a model, or an adapter and the model that it is served on."""
    if version.kind != Adapter.kind:
        return {version.digest: models.read_size(version.ref, version.path)}
    base = registry.serving_base(version)
    adapter = ModelSize(version.ref, models.read_size(version.ref, version.path).weights_bytes)
    return {base.digest: models.read_size(version.ref, base.path), version.digest: adapter}


def _tile(gpu: GpuDevice, free_bytes: int, holders: Sequence[Json], need: Need | None) -> Json:
    held = min(1.0, sum(holder["share"] for holder in holders))
    shown: Json = {
        "index": gpu.index,
        "name": gpu.name,
        "memory_bytes": gpu.memory_bytes,
        "free_bytes": free_bytes,
        "held": held,
        "holders": holders,
        "fit": None,
    }
    if need:
        rooms = {name: int(gpu.memory_bytes * share) for name, share in SHARES.items()}
        shown["fit"] = {
            name: models.fit(need, rooms[name], held + share <= 1 + NEAR_ZERO and need.total_bytes <= free_bytes)
            for name, share in SHARES.items()
        }
    return shown


def _named(holder: Json, key: Key | None) -> Json:
    """A holder as a request's key may see it."""
    if holder["endpoint"] is None or visible(key, holder["endpoint"]):
        return holder
    return holder | {"endpoint": None, "replica": None}


def _holders(gpu: GpuDevice, snapshot: Snapshot, control: Control) -> Sequence[Json]:
    """Replicas and builds that a share of a GPU is kept for, and what they use of it where that is known."""
    use = control.gpu_use()
    found: list[Json] = [
        {"endpoint": r.endpoint, "replica": r.id, "share": r.fraction, "used_bytes": use.get(r.id)}
        for r in snapshot.replicas
        if r.gpu == str(gpu.index) and r.fraction
    ]
    builds = [share for index, share in snapshot.reserved if index == str(gpu.index)]
    found += [{"endpoint": None, "replica": None, "share": share, "used_bytes": None} for share in builds]
    return [holder | {"limit_bytes": int(gpu.memory_bytes * holder["share"])} for holder in found]
