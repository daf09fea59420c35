"""The comparison of two revisions: settings, runtime and packages, files with their lines."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from puna.artifacts import SHORT, Source
from puna.config.settings import masked_env
from puna.control.domain.records import Revision, view
from puna.control.domain.states import RevisionState
from puna.control.operations.context import Control
from puna.control.resources.revision_files import find_source
from puna.errors import NotFoundError
from puna.home import Home
from puna.packaging import inventory
from puna.packaging.environment import Environment
from puna.packaging.inventory import Inventory

Json = dict[str, Any]
MAX_FILE_BYTES = 64 * 1024
MAX_LINES_BYTES = 256 * 1024
"""Of all files' lines together."""
MAX_FILES = 500


class ComparedRevision(TypedDict):
    """One of two revisions that were compared."""

    revision: int
    state: RevisionState
    created: float
    source: str
    commit: str | None
    runtime: str | None
    runtime_version: int | None
    environment: str


class ChangedSetting(TypedDict):
    """A setting, `env.NAME` for one of a mapping; null where it is not set."""

    name: str
    before: Any
    after: Any


class Package(TypedDict):
    """An installed package."""

    name: str
    version: str


class ChangedPackage(TypedDict):
    """A package whose version is another."""

    name: str
    before: str
    after: str


class ChangedPackages(TypedDict):
    """The differences between two environments, as installed."""

    added: list[Package]
    removed: list[Package]
    changed: list[ChangedPackage]


class ChangedFile(TypedDict):
    """A file that is different."""

    path: str
    change: str
    """`added`, `removed` or `changed`."""
    lines: str | None
    """As `diff -u`; null where they are not shown."""
    why: str
    """Why they are not."""


_From = TypedDict("_From", {"from": ComparedRevision})  # no name that a class can have


class RevisionDiff(_From):
    """The changes from one revision to another."""

    endpoint: str
    to: ComparedRevision
    settings: list[ChangedSetting]
    packages: ChangedPackages | None
    """Null when one of the two environments is not there."""
    files: list[ChangedFile] | None
    """Null when one of the two sources has been cleared away."""
    is_cut: bool
    """More files differ than are told."""


def compare(control: Control, name: str, before: int, after: int) -> RevisionDiff:
    """Compare revision `before` of an endpoint with revision `after`.

    Raises:
        NotFoundError: there is no such revision.
    """
    old, new = control.store.revision(name, before), control.store.revision(name, after)
    files, is_cut = _files(control.home, old, new)
    return {
        "endpoint": name,
        "from": _about(old),
        "to": _about(new),
        "settings": _settings(old, new),
        "packages": _packages(control.home, old, new),
        "files": files,
        "is_cut": is_cut,
    }


def _about(revision: Revision) -> ComparedRevision:
    return view(ComparedRevision, revision, revision=revision.number, commit=revision.settings.git.get("commit"))


def _settings(old: Revision, new: Revision) -> list[ChangedSetting]:
    """Those that differ; of `env` and `volumes` each name by itself. Values that sound like credentials are hidden."""
    was, now = _flat(old), _flat(new)
    before, after = _flat(old, hide=True), _flat(new, hide=True)
    return [
        {"name": name, "before": before.get(name), "after": after.get(name)}
        for name in sorted({*was, *now})
        if was.get(name) != now.get(name)
    ]


def _flat(revision: Revision, *, hide: bool = False) -> Json:
    values = revision.settings.as_dict()
    if hide:
        values["env"] = masked_env(values["env"])
    values["git"] = {key: value for key, value in values["git"].items() if key != "commit"}
    flat: Json = {}
    for key, value in values.items():
        flat |= {f"{key}.{name}": one for name, one in value.items()} if isinstance(value, Mapping) else {key: value}
    return flat


def _packages(home: Home, old: Revision, new: Revision) -> ChangedPackages | None:
    """None when one of the two environments is not there: not built yet, failed, or cleared away."""
    with contextlib.suppress(NotFoundError, FileNotFoundError):
        held = [inventory.take(Environment.open(home.environments / r.environment[:SHORT]).path) for r in (old, new)]
        return changed_packages(held[0], held[1])
    return None


def packages(versions: Mapping[str, str]) -> list[Package]:
    """Packages as the API shows them."""
    return [{"name": name, "version": version} for name, version in versions.items()]


def changed_packages(before: Inventory, after: Inventory) -> ChangedPackages:
    """The packages that two environments do not have in common."""
    found = inventory.compare(before.packages, after.packages)
    return {
        "added": packages(found.added),
        "removed": packages(found.removed),
        "changed": [{"name": name, "before": was, "after": now} for name, (was, now) in found.changed.items()],
    }


def _files(home: Home, old: Revision, new: Revision) -> tuple[list[ChangedFile] | None, bool]:
    """The files that differ, and whether there are more than are told; None when a source has been cleared away."""
    if old.source == new.source:
        return [], False
    try:
        sources = find_source(home, old.source), find_source(home, new.source)
    except NotFoundError:
        return None, False
    was, now = sources[0].manifest.files, sources[1].manifest.files
    paths = sorted(path for path in {*was, *now} if was.get(path) != now.get(path))
    differing: list[ChangedFile] = []
    left = MAX_LINES_BYTES
    for path in paths[:MAX_FILES]:
        change = "changed" if path in was and path in now else "added" if path in now else "removed"
        one: ChangedFile = {"path": path.removeprefix("files/"), "change": change, "lines": None, "why": ""}
        texts = [_text(source, path) if path in source.manifest.files else "" for source in sources]
        if None in texts:
            one["why"] = f"no text, or over {MAX_FILE_BYTES >> 10} KiB"
        else:
            lines = _lines(one["path"], str(texts[0]), str(texts[1]))
            if len(lines) > left:
                one["why"] = f"the lines of all files are over {MAX_LINES_BYTES >> 10} KiB"
            else:
                one["lines"], left = lines, left - len(lines)
        differing.append(one)
    return differing, len(paths) > MAX_FILES


def _text(source: Source, path: str) -> str | None:
    """A small file's text; None when it is something else."""
    file: Path = source.path / path
    if file.is_symlink() or not file.is_file() or file.stat().st_size > MAX_FILE_BYTES:
        return None
    data = file.read_bytes()
    with contextlib.suppress(UnicodeDecodeError):
        return None if b"\0" in data else data.decode()
    return None


def _lines(path: str, old: str, new: str) -> str:
    """As `diff -u`."""
    found = difflib.unified_diff(old.splitlines(), new.splitlines(), f"a/{path}", f"b/{path}", lineterm="")
    return "\n".join(found)
