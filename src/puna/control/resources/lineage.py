"""From run to model to endpoint: which trained which, and which is served by which."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from puna.artifacts import MANIFEST, SHORT
from puna.control.domain.records import Revision
from puna.control.domain.states import PENDING, RevisionState
from puna.errors import NotFoundError
from puna.home import Home
from puna.publish.registry import RegisteredVersion
from puna.train.reporting.record import Run, list_runs


def adapter_digest(run: Run) -> str:
    """The digest of what a run made; empty before it has finished."""
    return str(_manifest(run.path / "adapter").get("digest", ""))


def trained(home: Home) -> dict[str, str]:
    """Every finished run by its adapter's digest."""
    return {digest: run.name for run in list_runs(home) if (digest := adapter_digest(run))}


def models_of(home: Home, bundle: str) -> list[dict[str, Any]]:
    """The published models in a bundle: name, version, digest; of an adapter also its base's digest."""
    return list(_manifest(home.bundles / bundle[:SHORT]).get("config", {}).get("models", ())) if bundle else []


def users(home: Home, revisions: Iterable[Revision]) -> dict[str, list[dict[str, Any]]]:
    """By a model's digest, who serves it or is about to: `{"endpoint", "revision"}`."""
    found: dict[str, list[dict[str, Any]]] = {}
    for revision in revisions:
        if revision.state in PENDING or revision.state is RevisionState.SERVING:
            for model in models_of(home, revision.bundle):
                used = {"endpoint": revision.endpoint, "revision": revision.number}
                found.setdefault(str(model["digest"]), []).append(used)
    return found


def size(version: RegisteredVersion) -> int | None:
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
    """What is known of the rows that a run learnt from; empty when the dataset is gone."""
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
