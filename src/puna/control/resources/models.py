"""Published models: their runs, the endpoints that serve them, the adapters of a base, and what fits a GPU."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from typing_extensions import TypedDict

from puna.artifacts import ADAPTER_BASE, MANIFEST, SHORT
from puna.control.domain.records import Revision
from puna.control.domain.states import PENDING, RevisionState
from puna.errors import NotFoundError
from puna.home import Home
from puna.publish.registry import RegisteredVersion, Registry, of_base
from puna.train.reporting.record import Run, list_runs


class ServedBy(TypedDict):
    """An endpoint whose serving or pending revision holds a model."""

    endpoint: str
    revision: int


def adapter_digest(run: Run) -> str:
    """The digest of what a run made; empty before it has finished."""
    return str(_manifest(run.path / "adapter").get("digest", ""))


def trained(home: Home) -> dict[str, str]:
    """Every finished run by its adapter's digest."""
    return {digest: run.name for run in list_runs(home) if (digest := adapter_digest(run))}


def models_of(home: Home, bundle: str) -> list[dict[str, Any]]:
    """The published models in a bundle: name, version, digest; of an adapter also its base's digest."""
    return list(_manifest(home.bundles / bundle[:SHORT]).get("config", {}).get("models", ())) if bundle else []


def users(home: Home, revisions: Iterable[Revision]) -> dict[str, list[ServedBy]]:
    """By a model's digest, the revisions that serve it or are about to."""
    found: dict[str, list[ServedBy]] = {}
    for revision in revisions:
        if revision.state in PENDING or revision.state is RevisionState.SERVING:
            for model in models_of(home, revision.bundle):
                used = ServedBy(endpoint=revision.endpoint, revision=revision.number)
                found.setdefault(str(model["digest"]), []).append(used)
    return found


def size_bytes(version: RegisteredVersion) -> int | None:
    """Bytes of a version's files; None when its weights are gone."""
    if not version.path.is_dir():
        return None
    return sum(path.stat().st_size for path in version.path.rglob("*") if path.is_file())


def run_of(version: RegisteredVersion, runs: dict[str, str]) -> str | None:
    """The run that trained a version, while its folder is there; `runs` are those of `trained`.

    A published adapter has the digest of its run's own: the files are the same.
    """
    return runs.get(version.lineage.get("adapter", "")) or runs.get(version.digest)


def dataset_of(home: Home, run: Run) -> dict[str, Any]:
    """Figures of the rows that a run learnt from; empty when the dataset is gone."""
    return dict(_manifest(home.datasets / run.dataset[:SHORT]).get("metrics", {})) if run.dataset else {}


def published(versions: Iterable[RegisteredVersion], runs: dict[str, str]) -> dict[str, list[RegisteredVersion]]:
    """By a run's name, the versions that came of it."""
    found: dict[str, list[RegisteredVersion]] = {}
    for version in versions:
        if run := run_of(version, runs):
            found.setdefault(run, []).append(version)
    return found


def version_of(versions: Iterable[RegisteredVersion], name: str, number: int) -> RegisteredVersion:
    """One version of a model, its weights there or not.

    Raises:
        NotFoundError: there is none.
    """
    for version in versions:
        if (version.name, version.version) == (name, number):
            return version
    raise NotFoundError(f"no model {name}:{number} is published", "`puna model list` shows what is published")


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / MANIFEST).read_text()))
    except (OSError, ValueError):
        return {}


Stamp = tuple[tuple[str, int], ...]
NONE: Mapping[str, str] = {}
KNOWN = 1000
"""Bundles whose base is remembered."""


class Adapters:
    """The adapters by bundle. Publishing is other processes' work: the registry's files are looked at for changes."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._bases: dict[str, str] = {}
        """Bundle -> the model that its adapters are served on, empty for a bundle of another kind."""
        self._found: dict[str, Mapping[str, str]] = {}
        self._stamp = self._look()

    def of(self, bundle: str) -> Mapping[str, str]:
        """`owner/name` -> folder, of every adapter that a request to this bundle's endpoint may name."""
        base = self._base(bundle)
        if not base:
            return NONE
        with self._lock:
            if base not in self._found:
                self._found[base] = of_base(Registry(self._home), base)
            return self._found[base]

    def have_changed(self) -> bool:
        """True once after something was published or deleted that a bundle asked about may be served with."""
        with self._lock:
            stamp = self._look()
            if stamp == self._stamp:
                return False
            self._stamp = stamp
            before, self._found = self._found, {}
            self._found |= {base: of_base(Registry(self._home), base) for base in before}
            return self._found != before

    def _base(self, bundle: str) -> str:
        known = self._bases.get(bundle)
        if known is not None or not bundle:
            return known or ""
        try:
            about = json.loads((self._home.bundles / bundle[:SHORT] / "bundle.json").read_text())
        except (OSError, ValueError):
            return ""  # the bundle is gone; its endpoint says so when a replica is to start
        if len(self._bases) >= KNOWN:
            self._bases.clear()  # most of them are of revisions long gone
        base = self._bases[bundle] = str(about.get(ADAPTER_BASE) or "")
        return base

    def _look(self) -> Stamp:
        files = sorted(self._home.registry.glob("*/[!.]*.json"))
        return tuple((str(path), path.stat().st_mtime_ns) for path in files if path.exists())


GIB = 2**30
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1}
CONTEXT = 8192
"""Tokens of a request, where nobody says: as many, or the model's own most."""
REQUESTS = 4
# CUDA, its graphs and the largest batch's activations, which grow with the model. An 8 B engine asleep, its weights and
# cache given back, held 1.8 GiB (H200).
OVERHEAD_BYTES, OVERHEAD_PART, MOST_BYTES = GIB, 1 / 8, 4 * GIB
TIGHT = 0.9
"""What takes more of its room than this is tight: estimates are no better."""


@dataclass(frozen=True)
class ModelSize:
    """A model's size."""

    name: str
    weights_bytes: int
    kv_bytes_per_token: int = 0
    """0: its config does not say."""
    context: int = 0
    """The longest request that it can take; 0: not known."""

    def need(self, requests: int, context: int) -> Need:
        """Bytes for so many requests of so many tokens at once; 0 tokens: the usual number."""
        usual = min(CONTEXT, self.context or CONTEXT)
        tokens = min(context, self.context or context) or usual
        overhead = min(OVERHEAD_BYTES + int(self.weights_bytes * OVERHEAD_PART), MOST_BYTES)
        return Need(self.weights_bytes, self.kv_bytes_per_token * requests * tokens, overhead, requests, tokens)


@dataclass(frozen=True)
class Need:
    """Bytes, and what they are for."""

    weights_bytes: int
    kv_cache_bytes: int
    overhead_bytes: int
    requests: int
    context: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.kv_cache_bytes + self.overhead_bytes

    def describe(self) -> str:
        """The sum as a person reads it."""
        cache = f"{_gib(self.kv_cache_bytes)} KV cache ({self.requests} × {self.context} tokens)"
        cache = cache if self.kv_cache_bytes else "a KV cache of unknown size"
        parts = f"{_gib(self.weights_bytes)} weights + {cache} + {_gib(self.overhead_bytes)} overhead"
        return f"{parts} = {_gib(self.total_bytes)}"


class Fit(TypedDict):
    """A model against the memory there is."""

    verdict: Literal["fits", "tight", "does not fit"]
    room_bytes: int
    left_bytes: int
    """Below 0: so much is missing."""
    free_now: bool
    """Nobody holds or uses that room."""
    said: str
    """The verdict with its sum, for people."""


def fit(need: Need, room_bytes: int, is_free: bool) -> Fit:
    """`fits`, `tight` or `does not fit`, by how much, and whether that room is free now."""
    left = room_bytes - need.total_bytes
    verdict: Literal["fits", "tight", "does not fit"]
    verdict = "does not fit" if left < 0 else "tight" if need.total_bytes > TIGHT * room_bytes else "fits"
    by = f", by {_gib(-left)}" if left < 0 else ""
    said = f"{verdict}{by}: {need.describe()} of {_gib(room_bytes)}"
    return {"verdict": verdict, "room_bytes": room_bytes, "left_bytes": left, "free_now": is_free, "said": said}


def read_size(name: str, folder: Path) -> ModelSize:
    """A model's folder in Hugging Face's layout: only its config and the sizes of its files are looked at."""
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        config = {**config, **(config.get("text_config") or {})}  # models that also see keep it there
        heads = int(config["num_attention_heads"])
        width = int(config.get("head_dim") or config["hidden_size"] // heads)
        each = int(config.get("num_key_value_heads") or heads) * width
        size = BYTES.get(str(config.get("dtype") or config.get("torch_dtype")), 2)
        token = 2 * int(config["num_hidden_layers"]) * each * size
        return ModelSize(name, weights, token, int(config.get("max_position_embeddings") or 0))
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return ModelSize(name, weights)


def together(name: str, models: list[ModelSize]) -> ModelSize:
    """The size of all that one app loads: weights and caches add up; of contexts it is the shortest."""
    contexts = [model.context for model in models if model.context]
    tokens = sum(model.kv_bytes_per_token for model in models)
    return ModelSize(name, sum(model.weights_bytes for model in models), tokens, min(contexts, default=0))


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / GIB:.1f} GiB"
