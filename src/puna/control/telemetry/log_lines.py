"""One log file read backwards, line by line, from its end or from where a reader stopped: never the whole of it."""

from __future__ import annotations

import contextlib
import heapq
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

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
        """What a wanted line has in it, in small letters."""
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
    """Where the lines of a block begin and end, the last one first."""
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
    """Where a file's last whole line ends."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            if not size or file.read(1) == b"\n":
                return size
            return next((start + block.rfind(b"\n") + 1 for start, block in _blocks(file, size)), 0)
    except FileNotFoundError:
        return 0


def read(raw: bytes, source: str) -> StoredLine:
    """A line just written, as it stands in its file."""
    stamp = STAMP.match(raw)
    if stamp is None:
        return StoredLine("", source, 0, "stdout", raw.decode(errors="replace"))
    return StoredLine(stamp[1].decode(), source, 0, stamp[2].decode(), raw[STAMP_BYTES:].decode(errors="replace"))
