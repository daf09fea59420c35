"""A runtime file of an environment that is there: what was asked for in it, and not all that this brought along."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from puna.config import runtime
from puna.config.repository import CREDENTIALS
from puna.errors import BuildError, NotFoundError, RuntimeSpecError
from puna.packaging.inventory import normal

OWN = frozenset({"pip", "setuptools", "wheel", "distribute", "uv", "puna"})
"""Every environment is made with them, or without them."""
ASK = "import json, sys; print(json.dumps([list(sys.version_info[:2]), [p for p in sys.path if p]]))"
ASK_S = 60.0
_CUDA = re.compile(r"cu(\d+)(\d)")


@dataclass(frozen=True)
class Place:
    """The folders of an environment's packages, and its Python."""

    python_version: str
    folders: Sequence[str]


@dataclass(frozen=True)
class _Package:
    name: str
    version: str
    requires: frozenset[str]
    is_requested: bool
    """Somebody named it to the installer, which has written that down."""
    origin: dict[str, object]
    """PEP 610: where it comes from, when that is no index."""


def here() -> Path:
    """The environment that is active, else the one that runs this."""
    return Path(os.environ.get("VIRTUAL_ENV") or os.environ.get("CONDA_PREFIX") or sys.prefix)


def place(python: Path) -> Place:
    """The environment in a folder, or of an interpreter; the interpreter is asked.

    Raises:
        NotFoundError: there is none.
        BuildError: it does not answer.
    """
    candidates = [python / "bin" / "python", python / "bin" / "python3"] if python.is_dir() else [python]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise NotFoundError(f"{python} is no environment", "name a folder that has bin/python, or an interpreter")
    argv = [str(found), "-I", "-c", ASK]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=ASK_S, check=True)
        (major, minor), folders = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        raise BuildError(f"{found} does not say what it has", "is it an interpreter?", str(said)[-2000:]) from None
    return Place(f"{major}.{minor}", folders)


def text(where: Place, *, everything: bool = False) -> str:
    """A runtime file that asks for what is installed; `everything` pins all packages, however they came."""
    packages = _packages(where.folders)
    chosen = [p for name, p in sorted(packages.items()) if name not in OWN]
    if not everything:
        wanted = _asked_for(packages)
        chosen = [p for p in chosen if normal(p.name) in wanted]
    cuda, entries, notes = "", [], []
    for package in chosen:
        entry, note = _entry(package)
        entries += [entry] if entry else []
        notes += [note] if note else []
        cuda = cuda or _cuda_of(package)
    lines = ["build:"] + ([f'  cuda_version: "{cuda}"'] if cuda else [])
    lines += [f'  python_version: "{where.python_version}"', "  python_packages:" + ("" if entries else " []")]
    lines += [f"    - {json.dumps(entry)}" for entry in entries]
    lines += [f"# {note}" for note in notes]
    made = "\n".join(lines) + "\n"
    runtime.parse_text(made)  # what this writes can be uploaded
    return made


def _packages(folders: Sequence[str]) -> dict[str, _Package]:
    found: dict[str, _Package] = {}
    for one in metadata.distributions(path=list(folders)):
        name = one.metadata["Name"]
        if name and normal(name) not in found:  # the first on the path is the one that is imported
            requires = (re.match(r"[A-Za-z0-9._-]+", line) for line in one.requires or () if "extra" not in line)
            needed = frozenset(normal(match[0]) for match in requires if match)
            origin = json.loads(one.read_text("direct_url.json") or "{}")
            # uv writes REQUESTED beside every package, wanted or not; pip only beside those that were named.
            by_pip = (one.read_text("INSTALLER") or "").strip() == "pip"
            requested = by_pip and one.read_text("REQUESTED") is not None
            found[normal(name)] = _Package(name, one.version, needed, requested, origin)
    return found


def _asked_for(packages: dict[str, _Package]) -> set[str]:
    """Packages that somebody named, and those that no other needs and that are there all the same."""
    asked = {name for name, package in packages.items() if package.is_requested and name not in OWN}
    reached = _reached(packages, asked)
    others = {name: package for name, package in packages.items() if name not in reached and name not in OWN}
    needed = {need for package in others.values() for need in package.requires}
    roots = {name for name in others if name not in needed}
    # Packages that need one another and nothing else does: one of them, as good as the next.
    while rest := others.keys() - _reached(packages, roots):
        roots.add(min(rest))
    # Of these no index would give the same by itself, needed or not.
    special = {name for name, package in packages.items() if package.origin or "+" in package.version}
    return asked | roots | (special - OWN)


def _reached(packages: dict[str, _Package], names: set[str]) -> set[str]:
    found, todo = set(names), list(names)
    while todo:
        new = (packages[todo.pop()].requires & packages.keys()) - found
        found |= new
        todo += new
    return found


def _entry(package: _Package) -> tuple[str, str]:
    """The line that asks for a package, and what a reader must know; one of them may be empty."""
    name, url = package.name, str(package.origin.get("url", ""))
    if url:
        return _from_elsewhere(package, url)
    version, _, local = package.version.partition("+")
    if not local:
        return f"{name}=={version}", ""
    if _CUDA.fullmatch(local):
        return f"{name}=={version}", f"{name} is {package.version} here: built for CUDA {_cuda_of(package)}"
    if local == "cpu":
        return f"{name}=={version}", f"{name} is {package.version} here; without a GPU it comes in its CPU build anyway"
    return f"{name}=={version}", f"{name} is {package.version} here, which no index may have under that name"


def _from_elsewhere(package: _Package, url: str) -> tuple[str, str]:
    name, vcs = package.name, package.origin.get("vcs_info")
    shown = CREDENTIALS.sub("***", url)
    if urlsplit(url).scheme not in ("https", "http", "ssh"):
        what = f"{name} {package.version} is installed from {shown}, which only this machine has"
        return "", f"{what}: name a git+https or wheel address, or copy it into the app's folder"
    note = f"{name} was fetched with credentials, which are left out" if shown != url else ""
    plain = re.sub(r"(?<=://)[^/@\s]+@", "" if urlsplit(url).scheme != "ssh" else "git@", url)
    if isinstance(vcs, dict):
        plain = f"{vcs.get('vcs', 'git')}+{plain}@{vcs.get('commit_id', '')}".rstrip("@")
    folder = package.origin.get("subdirectory")
    entry = f"{name} @ {plain}" + (f"#subdirectory={folder}" if folder else "")
    try:
        runtime.parse({"build": {"python_packages": [entry]}})
    except RuntimeSpecError as error:
        return "", f"{name} {package.version} is installed from {shown}: {error.message}"
    return entry, note


def _cuda_of(package: _Package) -> str:
    found = _CUDA.fullmatch(package.version.partition("+")[2])
    return f"{found[1]}.{found[2]}" if found else ""
