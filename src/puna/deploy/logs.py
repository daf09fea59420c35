"""Log files of builds and replicas: where they lie, their last lines, and following them while they grow."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from puna.errors import NotFoundError
from puna.home import Home

POLL_S = 0.15
TAIL_BYTES = 32 * 1024 * 1024  # of all files together: 100,000 lines of 300 characters
CHUNK_BYTES = 256 * 1024
KEPT = 20  # logs of past replicas, per endpoint


def build_log(home: Home, build_id: str) -> Path:
    """The file that takes a build's output."""
    return home.folder("logs", "builds") / f"{build_id}.log"


def replica_log(home: Home, endpoint: str, replica_id: str) -> Path:
    """The file that takes what an app prints."""
    return home.folder("logs", "endpoints", endpoint) / f"{replica_id}.log"


def replica_logs(home: Home, endpoint: str, replica_id: str | None = None) -> list[Path]:
    """The log files of an endpoint's replicas, the one written last at the end; or of one replica.

    Raises:
        NotFoundError: there is no log of that replica.
    """
    folder = home.folder("logs", "endpoints", endpoint)
    if replica_id is None:
        return sorted(folder.glob("*.log"), key=lambda p: (p.stat().st_mtime, p.name))
    path = folder / f"{replica_id}.log"
    if not re.fullmatch(r"[A-Za-z0-9-]{1,100}", replica_id) or not path.exists():
        raise NotFoundError(f"there is no log of replica `{replica_id}`", f"`puna ps {endpoint}` lists its replicas")
    return [path]


def prune(home: Home, endpoint: str) -> None:
    """Remove the oldest logs of an endpoint."""
    for path in replica_logs(home, endpoint)[:-KEPT]:
        path.unlink(missing_ok=True)


def last_lines(path: Path, lines: int, most_bytes: int = TAIL_BYTES) -> str:
    """The last lines of a file; empty when it is not there."""
    return _tail(path, _line_end(path), lines, most_bytes).decode(errors="replace")


def _tail(path: Path, end: int, lines: int, most_bytes: int) -> bytes:
    """The last lines before `end`, read backwards: what a long file costs is what is shown of it."""
    found: list[bytes] = []
    size = seen = 0
    try:
        with path.open("rb") as file:
            while end > 0 and seen <= lines and size < most_bytes and lines > 0:
                start = max(0, end - CHUNK_BYTES)
                file.seek(start)
                found.append(file.read(end - start))
                size, seen, end = size + end - start, seen + found[-1].count(b"\n"), start
    except FileNotFoundError:
        return b""
    return b"".join(b"".join(reversed(found)).splitlines(keepends=True)[-lines:]) if found else b""


async def follow(path: Path, ended: Callable[[], bool], start: int = 0) -> AsyncIterator[bytes]:
    """A file's bytes from `start` on, and those that come, until `ended` and all has been read."""
    position = start
    while True:
        last_round = await asyncio.to_thread(ended)
        while chunk := _read(path, position):
            position += len(chunk)
            yield chunk
        if last_round:
            return
        await asyncio.sleep(POLL_S)


async def follow_replicas(home: Home, endpoint: str, replica_id: str | None, lines: int) -> AsyncIterator[bytes]:
    """The last lines of an endpoint's logs, then what comes, those of replicas that start later included; no end.

    Whole lines only, each behind its replica's id when all replicas are followed.
    """
    tails, positions = await asyncio.to_thread(_tails, replica_logs(home, endpoint, replica_id), lines)
    for path, text in tails:
        yield _marked(text, None if replica_id else path.stem)
    while True:
        for path in replica_logs(home, endpoint, replica_id):
            chunk = _read(path, positions.get(path, 0))
            whole = chunk[: chunk.rfind(b"\n") + 1] or (chunk if len(chunk) == CHUNK_BYTES else b"")
            if whole:
                positions[path] = positions.get(path, 0) + len(whole)
                yield _marked(whole, None if replica_id else path.stem)
        await asyncio.sleep(POLL_S)


def tail_replicas(home: Home, endpoint: str, replica_id: str | None, lines: int) -> str:
    """The last lines of an endpoint's logs, as they are now."""
    tails, _ = _tails(replica_logs(home, endpoint, replica_id), lines)
    return b"".join(_marked(text, None if replica_id else path.stem) for path, text in tails).decode(errors="replace")


def _tails(paths: list[Path], lines: int) -> tuple[list[tuple[Path, bytes]], dict[Path, int]]:
    """The last lines of all files together, by file, and where each file ended; the file written last is read first."""
    ends = {path: _line_end(path) for path in paths}
    found: list[tuple[Path, bytes]] = []
    most_bytes = TAIL_BYTES
    for path in reversed(paths):
        text = _tail(path, ends[path], lines, most_bytes)
        found.append((path, text))
        lines, most_bytes = lines - text.count(b"\n"), most_bytes - len(text)
        if lines <= 0 or most_bytes <= 0:
            break
    return found[::-1], ends


def _read(path: Path, position: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(position)
            return file.read(CHUNK_BYTES)
    except FileNotFoundError:
        return b""


def _line_end(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _marked(text: bytes, mark: str | None) -> bytes:
    if mark is None or not text:
        return text
    lines = text.splitlines(keepends=True)
    if not lines[-1].endswith(b"\n"):
        lines[-1] += b"\n"
    return b"".join(f"{mark} | ".encode() + line for line in lines)
