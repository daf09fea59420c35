"""Request bodies: unpacked piece by piece, short ones in memory, long ones in files without a name.

A body is written as it comes and sent to its worker as that reads it, so the memory that it takes does not depend on
its length. What touches a file runs in threads: where a disk is slow, only its own request waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import tempfile
import threading
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeVar

from puna.errors import EncodingError, MachineError, NotYetError, TooLargeError, UsageError
from puna.serve.http import asgi
from puna.serve.http.asgi import Receive, Scope

# wbits: 16 + 15 is gzip's wrapper; `deflate` is zlib's, or none at all: clients never agreed (RFC 9110, 8.4.1.2).
WINDOWS = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}
UNPACKED_BYTES = 256 << 10
"""So much is unpacked at a time: some kilobytes may hold gigabytes."""
MOST_ENCODINGS = 4


class Unpacker:
    """One encoding, undone as the bytes come."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._left = list(WINDOWS[name])
        self._inner = zlib.decompressobj(self._left.pop(0))
        self._begun = b""  # what came of the two bytes that tell one kind from another

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Unpack more, in pieces.

        Raises:
            UsageError: the bytes are not of that encoding.
        """
        data, self._begun = self._begun + data, b""
        if self._left and len(data) < 2:
            self._begun = data
            return
        while data:
            try:
                plain = self._inner.decompress(data, UNPACKED_BYTES)
            except zlib.error:
                if not self._left:
                    raise self._broken() from None
                self._inner = zlib.decompressobj(self._left.pop(0))
                continue
            self._left = []
            if self._inner.unused_data:
                raise self._broken()
            data = self._inner.unconsumed_tail
            if plain:
                yield plain

    def finish(self) -> None:
        """There is no more.

        Raises:
            UsageError: it ended too early.
        """
        if not self._inner.eof:
            raise self._broken()

    def _broken(self) -> UsageError:
        return UsageError(f"the body is no whole {self._name}, though its content-encoding says so")


def unpackers(encodings: str) -> list[Unpacker]:
    """The unpackers of a `Content-Encoding` header, in the order in which to use them; none for an empty one.

    Raises:
        EncodingError: an encoding that is not read here.
    """
    names = [word.strip().lower() for word in reversed(encodings.split(","))]
    names = [name for name in names if name and name != "identity"]
    for name in names:
        if name not in WINDOWS:
            raise EncodingError(f"the body's encoding {name[:40]!r} is not read here", "send gzip, deflate, or none")
    if len(names) > MOST_ENCODINGS:
        raise EncodingError(f"the body is packed {len(names)} times over", "send it packed once")
    return [Unpacker(name) for name in names]


def unpacked(packed: Sequence[Unpacker], piece: bytes) -> Iterator[bytes]:
    """Put `piece` through all of them; the plain bytes in pieces, none of them empty."""
    if not packed:
        if piece:
            yield piece
        return
    for plain in packed[0].feed(piece):
        yield from unpacked(packed[1:], plain)


MEMORY_BYTES = 1 << 20
"""A longer body goes to disk."""
ALL_MEMORY_BYTES = 64 << 20
"""Of the bodies in memory together; past it the shorter ones go to disk as well."""
PIECE_BYTES = 256 << 10
"""Written, and read, at a time: to be copied in some 50 us."""
RESERVE_BYTES = 256 << 20
"""Of the disk, left to others."""
MOST_FILES = 256
BEGINNING_BYTES = 4096
THREADS = 4
AT_ONCE = 4
"""Large bodies that are read from in one turn of the loop, some 0.3 ms each: whoever else is served waits for them."""
T = TypeVar("T")


class Spooled:
    """A body on disk."""

    def __init__(self, file: IO[bytes], pool: ThreadPoolExecutor) -> None:
        self.size = 0
        self.beginning = b""
        """Its first bytes."""
        self._file, self._pool = file, pool
        self._hash = hashlib.blake2b(digest_size=16)  # made as it is written: afterwards it would be read for it
        self._lock = threading.Lock()  # a number that is closed may be another body's by the time it is read
        self._is_closed = False

    def __len__(self) -> int:
        return self.size

    @property
    def fingerprint(self) -> bytes:
        """A digest that equal bodies have in common."""
        return self._hash.digest()

    async def read(self, offset: int, most_bytes: int = PIECE_BYTES) -> bytes:
        """The next piece, from there on.

        Raises:
            MachineError: the disk cannot be read.
        """
        piece = await asyncio.get_running_loop().run_in_executor(self._pool, self._read, offset, most_bytes)
        if len(piece) < min(most_bytes, self.size - offset):
            raise MachineError("the body was not to be read again from the server's disk", "look at the disk")
        return piece

    async def whole(self) -> bytes:
        """All of it, in memory: for one body at a time; raises as `read`."""
        return await self.read(0, self.size)

    def append(self, pieces: list[bytes]) -> None:
        """Write more; in a thread.

        Raises:
            OSError: there is no room.
        """
        self.beginning = self.beginning or b"".join(pieces)[:BEGINNING_BYTES]
        _check_room(self._file)
        for piece in pieces:
            self.size += len(piece)
            self._hash.update(piece)
            while piece:
                piece = piece[os.write(self._file.fileno(), piece) :]

    def close(self) -> None:
        """Nobody needs it any more."""
        self._is_closed = True
        with contextlib.suppress(RuntimeError):  # the gateway ends: the kernel takes the file
            self._pool.submit(self._close)

    def _read(self, offset: int, most_bytes: int) -> bytes:
        with self._lock:
            return b"" if self._is_closed else os.pread(self._file.fileno(), most_bytes, offset)

    def _close(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._file.close()


Body = bytes | Spooled


class Spool:
    """Takes bodies in, and holds to what they may take together."""

    def __init__(self, folder: Path, most_files: int = MOST_FILES, memory_bytes: int = ALL_MEMORY_BYTES) -> None:
        self._folder, self._most_files, self._memory_bytes = folder, most_files, memory_bytes
        self._pool = ThreadPoolExecutor(THREADS, "spool")
        self._turns: deque[asyncio.Future[None]] = deque()
        self.files = self.bytes_in_memory = 0

    def close(self) -> None:
        """The gateway ends."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    @contextlib.asynccontextmanager
    async def body(self, scope: Scope, receive: Receive, limit_bytes: int) -> AsyncIterator[Body]:
        """A request's whole body, unpacked, until the end of the block.

        Raises:
            TooLargeError: it is longer than `limit_bytes`.
            EncodingError: it is packed in a way that is not read here.
            UsageError: it is not packed as it says.
            MachineError: it has no place on the disk.
            NotYetError: too many bodies are here already.
            ClientGone: the client went away.
        """
        intake = Intake(self, limit_bytes)
        try:
            packed = unpackers(asgi.header(scope, b"content-encoding"))
            try:
                async for piece in asgi.pieces(scope, receive, limit_bytes):
                    await self._take(intake, packed, piece)
                    if intake.is_large:
                        await self._turn()
            except TooLargeError:
                await asgi.discard(receive)
                raise
            for unpacker in packed:
                unpacker.finish()
            yield await intake.whole()
        finally:
            intake.close()

    async def _take(self, intake: Intake, packed: list[Unpacker], piece: bytes) -> None:
        if not packed:
            await intake.add(piece)
            return
        stages = unpacked(packed, piece)
        while (plain := await self.threaded(next, stages, b"")) != b"":
            await intake.add(plain)

    def _turn(self) -> asyncio.Future[None]:
        """Wait until the loop has looked at everything else, and at those that waited before."""
        loop = asyncio.get_running_loop()
        if not self._turns:
            loop.call_soon(self._grant, loop)
        self._turns.append(loop.create_future())
        return self._turns[-1]

    def _grant(self, loop: asyncio.AbstractEventLoop) -> None:
        for _ in range(min(AT_ONCE, len(self._turns))):
            turn = self._turns.popleft()
            if not turn.done():  # its client may have left
                turn.set_result(None)
        if self._turns:
            loop.call_soon(self._grant, loop)

    def open(self) -> Spooled:
        """A new file; in a thread.

        Raises:
            OSError: there can be none.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = tempfile.TemporaryFile(dir=self._folder, buffering=0)
        return Spooled(file, self._pool)

    def has_memory(self, size: int) -> bool:
        """True if a body of so many bytes may stay in memory."""
        return size <= MEMORY_BYTES and self.bytes_in_memory + size <= self._memory_bytes

    def admit(self) -> None:
        """Count one more file.

        Raises:
            NotYetError: there are enough.
        """
        if self.files >= self._most_files:
            raise NotYetError(f"{self.files} large requests are waiting here already", "try again later")
        self.files += 1

    async def threaded(self, function: Callable[..., T], *arguments: object) -> T:
        """Call it in a thread of the spool's own."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)


class Intake:
    """One body on its way in."""

    def __init__(self, spool: Spool, limit_bytes: int) -> None:
        self._spool, self._limit_bytes = spool, limit_bytes
        self._pieces: list[bytes] = []
        self._waiting = self._size = 0  # bytes in `_pieces`, and of all
        self._counted = 0  # of them as bytes in memory
        self._file: Spooled | None = None
        self._is_admitted = False

    async def add(self, piece: bytes) -> None:
        """One more piece, written before this returns unless it is kept in memory."""
        self._size += len(piece)
        if self._size > self._limit_bytes:
            raise asgi.too_large(self._limit_bytes)
        self._pieces.append(piece)
        self._waiting += len(piece)
        if self._file is not None:
            if self._waiting >= PIECE_BYTES:
                await self._write()
        elif self._spool.has_memory(self._waiting - self._counted) and self._size <= MEMORY_BYTES:
            self._count(self._waiting)
        else:
            await self._write()

    @property
    def is_large(self) -> bool:
        """It goes to the disk."""
        return self._file is not None

    async def whole(self) -> Body:
        """All of it."""
        if self._file is None:
            return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        await self._write()
        return self._file

    def close(self) -> None:
        """Give back what it took."""
        self._count(0)
        if self._file is not None:
            self._file.close()
        if self._is_admitted:
            self._spool.files -= 1

    def _count(self, size: int) -> None:
        self._spool.bytes_in_memory += size - self._counted
        self._counted = size

    async def _write(self) -> None:
        pieces, self._pieces, self._waiting = self._pieces, [], 0
        self._count(0)
        try:
            if self._file is None:
                self._spool.admit()
                self._is_admitted = True
                self._file = await self._spool.threaded(self._spool.open)
            await self._spool.threaded(self._file.append, pieces)
        except OSError as error:
            why = error.strerror or str(error)
            message = f"this request's body of over {MEMORY_BYTES >> 20} MiB has no place on the server's disk: {why}"
            raise MachineError(message, "free some of the disk that PUNA_HOME is on") from None


def _check_room(file: IO[bytes]) -> None:
    disk = os.fstatvfs(file.fileno())
    if disk.f_bavail * disk.f_frsize < RESERVE_BYTES:
        raise OSError(errno.ENOSPC, f"less than {RESERVE_BYTES >> 20} MiB are left")
