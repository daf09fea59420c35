"""Request bodies that come compressed, unpacked piece by piece, so that whoever takes the pieces can stop."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

from puna.errors import EncodingError, UsageError

# wbits: 16 + 15 is gzip's wrapper; `deflate` is zlib's, or none at all: clients never agreed (RFC 9110, 8.4.1.2).
WINDOWS = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}
PIECE_BYTES = 256 << 10
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
                plain = self._inner.decompress(data, PIECE_BYTES)
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
    """What undoes a `Content-Encoding` header, in the order in which it has to be done; nothing for an empty one.

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
    """What comes out at the end when `piece` goes through all of them, in pieces, none of them empty."""
    if not packed:
        if piece:
            yield piece
        return
    for plain in packed[0].feed(piece):
        yield from unpacked(packed[1:], plain)
