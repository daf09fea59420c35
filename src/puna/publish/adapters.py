"""Adapters under names of their own: sealed into the home beside the models, and found by the model they fit."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from puna.artifacts import Adapter, Model, drafting
from puna.errors import NotFoundError
from puna.home import Home
from puna.publish.names import LATEST
from puna.publish.registry import SERVING_BASE, Registry

CONFIG = "adapter_config.json"


def seal(adapter: Adapter, serving_base: Model, home: Home) -> Adapter:
    """A copy of a run's adapter that outlives the run, in hard links, with the model that it is served on as lineage.

    Raises:
        MachineError: the disk is full.
    """
    with drafting("adapter", home.models) as draft:
        for name in adapter.manifest.files:
            _link(adapter.path / name, draft.path / name)
        draft.known |= dict(adapter.manifest.files)
        draft.made_from |= {**adapter.manifest.made_from, SERVING_BASE: serving_base.digest}
        draft.config |= dict(adapter.manifest.config)
        draft.metrics |= dict(adapter.manifest.metrics)
    assert draft.final is not None
    return Adapter.open(draft.final)


def rank_of(folder: Path) -> int:
    """The rank of an adapter, as its config states it.

    Raises:
        NotFoundError: the config is gone or damaged.
    """
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
        return int(config["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotFoundError(f"{folder / CONFIG} cannot be read: {error!r}", "publish the adapter again") from None


def of_base(registry: Registry, serving_base: str) -> dict[str, str]:
    """Every published adapter that is served on the model of that digest: `owner/name` and `owner/name:N` -> folder."""
    fits = [v for v in registry.list() if v.kind == Adapter.kind and v.lineage.get(SERVING_BASE) == serving_base]
    found = {version.ref: str(version.path) for version in fits}
    for version in fits:
        if LATEST in version.aliases:
            found[version.name] = str(version.path)
    return found


def _link(origin: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(origin, target)
    except OSError:  # another disk, or a file system without hard links
        shutil.copy2(origin, target)
