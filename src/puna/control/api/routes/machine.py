"""This machine: its GPUs, who holds and uses them, and whether a model fits."""

from __future__ import annotations

from fastapi import Query, Request
from typing_extensions import TypedDict

from puna.artifacts import Adapter
from puna.backends import machine
from puna.backends.base import GpuDevice
from puna.control.api.routing import Answer, Right, Routes
from puna.control.domain.api_keys import visible
from puna.control.domain.records import Key, Snapshot, view
from puna.control.operations.context import Control
from puna.control.resources import models, revision_files
from puna.control.resources.models import Fit, ModelSize, Need
from puna.errors import UsageError
from puna.home import Home
from puna.packaging import bundle
from puna.publish.registry import RegisteredVersion, Registry

NEAR_ZERO = 1e-6


class Fits(TypedDict):
    """The fit of a model in a whole GPU, and in half of it."""

    whole: Fit
    half: Fit


class GpuHolder(TypedDict):
    """A replica, or a build, that a share of a GPU is kept for."""

    endpoint: str | None
    """Null for a build."""
    replica: str | None
    share: float
    used_bytes: int | None
    """What it used a moment ago; null where nobody knows."""
    limit_bytes: int
    """With more, it is ended."""


class Gpu(TypedDict):
    """One GPU, and the share of it that replicas and builds hold."""

    index: int
    name: str
    memory_bytes: int
    free_bytes: int
    held: float
    holders: list[GpuHolder]
    fit: Fits | None
    """Null when no model was asked about."""


class Sized(TypedDict):
    """The memory that a model takes while it serves so many requests of so many tokens."""

    name: str
    kv_bytes_per_token: int
    """0: its config does not say."""
    weights_bytes: int
    kv_cache_bytes: int
    overhead_bytes: int
    total_bytes: int
    requests: int
    context: int


class Machine(TypedDict):
    """This machine."""

    cpus: float
    memory_bytes: int
    gpus: list[Gpu]
    model: Sized | None
    """Null when no model was asked about, or the source names none."""
    fit: Fit | None
    """Whether it fits the machine's own memory, for a replica on its CPUs."""


def routes(control: Control) -> Routes:
    """The handlers."""
    route = Routes("machine")

    @route("GET /machine", Right.OWN, Answer(refuses=(404,)))
    def get_machine(
        request: Request,
        model: str = "",
        source: str = "",
        weights_bytes: int = Query(0, ge=0),
        requests: int = Query(models.REQUESTS, ge=1, le=100_000),
        context: int = Query(0, ge=0, le=100_000_000),
    ) -> Machine:
        """Cores, memory and GPUs, who holds which share of them, and whether a model fits a whole one or a half.

        A key for some endpoints sees that others hold a share, and not which.

        The model is a published one, those that an uploaded source names, or any of so many bytes; the estimate is for
        `requests` at once of `context` tokens each.
        """
        wanted = _wanted(control.home, model, source, weights_bytes)
        need = wanted.need(requests, context) if wanted else None
        found, snapshot = machine.capacity(control.devices), control.store.snapshot()
        free, sized = control.devices.free_bytes(), None
        if wanted and need:
            sized = view(Sized, need, name=wanted.name, kv_bytes_per_token=wanted.kv_bytes_per_token)
        gpus = []
        for gpu in found.gpus:
            holders = _holders(gpu, snapshot, control, request.state.key)
            gpus.append(_gpu(gpu, free.get(gpu.index, 0), holders, need))
        return {
            "cpus": found.cpus,
            "memory_bytes": found.memory_bytes,
            "gpus": gpus,
            "model": sized,
            "fit": models.fit(need, found.memory_bytes, is_free=True) if need else None,
        }

    return route


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


def _gpu(gpu: GpuDevice, free_bytes: int, holders: list[GpuHolder], need: Need | None) -> Gpu:
    held = min(1.0, sum(holder["share"] for holder in holders))

    def fit(need: Need, share: float) -> Fit:
        is_free = held + share <= 1 + NEAR_ZERO and need.total_bytes <= free_bytes
        return models.fit(need, int(gpu.memory_bytes * share), is_free)

    fits = {"whole": fit(need, 1.0), "half": fit(need, 0.5)} if need else None
    return view(Gpu, gpu, free_bytes=free_bytes, held=held, holders=holders, fit=fits)


def _holders(gpu: GpuDevice, snapshot: Snapshot, control: Control, key: Key | None) -> list[GpuHolder]:
    """Replicas and builds that a share of a GPU is kept for, as a request's key may see them, and what they use."""
    use = control.gpu_use()

    def holder(share: float, endpoint: str | None = None, replica: str | None = None) -> GpuHolder:
        is_seen = endpoint is None or visible(key, endpoint)
        return {
            "endpoint": endpoint if is_seen else None,
            "replica": replica if is_seen else None,
            "share": share,
            "used_bytes": use.get(replica) if replica else None,
            "limit_bytes": int(gpu.memory_bytes * share),
        }

    mine = [r for r in snapshot.replicas if r.gpu == str(gpu.index) and r.fraction]
    found = [holder(replica.fraction, replica.endpoint, replica.id) for replica in mine]
    return found + [holder(share) for index, share in snapshot.reserved if index == str(gpu.index)]
