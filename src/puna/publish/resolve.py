"""Resolve a recipe's `base`: the demo's Llama, a local folder, a published model, or one on the hub."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from puna import demo
from puna.artifacts import Adapter
from puna.errors import NotFoundError, UsageError, nearest
from puna.home import Home
from puna.progress import Progress, Silent
from puna.publish.hub import pull
from puna.publish.registry import Registry, parse

DEMO = "demo"
HUB = "hub:"


@dataclass(frozen=True)
class Base:
    """A base model on this machine."""

    path: Path
    ref: str
    """Its exact name: `demo`, a path, `owner/name:version`, or `hub:owner/name@commit`; may be resolved again."""


def resolve_base(ref: str, revision: str | None, home: Home, progress: Progress = Silent()) -> Base:
    """Find a base, fetching it from the hub if need be. Weights must be safetensors: nothing is ever unpickled.

    Names are tried in this order: `demo`, a local folder, a published model, the hub. `hub:owner/name` goes straight
    to the hub.

    Raises:
        NotFoundError: it is nowhere, or what is there is no model that can be used; with what to do about it.
    """
    if ref == DEMO:
        return Base(_checked(demo.BASE, "the demo's base"), DEMO)
    if ref.startswith(("/", "./", "../", "~")) or (ref and Path(ref).is_dir()):
        path = Path(ref).expanduser().absolute()
        if not path.is_dir():
            raise NotFoundError(f"the base {ref} is no folder", _similar_folder(path))
        return Base(_checked(path, f"the base {ref}"), str(path))
    published = None if ref.startswith(HUB) else _published(ref, home)
    if published is not None:
        progress.note(f"base: {published.ref}, published here")
        return published
    return _from_hub(ref, revision, home, progress)


def _published(ref: str, home: Home) -> Base | None:
    try:
        name = parse(ref).name
    except UsageError:
        return None
    registry = Registry(home)
    if name not in {version.name for version in registry.list()}:
        return None
    version = registry.resolve(ref)
    if version.kind == Adapter.kind:
        raise UsageError(
            f"the base {version.ref} is an adapter, published without merging",
            "merge its run and publish that: puna merge RUN, then puna publish RUN owner/name",
        )
    return Base(_checked(version.path, f"the base {version.ref}"), version.ref)


def _from_hub(ref: str, revision: str | None, home: Home, progress: Progress) -> Base:
    repo_id, _, pinned = ref.removeprefix(HUB).partition("@")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo_id):
        raise NotFoundError(
            f"the base `{ref}` is neither a folder, nor a published model, nor a name on the hub",
            "write a path, owner/name, or demo",
        )
    try:
        path = pull(repo_id, revision or pinned or None, home, progress)
    except NotFoundError as error:
        # A gated model, or a hub out of reach, is no misspelling.
        published = {version.name for version in Registry(home).list()} if "no such model" in error.message else set()
        hint = "; ".join(part for part in (nearest(repo_id, published), error.hint) if part)
        raise NotFoundError(error.message, hint, error.detail) from error
    # The cache's folder of one commit is named by it.
    return Base(_checked(path, f"the base {repo_id}"), f"{HUB}{repo_id}@{path.name}")


def _checked(path: Path, what: str) -> Path:
    if not (path / "config.json").is_file():
        raise NotFoundError(f"{what} has no config.json: {path}", "name the folder of a model in Hugging Face's layout")
    if not any(path.glob("*.safetensors")):
        if any(path.glob("*.bin")) or any(path.glob("*.pth")):
            raise NotFoundError(
                f"{what} has pickled weights only, which may run code when read; Puna never unpickles",
                "convert it to safetensors, or name a base that has them",
            )
        raise NotFoundError(
            f"{what} has no safetensors weights: {path}",
            "name a base that has them; pickled ones are never fetched or read",
        )
    return path


def _similar_folder(path: Path) -> str:
    there = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    found = difflib.get_close_matches(path.name, there, n=1, cutoff=0.5)
    return f"did you mean `{path.parent / found[0]}`?" if found else "check the path"
