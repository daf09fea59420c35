"""Artifacts, which stages hand to each other: folders with a manifest, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Self

from puna.errors import ConflictError, MachineError, NotFoundError

MANIFEST = "manifest.json"
ADAPTER_BASE = "adapter_base"  # in a bundle's config: the digest of the model that its adapters share
SHORT = 16  # hex digits of a digest that name a folder: 64 bits, no collision in one home


@dataclass(frozen=True)
class Manifest:
    """An artifact's kind, files and origin; `digest` covers every file but the manifest itself."""

    kind: str
    digest: str
    created: str
    """UTC, ISO 8601."""
    made_from: Mapping[str, str]
    """Role -> digest (or `hub:owner/name@revision`): the lineage."""
    config: Mapping[str, Any]
    """The configuration that the user asked for."""
    metrics: Mapping[str, Any]
    """Measured figures."""
    files: Mapping[str, str]
    """Relative path -> sha256."""


@dataclass(frozen=True)
class Artifact:
    """A folder with a manifest."""

    kind: ClassVar[str] = ""
    path: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        """sha256 of the sorted file digests, in hex."""
        return self.manifest.digest

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the artifact at `path`.

        Raises:
            NotFoundError: there is none, or it is of another kind.
        """
        try:
            manifest = Manifest(**json.loads((path / MANIFEST).read_text()))
        except FileNotFoundError:
            raise NotFoundError(f"{path} holds no {cls.kind}: {MANIFEST} is missing") from None
        except (ValueError, TypeError) as error:
            raise NotFoundError(f"{path / MANIFEST} cannot be read: {error}") from None
        if cls.kind and manifest.kind != cls.kind:
            raise NotFoundError(f"{path} holds a {manifest.kind}, not a {cls.kind}")
        return cls(path, manifest)

    def damage(self) -> str:
        """The first file that is missing or has changed, empty when nothing is.

        Only what was written as it was sealed or later is read again: 16 GB take as long as their files are many.
        """
        # A second earlier: the file system's clock is coarser than ours, and may be another machine's.
        sealed = datetime.fromisoformat(self.manifest.created).timestamp() - 1
        for name, expected in self.manifest.files.items():
            try:
                is_later = (self.path / name).stat().st_mtime > sealed
                if is_later and file_digest(self.path / name) != expected:
                    return f"{name} has changed"
            except OSError:
                return f"{name} is missing"
        return ""


@dataclass(frozen=True)
class Dataset(Artifact):
    """Tokenised rows: `train.safetensors`, `test.safetensors`, `tokenizer/`, `samples.json`."""

    kind: ClassVar[str] = "dataset"


@dataclass(frozen=True)
class Adapter(Artifact):
    """A trained LoRA in PEFT's file format, with the chat tokens' rows and the tokenizer."""

    kind: ClassVar[str] = "adapter"


@dataclass(frozen=True)
class Model(Artifact):
    """A whole model in the Hugging Face layout, weights in safetensors."""

    kind: ClassVar[str] = "model"


@dataclass(frozen=True)
class Source(Artifact):
    """A snapshot of a project folder, under `files/`."""

    kind: ClassVar[str] = "source"


@dataclass(frozen=True)
class Bundle(Artifact):
    """The files that a replica runs: `app/`, `hub/` (a Hugging Face cache view of its models), `bundle.json`."""

    kind: ClassVar[str] = "bundle"


@dataclass
class Draft:
    """An artifact being written: files go under `path`; `final` and `manifest` are set as the block ends."""

    path: Path
    made_from: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)
    """Relative path -> sha256 of files that are hard links into sealed artifacts: 16 GB need not be read again."""
    final: Path = field(init=False)
    manifest: Manifest = field(init=False)


@contextlib.contextmanager
def drafting(kind: str, parent: Path, name: str | None = None) -> Iterator[Draft]:
    """Write an artifact under `parent`, as `name` or as its own digest: whole, or not at all.

    The files are written to a sibling, fsynced and renamed. When an artifact of that digest is there
    already, it stays and the new copy goes. After the block, `Artifact.open(draft.final)`.

    Raises:
        MachineError: the disk is full.
    """
    _sweep(parent)
    draft = Draft(parent / f".draft-{os.getpid()}-{uuid.uuid4().hex[:12]}")
    try:
        draft.path.mkdir(parents=True)
        yield draft
        _seal(draft, kind, parent, name)
    except Exception as error:  # the caller sees it, as it is or as one sentence about the disk
        if not _is_disk_full(error):
            raise
        raise MachineError(
            f"no space left on the disk of {parent} while writing a {kind}",
            "free some space, or set PUNA_HOME to a larger disk; nothing half-written was kept",
        ) from error
    finally:
        shutil.rmtree(draft.path, ignore_errors=True)


def _is_disk_full(error: Exception) -> bool:
    # safetensors writes in Rust and tells the system's error in its text alone.
    return getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)


def _sweep(parent: Path) -> None:
    # A SIGKILL leaves a draft behind; its process id is in its name, so the next writer clears it away.
    for left in parent.glob(".draft-*"):
        pid = left.name.split("-")[1]
        if not Path("/proc", pid).exists():
            shutil.rmtree(left, ignore_errors=True)


def _seal(draft: Draft, kind: str, parent: Path, name: str | None) -> None:
    paths = list(draft.path.rglob("*"))
    names = sorted(p.relative_to(draft.path).as_posix() for p in paths if p.is_file())
    files = {n: draft.known.get(n) or file_digest(draft.path / n) for n in names}
    digest = tree_digest(files)
    draft.manifest = Manifest(
        kind, digest, datetime.now(UTC).isoformat(), draft.made_from, draft.config, draft.metrics, files
    )
    write_json(draft.path / MANIFEST, draft.manifest.__dict__)
    folders = sorted((p for p in paths if p.is_dir() and not p.is_symlink()), reverse=True)
    # A folder has the names of what is in it: without it a file's bytes are there and cannot be found.
    for path in (*(draft.path / n for n in names if n not in draft.known), *folders, draft.path):
        sync(path)
    draft.final = parent / (name or digest[:SHORT])
    while not _takes(draft.path, draft.final):
        if name is not None:
            raise ConflictError(f"{draft.final} exists already", "choose another name")
        if _is_whole(draft.final):
            break
        remove(draft.final)
    sync(parent)


def _takes(draft: Path, final: Path) -> bool:
    """Rename it; False: the name is taken."""
    try:
        draft.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _is_whole(path: Path) -> bool:
    try:
        return not Artifact.open(path).damage()
    except NotFoundError:
        return False  # its manifest was removed, or all of it, this moment


def remove(path: Path) -> None:
    """Take an artifact out of sight at once, then file by file: nobody opens half of one, and none is no fault."""
    draft = path.with_name(f".draft-{os.getpid()}-{uuid.uuid4().hex[:12]}")  # what is left of it goes with drafts
    with contextlib.suppress(FileNotFoundError):  # somebody else has removed it
        path.rename(draft)
    shutil.rmtree(draft, ignore_errors=True)


def tree_digest(files: Mapping[str, str]) -> str:
    """sha256 over `path NUL digest NEWLINE` of each file, sorted by path."""
    lines = "".join(f"{name}\0{digest}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def link(origin: Path, target: Path) -> None:
    """Make `target`, and the folders above it, a hard link to a file; a copy where the disk is another."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(origin, target)
    except OSError:  # another disk, or a file system without hard links
        shutil.copy2(origin, target)


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_json(path: Path, value: object) -> None:
    """Write JSON through a temporary sibling, so that a reader sees the old file or the new one."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Write text through a temporary sibling, fsynced and renamed."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
