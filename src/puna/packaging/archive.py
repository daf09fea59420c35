"""Project folders as tar.gz: written the same way each time, and unpacked as if an enemy had written them."""

from __future__ import annotations

import gzip
import io
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import IO

from puna.errors import ProjectError

MAX_BYTES = 512 * 1024 * 1024
MAX_FILES = 20_000
_BLOCK = 512  # bytes of a tar block
_MAX_NAME_RECORD_BYTES = 64 * 1024  # a pax or GNU record holds one long name here; tarfile reads it into memory whole
MAX_DEPTH = 64
"""Folders in one another; a walk takes a step of Python's stack for each."""
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE)
_RECORDS = (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME)
_RESIZES = re.compile(rb"\d (?:size|GNU\.sparse\.[a-z]+)=")  # tarfile would go on elsewhere than `_scan` looked
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
}


def write(files: Iterable[tuple[str, Path]]) -> bytes:
    """A tar.gz of `(name, file)` pairs; equal files give equal bytes."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, compresslevel=6) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, file in files:
            member = tarfile.TarInfo(name)
            status = file.stat()
            member.size, member.mode = status.st_size, 0o755 if status.st_mode & 0o100 else 0o644
            with file.open("rb") as content:
                archive.addfile(member, content)
    return buffer.getvalue()


def extract(data: bytes, folder: Path, *, limit_bytes: int = MAX_BYTES, limit_files: int = MAX_FILES) -> None:
    """Unpack a tar.gz into the empty `folder`: plain files and folders below it, nothing else.

    Raises:
        ProjectError: it is damaged, too large, or holds a name or a kind of entry that has no place in a project.
    """
    with tempfile.TemporaryFile() as plain:
        try:
            _decompress(data, plain, limit_bytes + limit_files * 4 * _BLOCK)
            _scan(plain, limit_bytes, limit_files)
            plain.seek(0)
            with tarfile.open(fileobj=plain, mode="r:") as archive:
                seen: set[str] = set()
                for member in archive:
                    _extract_one(archive, member, folder, seen)
        except (tarfile.TarError, EOFError, OSError, zlib.error, UnicodeError) as error:
            raise ProjectError(f"the archive cannot be unpacked: {error}", "pack the folder again") from None


def _decompress(data: bytes, plain: IO[bytes], limit_bytes: int) -> None:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as compressed:
        while piece := compressed.read(1 << 20):
            if plain.tell() + len(piece) > limit_bytes:
                raise too_large(limit_bytes)
            plain.write(piece)


def _scan(plain: IO[bytes], limit_bytes: int, limit_files: int) -> None:
    """Walk the raw headers before tarfile sees them, so that none makes it read or follow anything large."""
    position = files = total = 0
    while True:
        plain.seek(position)
        header = plain.read(_BLOCK)
        if len(header) < _BLOCK or not any(header):
            return
        size, kind = tarfile.nti(header[124:136]), header[156:157]  # type: ignore[attr-defined]
        if kind not in _PLAIN + _RECORDS:
            name = header[:100].rstrip(b"\0").decode(errors="replace")
            raise ProjectError(
                f"the archive holds {_KINDS.get(kind, f'an entry of type {kind!r}')}: {name!r}",
                "only plain files and folders can be sent",
            )
        if size < 0 or (kind in _RECORDS and size > _MAX_NAME_RECORD_BYTES):
            raise ProjectError("the archive holds a header of an impossible size")
        if kind == tarfile.XHDTYPE and _RESIZES.search(plain.read(size)):
            raise ProjectError("the archive holds a record that gives a file another size than its header")
        files, total = files + 1, total + size
        if files > 2 * limit_files:  # a record may stand before each file
            raise too_many(limit_files)
        if total > limit_bytes:
            raise too_large(limit_bytes)
        position += _BLOCK + (size + _BLOCK - 1) // _BLOCK * _BLOCK


def _extract_one(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, seen: set[str]) -> None:
    name = safe_name(member.name)
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise ProjectError(f"the archive holds {member.name!r}, which is no plain file")
    tarfile.data_filter(member, str(folder))  # the standard library's own opinion; it raises
    if name in seen and not member.isdir():
        raise ProjectError(f"the archive holds {name!r} twice")
    seen.add(name)
    target = folder / name
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    content = archive.extractfile(member)
    assert content is not None
    with target.open("xb") as file:
        shutil.copyfileobj(content, file)
    if target.stat().st_size != member.size:
        raise ProjectError(f"the archive ends inside {name!r}", "send it again")
    target.chmod(0o755 if member.mode & 0o100 else 0o644)


def safe_name(name: str) -> str:
    """`name` as a relative path without `.`.

    Raises:
        ProjectError: it is absolute, climbs out, is nested too deeply, or holds control characters or a backslash.
    """
    path = PurePosixPath(name)
    if len(path.parts) > MAX_DEPTH:
        raise ProjectError(
            f"the archive holds a name of {len(path.parts)} folders: {name[:80]!r}...", f"at most {MAX_DEPTH}"
        )
    if path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable():
        raise ProjectError(f"the archive holds the name {name!r}", "names must be relative, without `..`")
    return path.as_posix()


def too_large(limit_bytes: int) -> ProjectError:
    """The error for a project over the limit."""
    return ProjectError(
        f"the project is over {limit_bytes // (1024 * 1024)} MiB",
        "list data in .punaignore; weights belong in the registry: puna publish",
    )


def too_many(limit_files: int) -> ProjectError:
    """The error for a project of too many files."""
    return ProjectError(f"the project has over {limit_files} files", "list data and caches in .punaignore")
