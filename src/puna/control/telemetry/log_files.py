"""Log files of builds and replicas: lines read backwards, never the whole file, searched, paged, and followed."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import heapq
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from puna.errors import NotFoundError, UsageError
from puna.home import Home
from puna.process.guard import STAMP, STAMP_BYTES

BLOCK_BYTES = 256 * 1024
LONGEST_LINE = 1024 * 1024
"""A longer one is read in parts."""
UNSTAMPED = 100
"""So many lines before one without a time are looked at for theirs."""
OWN = b"puna: "


class StoredLine(NamedTuple):
    """One line, in the order in which lines of several files are shown."""

    at: str
    """When it was written, ISO 8601 in UTC; of one without a time, when the line before it was."""
    source: str
    """The replica's id, or what else the file is named after."""
    place: int
    """Where it begins in its file."""
    stream: str
    text: str


@dataclass(frozen=True)
class LineFilter:
    """Which lines: all those for which everything holds that is not empty."""

    search: str = ""
    """A part of it; capitals of ASCII are no matter."""
    request: str = ""
    """It was written during the request of this id."""
    since: str = ""
    until: str = ""
    """ISO 8601 in UTC, with microseconds."""

    @property
    def needle(self) -> bytes:
        """The bytes that a wanted line has in it, in small letters."""
        return (f"[{self.request}] " if self.request else self.search).encode().lower()

    @property
    def test(self) -> Callable[[bytes], bool]:
        """Tells whether what stands behind a line's stamp is wanted."""
        needle, mark = self.search.encode().lower(), b"[%b] " % self.request.encode()
        starts = (mark, OWN + mark)

        def has(text: bytes) -> bool:
            return (not self.request or text.startswith(starts)) and (not needle or needle in text.lower())

        return has


EVERYTHING = LineFilter()


def iso(at: float) -> str:
    """Unix seconds as lines have them."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def newest(
    files: Mapping[str, Path], wanted: LineFilter = EVERYTHING, before: Mapping[str, int] | None = None
) -> Iterator[StoredLine]:
    """Lines of several files, the newest first; `before` are the places where a reader stopped, by source."""
    streams = [backwards(path, source, wanted, (before or {}).get(source)) for source, path in files.items()]
    return heapq.merge(*streams, key=lambda line: line.at, reverse=True)


def backwards(path: Path, source: str, wanted: LineFilter = EVERYTHING, end: int | None = None) -> Iterator[StoredLine]:
    """A file's lines, the last one first; those before byte `end`. None when there is no such file."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        latest = iso(os.fstat(file.fileno()).st_mtime)
        has, needle = wanted.test, wanted.needle
        since, until = wanted.since, wanted.until
        alone = 0  # so many lines more among which no time is near
        for start, block in _blocks(file, end):
            places = _places(block, needle) if needle else _all(block)
            for begin, stop in places:
                raw = block[begin:stop]
                stamp = STAMP.match(raw)
                if stamp is not None:
                    latest, stream, text = stamp[1].decode(), stamp[2].decode(), raw[STAMP_BYTES:]
                else:
                    stream, text = "stdout", raw
                    if alone:
                        alone -= 1
                    else:
                        at = _time_before(block, begin)
                        latest, alone = at or latest, 0 if at else UNSTAMPED
                if latest < since:
                    return
                if (not until or latest < until) and has(text):
                    yield StoredLine(latest, source, start + begin, stream, text.decode(errors="replace"))
            oldest = STAMP.match(block)
            if oldest is not None and oldest[1].decode() < since:
                return


def _all(block: bytes) -> Iterator[tuple[int, int]]:
    """Beginnings and ends of a block's lines, the last one first."""
    stop = len(block) - block.endswith(b"\n")
    while True:
        begin = block.rfind(b"\n", 0, stop) + 1
        yield begin, stop
        if not begin:
            return
        stop = begin - 1


def _places(block: bytes, needle: bytes) -> Iterator[tuple[int, int]]:
    """The same of those lines that have `needle` in them: the others are not looked at one by one."""
    lowered, stop = block.lower(), len(block)
    while (found := lowered.rfind(needle, 0, stop)) >= 0:
        begin, end = block.rfind(b"\n", 0, found) + 1, block.find(b"\n", found)
        yield begin, end if end >= 0 else len(block)
        stop = max(begin - 1, 0)


def _time_before(block: bytes, place: int) -> str:
    """The time of the nearest line before a place that has one; empty when it is far."""
    for _ in range(UNSTAMPED):
        if place <= 0:
            break
        place = block.rfind(b"\n", 0, place - 1) + 1
        stamp = STAMP.match(block, place)
        if stamp is not None:
            return stamp[1].decode()
    return ""


def _blocks(file: BinaryIO, end: int | None) -> Iterator[tuple[int, bytes]]:
    """`(place, whole lines)` from the end on."""
    floor = start_of(file)
    position = file.seek(0, os.SEEK_END)
    position = position if end is None else min(end, position)
    rest = b""  # the end of a line whose beginning has not been read
    while position > floor:
        start = max(floor, position - BLOCK_BYTES)
        file.seek(start)
        block = file.read(position - start) + rest
        position, rest = start, b""
        if start > floor and len(block) < LONGEST_LINE + BLOCK_BYTES:
            cut = block.find(b"\n") + 1 or len(block)
            rest, block, start = block[:cut], block[cut:], start + cut
        elif floor and start == floor:  # what came before was dropped, most likely in the middle of a line
            cut = block.find(b"\n") + 1
            block, start = block[cut:], start + cut
        if block:
            yield start, block


def start_of(file: BinaryIO) -> int:
    """The first byte that is kept: the beginning of a large log is given back to the file system."""
    with contextlib.suppress(OSError):  # ENXIO: nothing is kept; or a file system without holes
        return os.lseek(file.fileno(), 0, os.SEEK_DATA)
    return 0


def whole_end(path: Path) -> int:
    """The end of a file's last whole line."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            if not size or file.read(1) == b"\n":
                return size
            return next((start + block.rfind(b"\n") + 1 for start, block in _blocks(file, size)), 0)
    except FileNotFoundError:
        return 0


def parse_line(raw: bytes, source: str) -> StoredLine:
    """A line just written, as it stands in its file."""
    stamp = STAMP.match(raw)
    if stamp is None:
        return StoredLine("", source, 0, "stdout", raw.decode(errors="replace"))
    return StoredLine(stamp[1].decode(), source, 0, stamp[2].decode(), raw[STAMP_BYTES:].decode(errors="replace"))


POLL_S = 0.15
NO_PAGE = ("no page of these logs came with that token", "give the `next` of a page, or begin without one")
CHUNK_BYTES = 256 * 1024
TAIL_BYTES = 32 * 1024 * 1024  # of all that is shown at once: 100,000 lines of 300 characters
SOURCE = re.compile(r"[A-Za-z0-9-]{1,100}")


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
        with os.scandir(folder) as entries:
            found = [(_changed(entry), entry.name) for entry in entries if entry.name.endswith(".log")]
        return [folder / name for _, name in sorted(found)]
    path = folder / f"{replica_id}.log"
    if not SOURCE.fullmatch(replica_id) or not path.exists():
        raise NotFoundError(f"there is no log of replica `{replica_id}`", f"`puna ps {endpoint}` lists its replicas")
    return [path]


def last_lines(path: Path, lines: int, wanted: LineFilter = EVERYTHING, most_bytes: int = TAIL_BYTES) -> str:
    """The last lines of a file, of those that are wanted; empty when it is not there."""
    texts = (line.text + "\n" for line in islice(backwards(path, path.stem, wanted), lines))
    return _upright(texts, most_bytes)


def _upright(newest_first: Iterable[str], most_bytes: int) -> str:
    """Lines in the order in which they were written, the last of them that have so many characters together."""
    found, size = [], 0
    for text in newest_first:
        size += len(text)
        if size > most_bytes:
            break
        found.append(text)
    return "".join(reversed(found))


async def follow(path: Path, ended: Callable[[], bool]) -> AsyncIterator[bytes]:
    """A file's bytes, and those that come, until `ended` and all has been read."""
    position = await asyncio.to_thread(_first, path)
    while True:
        last_round = await asyncio.to_thread(ended)
        while chunk := _chunk(path, position):
            position += len(chunk)
            yield chunk
        if last_round:
            return
        await asyncio.sleep(POLL_S)


class View:
    """The lines of an endpoint's logs, as they were asked for and are shown."""

    def __init__(
        self,
        home: Home,
        endpoint: str,
        replica_id: str | None = None,
        wanted: LineFilter = EVERYTHING,
        times: bool = False,
    ) -> None:
        """Of one replica, or of all, each line behind its replica's id then; with `times` behind its time, too.

        Raises:
            NotFoundError: there is no log of that replica.
        """
        self._home, self._endpoint, self._replica_id = home, endpoint, replica_id
        self._wanted, self._times = wanted, times
        self.files()

    def files(self) -> dict[str, Path]:
        """The files by the names of their replicas."""
        return {path.stem: path for path in replica_logs(self._home, self._endpoint, self._replica_id)}

    def tail(self, lines: int, before: Mapping[str, int] | None = None) -> str:
        """The last lines, as they are now."""
        found = islice(newest(self.files(), self._wanted, before), lines)
        return _upright(map(self._shown, found), TAIL_BYTES)

    def page(self, lines: int, token: str = "") -> tuple[list[StoredLine], str]:
        """The newest lines, or those before the page that `token` came with; and the token of the next page, or ''.

        Raises:
            UsageError: no page came with that token.
        """
        files = self.files()
        if token:
            places = _places_of(token)
            files = {source: path for source, path in files.items() if source in places}
            if not files:  # of another endpoint, or of replicas whose logs have gone
                raise UsageError(*NO_PAGE)
        else:
            places = {source: whole_end(path) for source, path in files.items()}
        found = list(islice(newest(files, self._wanted, places), lines + 1))
        if len(found) <= lines:
            return found, ""
        del found[lines:]
        places |= {line.source: line.place for line in found}  # the last of a source is its oldest
        return found, base64.urlsafe_b64encode(json.dumps(places, separators=(",", ":")).encode()).decode().rstrip("=")

    async def follow(self, lines: int) -> AsyncIterator[bytes]:
        """The last lines, then what comes, that of replicas that start later included; whole lines only, no end."""
        has = self._wanted.test
        files = await asyncio.to_thread(self.files)
        places = {source: whole_end(path) for source, path in files.items()}
        yield (await asyncio.to_thread(self.tail, lines, places)).encode()
        while True:
            for source, path in (await asyncio.to_thread(self.files)).items():
                chunk = _chunk(path, places.get(source, 0))
                whole = chunk[: chunk.rfind(b"\n") + 1] or (chunk if len(chunk) == CHUNK_BYTES else b"")
                if whole:
                    places[source] = places.get(source, 0) + len(whole)
                    come = [parse_line(raw, source) for raw in whole.removesuffix(b"\n").split(b"\n")]
                    yield "".join(self._shown(line) for line in come if has(line.text.encode())).encode()
            await asyncio.sleep(POLL_S)

    def _shown(self, line: StoredLine) -> str:
        at = f"{line.at} " if self._times and line.at else ""
        source = "" if self._replica_id else f"{line.source} | "
        return f"{at}{source}{line.text}\n"


def _places_of(token: str) -> dict[str, int]:
    try:
        places = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        if isinstance(places, dict) and all(type(place) is int and place >= 0 for place in places.values()):
            return places
    except (ValueError, binascii.Error, RecursionError):
        pass
    raise UsageError(*NO_PAGE)


def _changed(entry: os.DirEntry[str]) -> float:
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:  # pruned this moment
        return 0.0


def _first(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return start_of(file)
    except FileNotFoundError:
        return 0


def _chunk(path: Path, position: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(position)
            return file.read(CHUNK_BYTES)
    except FileNotFoundError:
        return b""
