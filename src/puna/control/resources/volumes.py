"""Volumes: named folders that outlive replicas, and their files. Links are never followed: apps may write any.

What an app writes into a volume is not to be trusted: a link in it may lead anywhere. Every path is therefore walked
folder by folder, each opened below the one before, and none may be a link.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from puna import names
from puna.backends import workspace
from puna.errors import ConflictError, NotFoundError, UsageError, nearest
from puna.home import Home

DEFAULT_ROOT = "/var/nfs-mount"
LONGEST_NAME = 255
"""Bytes that a file system takes for one name."""
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@dataclass(frozen=True)
class VolumeEntry:
    """A file, a folder or a link in a volume."""

    path: str
    kind: str
    """`file`, `folder`, `link` or `other`."""
    bytes: int
    modified: float


class Volumes:
    """The volumes of a home."""

    def __init__(self, home: Home) -> None:
        self.home = home

    def names(self) -> list[str]:
        """Every volume."""
        return sorted(path.name for path in self.home.volumes.iterdir() if path.is_dir() and not path.is_symlink())

    def create(self, name: str) -> bool:
        """Make a volume; False when it is there already.

        Raises:
            UsageError: the name is none.
        """
        names.check("volume", name)
        try:
            (self.home.volumes / name).mkdir(mode=0o700)
        except FileExistsError:
            return False
        return True

    def folder(self, name: str) -> Path:
        """A volume's folder.

        Raises:
            NotFoundError: there is no such volume.
        """
        path = self.home.volumes / name if names.fits("volume", name) else None
        if path is None or path.is_symlink() or not path.is_dir():
            raise self._missing(name)
        return path

    def _missing(self, name: str) -> NotFoundError:
        known = nearest(name, self.names())
        return NotFoundError(f"there is no volume `{name}`", known or f"`puna volume create {name}`")

    def delete(self, name: str) -> None:
        """Remove a volume with all that is in it, and the links that led to it.

        Raises:
            NotFoundError: there is no such volume.
        """
        folder = self.folder(name)
        workspace.unlink_volume(folder)
        gone = folder.with_name(f".{name}.{secrets.token_hex(4)}")
        try:
            folder.rename(gone)
        except FileNotFoundError:  # somebody else deletes it this moment
            raise self._missing(name) from None
        shutil.rmtree(gone)

    def mounted(self, volumes: Mapping[str, str]) -> dict[str, Path]:
        """`{mount path: folder}` of settings' `{name: mount path}`.

        Raises:
            NotFoundError: there is no such volume.
        """
        return {path or f"{DEFAULT_ROOT}/{name}": self.folder(name) for name, path in volumes.items()}

    def entries(self, name: str, path: str = "", recursive: bool = False) -> list[VolumeEntry]:
        """List a folder of a volume, or the one file at `path`.

        Raises:
            NotFoundError: there is nothing at `path`, or a link.
        """
        parts = parts_of(path)
        with self._parent(name, parts) as (parent, last):
            if last and not stat.S_ISDIR(_stat(name, parts, parent, last).st_mode):
                return [_entry(parent, last, "/".join(parts))]
            top = os.open(last, FOLDER, dir_fd=parent) if last else os.dup(parent)
        try:
            return sorted(_walk(top, "/".join(parts), recursive), key=lambda entry: entry.path)
        finally:
            os.close(top)

    def open(self, name: str, path: str) -> BinaryIO:
        """A file of a volume, to be read.

        Raises:
            NotFoundError: there is no plain file at `path`.
        """
        parts = parts_of(path)
        with self._parent(name, parts) as (parent, last):
            if not last or not stat.S_ISREG(_stat(name, parts, parent, last).st_mode):
                raise NotFoundError(f"{name}:/{'/'.join(parts)} is no file", f"`puna volume ls {name}:/`")
            return os.fdopen(os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent), "rb")

    @contextlib.contextmanager
    def writing(self, name: str, path: str) -> Iterator[BinaryIO]:
        """A file of a volume, to be written: there whole when the block ends well, and not at all otherwise.

        Raises:
            ConflictError: a folder is at `path`, or a file where a folder must be.
        """
        parts = parts_of(path)
        with self._parent(name, parts, make=True) as (parent, last):
            with contextlib.suppress(FileNotFoundError):
                if not last or not stat.S_ISREG(_lstat(parent, last).st_mode):
                    raise ConflictError(f"{name}:/{'/'.join(parts)} is no file", "name a file")
            part = f".{secrets.token_hex(8)}.part"
            file = os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=parent), "wb")
            try:
                with file:
                    yield file
                os.replace(part, last, src_dir_fd=parent, dst_dir_fd=parent)
            except BaseException:  # raised again
                os.unlink(part, dir_fd=parent)
                raise

    def remove(self, name: str, path: str) -> None:
        """Remove a file, a link, or a folder with all that is in it.

        Raises:
            NotFoundError: there is nothing at `path`.
        """
        parts = parts_of(path)
        if not parts:
            raise UsageError("that is the whole volume", f"`puna volume rm {name}` deletes it")
        with self._parent(name, parts) as (parent, last):
            if stat.S_ISDIR(_stat(name, parts, parent, last).st_mode):
                shutil.rmtree(last, dir_fd=parent)
            else:
                os.unlink(last, dir_fd=parent)

    @contextlib.contextmanager
    def _parent(self, name: str, parts: list[str], make: bool = False) -> Iterator[tuple[int, str]]:
        """The open folder that holds the last part, and that part; of no parts, the volume itself and nothing."""
        fd = os.open(self.folder(name), FOLDER)
        try:
            for number, part in enumerate(parts[:-1]):
                if make:
                    with contextlib.suppress(FileExistsError):  # perhaps by another upload, just now
                        os.mkdir(part, 0o700, dir_fd=fd)
                _stat(name, parts[: number + 1], fd, part)
                try:
                    below = os.open(part, FOLDER, dir_fd=fd)
                except OSError:
                    where = "/".join(parts[: number + 1])
                    raise ConflictError(f"{name}:/{where} is no folder", f"`puna volume ls {name}:/`") from None
                os.close(fd)
                fd = below
            yield fd, parts[-1] if parts else ""
        finally:
            os.close(fd)


def parts_of(path: str) -> list[str]:
    """The parts of a path inside a volume.

    Raises:
        UsageError: it leads out of the volume.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path:
        raise UsageError(f"path {path!r} leads out of the volume", "paths begin at the volume's top: NAME:/a/b")
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in parts):
        raise UsageError("the path has a name of more than 255 bytes", "no file can be called so")
    return parts


def _walk(top: int, prefix: str, recursive: bool) -> Iterator[VolumeEntry]:
    for item in os.listdir(top):
        try:
            entry = _entry(top, item, f"{prefix}/{item}".lstrip("/"))
            below = os.open(item, FOLDER, dir_fd=top) if recursive and entry.kind == "folder" else None
        except (FileNotFoundError, NotADirectoryError):  # an app has removed or replaced it meanwhile
            continue
        yield entry
        if below is not None:
            try:
                yield from _walk(below, entry.path, recursive)
            finally:
                os.close(below)


def _entry(parent: int, item: str, path: str) -> VolumeEntry:
    found = _lstat(parent, item)
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}
    kind = kinds.get(stat.S_IFMT(found.st_mode), "other")
    return VolumeEntry(path, kind, found.st_size if kind == "file" else 0, found.st_mtime)


def _lstat(parent: int, item: str) -> os.stat_result:
    return os.stat(item, dir_fd=parent, follow_symlinks=False)


def _stat(name: str, parts: list[str], parent: int, item: str) -> os.stat_result:
    try:
        return _lstat(parent, item)
    except FileNotFoundError:
        raise NotFoundError(f"there is no {name}:/{'/'.join(parts)}", f"`puna volume ls {name}:/`") from None
