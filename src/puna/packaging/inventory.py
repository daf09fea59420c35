"""What a built environment holds: packages as their metadata says, Python's version, the room it takes on the disk."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from puna.packaging.environment import MARKER, Environment
from puna.packaging.limits import size_bytes


@dataclass(frozen=True)
class Inventory:
    """An environment, as it lies on the disk."""

    packages: Mapping[str, str]
    """Name, as its author writes it -> version."""
    python_version: str
    size_bytes: int


@dataclass(frozen=True)
class Difference:
    """What is different between the packages of two environments; by name."""

    added: Mapping[str, str]
    removed: Mapping[str, str]
    changed: Mapping[str, tuple[str, str]]


def take(environment: Environment) -> Inventory:
    """Look into a finished environment; looked at once for as long as it is the same."""
    return _take(environment.path, (environment.path / MARKER).stat().st_ino)


@lru_cache(maxsize=256)
def _take(path: Path, _marker: int) -> Inventory:
    venv = path / "venv"
    folders = sorted(str(folder) for folder in venv.glob("lib*/python*/site-packages") if not folder.is_symlink())
    return Inventory(installed(folders), _python_version(venv / "pyvenv.cfg"), size_bytes(path))


def installed(folders: Iterable[str]) -> dict[str, str]:
    """Name -> version of the distributions in these folders, by name."""
    found: dict[str, tuple[str, str]] = {}
    for one in metadata.distributions(path=list(folders)):
        name = one.metadata["Name"]  # None, where somebody left half a package behind
        if name:
            found.setdefault(normal(name), (name, one.version))
    return {name: version for _, (name, version) in sorted(found.items())}


def normal(name: str) -> str:
    """One spelling of a package's name: `Foo_bar.baz` is `foo-bar-baz`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def compare(before: Mapping[str, str], after: Mapping[str, str]) -> Difference:
    """What has to change for `before` to become `after`."""
    old = {normal(name): (name, version) for name, version in before.items()}
    new = {normal(name): (name, version) for name, version in after.items()}
    changed = {new[k][0]: (old[k][1], new[k][1]) for k in sorted(old.keys() & new.keys()) if old[k][1] != new[k][1]}
    added, removed = sorted(new.keys() - old.keys()), sorted(old.keys() - new.keys())
    return Difference(dict(new[key] for key in added), dict(old[key] for key in removed), changed)


def _python_version(config: Path) -> str:
    found = re.search(r"(?m)^version(?:_info)?\s*=\s*(\d+\.\d+\.\d+)", config.read_text() if config.is_file() else "")
    return found[1] if found else ""
