"""A built environment as it lies on the disk: its packages, Python and size, and whether it is still what was built.

That is a look at every file's size and time, some 10 us each: what was built is written down beside it. Small files
have their digest there too, for those whose time alone differs, as in a home that was copied. Files that came later
are an app's own affair.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from puna.artifacts import file_digest, write_text
from puna.packaging.command import size_bytes

FILES = "files.json"
SMALL_BYTES = 1 << 20
PASSED_OVER = "__pycache__"  # any import may write there


@dataclass(frozen=True)
class Damage:
    """Files that are not as they were built."""

    missing: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    """Of other content; the package cache may have it too, where files are links into that."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.changed)

    def __str__(self) -> str:
        """The first file that is missing or changed, and how many there are."""
        names, what = (self.missing, "is missing") if self.missing else (self.changed, "is not as it was built")
        more = len(self.missing) + len(self.changed) - 1
        return f"{names[0]} {what}" + (f", and {more} other files are damaged" if more else "")


def record(path: Path) -> None:
    """Write down what lies in the venv of the environment at `path`."""
    venv = path / "venv"
    known = {name: _state(venv / name, about) for name, about in _walk(venv, "")}
    write_text(path / FILES, json.dumps(known, separators=(",", ":")))


def damage(path: Path) -> Damage:
    """The files of the environment at `path` that are not as they were built.

    Of one that an older Puna built, packages' own lists tell what is missing; what is there then is written down.
    """
    venv = path / "venv"
    known = _known(path)
    if known is None:
        missing = tuple(name for _, name in _listed(venv) if not os.path.lexists(venv / name))
        if not missing:
            record(path)
        return Damage(missing)
    missing_, changed = [], []
    for name, state in known.items():
        try:
            about = os.lstat(f"{venv}/{name}")  # tens of thousands: a Path costs more than the look
        except OSError:
            missing_.append(name)
            continue
        if [about.st_size, about.st_mtime_ns] == state[:2] and not state[2].startswith("->"):
            continue
        if _state(venv / name, about)[2] != state[2] or not state[2]:
            changed.append(name)
        elif state[2].startswith("->") and not (venv / name).exists():
            missing_.append(name)  # the interpreter that it leads to
    return Damage(tuple(missing_), tuple(changed))


def _known(path: Path) -> dict[str, list[Any]] | None:
    """The record of what was built; None when it was not, or cannot be read."""
    try:
        found = json.loads((path / FILES).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def owners(path: Path, names: tuple[str, ...]) -> set[str]:
    """The packages that these files of the environment at `path` belong to."""
    return {package for package, name in _listed(path / "venv") if name in set(names)}


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name != PASSED_OVER:
                    yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name, entry.stat(follow_symlinks=False)


def _state(path: Path, about: os.stat_result) -> list[Any]:
    """Size, time, and what tells the content: a digest, a link's target, or nothing of a large file."""
    if path.is_symlink():
        return [about.st_size, 0, f"->{os.readlink(path)}"]
    return [about.st_size, about.st_mtime_ns, file_digest(path) if about.st_size <= SMALL_BYTES else ""]


def _listed(venv: Path) -> Iterator[tuple[str, str]]:
    """Package and file, of every file that the packages list themselves."""
    for listing in venv.glob("lib/python*/site-packages/*.dist-info/RECORD"):
        package, site = listing.parent.name.partition("-")[0], listing.parent.parent
        with listing.open(encoding="utf-8", errors="replace", newline="") as file:
            for row in csv.reader(file):
                if row and PASSED_OVER not in row[0]:
                    yield package, os.path.relpath(os.path.normpath(site / row[0]), venv)


@dataclass(frozen=True)
class Inventory:
    """An environment, as it lies on the disk."""

    packages: Mapping[str, str]
    """Name, as its author writes it -> version."""
    python_version: str
    size_bytes: int


@dataclass(frozen=True)
class Difference:
    """Differences between the packages of two environments, by name."""

    added: Mapping[str, str]
    removed: Mapping[str, str]
    changed: Mapping[str, tuple[str, str]]


def take(path: Path) -> Inventory:
    """Look into the finished environment at `path`; looked at once for as long as it is the same."""
    about = path.stat()
    return _take(path, (about.st_ino, about.st_mtime_ns))


@lru_cache(maxsize=256)
def _take(path: Path, _seen: tuple[int, int]) -> Inventory:
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
    """The changes that make `after` of `before`."""
    old = {normal(name): (name, version) for name, version in before.items()}
    new = {normal(name): (name, version) for name, version in after.items()}
    changed = {new[k][0]: (old[k][1], new[k][1]) for k in sorted(old.keys() & new.keys()) if old[k][1] != new[k][1]}
    added, removed = sorted(new.keys() - old.keys()), sorted(old.keys() - new.keys())
    return Difference(dict(new[key] for key in added), dict(old[key] for key in removed), changed)


def _python_version(config: Path) -> str:
    found = re.search(r"(?m)^version(?:_info)?\s*=\s*(\d+\.\d+\.\d+)", config.read_text() if config.is_file() else "")
    return found[1] if found else ""
