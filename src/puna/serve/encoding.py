"""Request bodies that come compressed, unpacked within the same limit as plain ones."""

from __future__ import annotations

import zlib

from puna.errors import EncodingError, UsageError
from puna.serve.http import too_large

# wbits: 16 + 15 is gzip's wrapper; `deflate` is zlib's, or none at all: clients never agreed (RFC 9110, 8.4.1.2).
WINDOWS = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}


def decoded(body: bytes, encodings: str, limit_bytes: int) -> bytes:
    """The body as its `Content-Encoding` header says that it was before; an empty header leaves it alone.

    Raises:
        EncodingError: an encoding that is not read here.
        UsageError: the bytes are not of that encoding, or end too early.
        TooLargeError: unpacked it is longer than `limit_bytes`.
    """
    for name in reversed([word.strip().lower() for word in encodings.split(",") if word.strip()]):
        if name == "identity":
            continue
        if name not in WINDOWS:
            raise EncodingError(f"the body's encoding {name[:40]!r} is not read here", "send gzip, deflate, or none")
        body = _unpacked(body, name, limit_bytes)
    return body


def _unpacked(body: bytes, name: str, limit_bytes: int) -> bytes:
    for wbits in WINDOWS[name]:
        unpacker = zlib.decompressobj(wbits)
        try:
            plain = unpacker.decompress(body, limit_bytes + 1)
        except zlib.error:
            continue
        if len(plain) > limit_bytes:
            raise too_large(limit_bytes)
        if unpacker.eof and not unpacker.unused_data:
            return plain
    raise UsageError(f"the body is no whole {name}, though its content-encoding says so")
