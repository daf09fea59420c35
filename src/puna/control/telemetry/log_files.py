"""Log files of builds and replicas: where they lie, their last lines, what was searched for, and following them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path

from puna.control.telemetry import log_lines
from puna.control.telemetry.log_lines import EVERYTHING, LineFilter, StoredLine
from puna.errors import NotFoundError, UsageError
from puna.home import Home

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
    texts = (line.text + "\n" for line in islice(log_lines.backwards(path, path.stem, wanted), lines))
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


async def follow(path: Path, ended: Callable[[], bool], start: int = 0) -> AsyncIterator[bytes]:
    """A file's bytes from `start` on, and those that come, until `ended` and all has been read."""
    position = max(start, await asyncio.to_thread(_first, path))
    while True:
        last_round = await asyncio.to_thread(ended)
        while chunk := _read(path, position):
            position += len(chunk)
            yield chunk
        if last_round:
            return
        await asyncio.sleep(POLL_S)


class View:
    """How the lines of an endpoint's logs are asked for and shown."""

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
        found = islice(log_lines.newest(self.files(), self._wanted, before), lines)
        return _upright(map(self._shown, found), TAIL_BYTES)

    def page(self, lines: int, token: str = "") -> tuple[list[StoredLine], str]:
        """The newest lines, or those before the page that `token` came with; and the token of the next page, or ''.

        Raises:
            UsageError: no page came with that token.
        """
        files = self.files()
        if token:
            places = _places(token)
            files = {source: path for source, path in files.items() if source in places}
            if not files:  # of another endpoint, or of replicas whose logs have gone
                raise UsageError(*NO_PAGE)
        else:
            places = {source: log_lines.whole_end(path) for source, path in files.items()}
        found = list(islice(log_lines.newest(files, self._wanted, places), lines + 1))
        if len(found) <= lines:
            return found, ""
        del found[lines:]
        places |= {line.source: line.place for line in found}  # the last of a source is its oldest
        return found, base64.urlsafe_b64encode(json.dumps(places, separators=(",", ":")).encode()).decode().rstrip("=")

    async def follow(self, lines: int) -> AsyncIterator[bytes]:
        """The last lines, then what comes, that of replicas that start later included; whole lines only, no end."""
        has = self._wanted.test
        files = await asyncio.to_thread(self.files)
        places = {source: log_lines.whole_end(path) for source, path in files.items()}
        yield (await asyncio.to_thread(self.tail, lines, places)).encode()
        while True:
            for source, path in (await asyncio.to_thread(self.files)).items():
                chunk = _read(path, places.get(source, 0))
                whole = chunk[: chunk.rfind(b"\n") + 1] or (chunk if len(chunk) == CHUNK_BYTES else b"")
                if whole:
                    places[source] = places.get(source, 0) + len(whole)
                    come = [log_lines.read(raw, source) for raw in whole.removesuffix(b"\n").split(b"\n")]
                    yield "".join(self._shown(line) for line in come if has(line.text.encode())).encode()
            await asyncio.sleep(POLL_S)

    def _shown(self, line: StoredLine) -> str:
        at = f"{line.at} " if self._times and line.at else ""
        source = "" if self._replica_id else f"{line.source} | "
        return f"{at}{source}{line.text}\n"


def _places(token: str) -> dict[str, int]:
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
            return log_lines.start_of(file)
    except FileNotFoundError:
        return 0


def _read(path: Path, position: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(position)
            return file.read(CHUNK_BYTES)
    except FileNotFoundError:
        return b""
