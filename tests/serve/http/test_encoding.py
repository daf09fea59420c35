"""Compressed request bodies: unpacked within the limit, or refused with the reason."""

import gzip
import zlib

import pytest

from puna.errors import EncodingError, UsageError
from puna.serve.http.body import UNPACKED_BYTES, unpacked, unpackers

BODY = b'{"inputs": []}' * 50
RAW = zlib.compressobj(wbits=-15)
BARE = RAW.compress(BODY) + RAW.flush()


def decoded(body: bytes, encodings: str, step: int = 1 << 20) -> bytes:
    """All of it, unpacked, when it comes in pieces of `step` bytes."""
    packed = unpackers(encodings)
    plain = [piece for n in range(0, len(body), step) for piece in unpacked(packed, body[n : n + step])]
    for unpacker in packed:
        unpacker.finish()
    return b"".join(plain)


@pytest.mark.parametrize(
    ("encodings", "packed"),
    [
        ("", BODY),
        ("identity", BODY),
        ("gzip", gzip.compress(BODY)),
        ("X-GZIP", gzip.compress(BODY)),
        ("deflate", zlib.compress(BODY)),
        ("deflate", BARE),
        ("deflate, gzip", gzip.compress(zlib.compress(BODY))),
    ],
    ids=["none", "identity", "gzip", "x-gzip", "zlib", "bare deflate", "two"],
)
def test_a_body_is_what_it_was(encodings: str, packed: bytes) -> None:
    assert decoded(packed, encodings) == BODY


def test_a_bomb_comes_out_in_pieces_of_which_whoever_takes_them_may_leave_the_rest() -> None:
    bomb = gzip.compress(gzip.compress(b"\0" * 50_000_000))
    assert len(bomb) < 5_000
    pieces = unpacked(unpackers("gzip, gzip"), bomb)
    assert all(len(next(pieces)) <= UNPACKED_BYTES for _ in range(10))


def test_the_pieces_that_it_comes_in_make_no_difference() -> None:
    for packed, name in ((gzip.compress(BODY), "gzip"), (zlib.compress(BODY), "deflate"), (BARE, "deflate")):
        for step in (1, 2, 7, 100):
            assert decoded(packed, name, step) == BODY


@pytest.mark.parametrize(
    "packed",
    [b"", b"no", gzip.compress(BODY)[:-9], gzip.compress(BODY) + b"more", BARE],
    ids=["empty", "text", "cut", "more behind it", "another encoding"],
)
def test_what_is_no_whole_gzip_is_the_callers_mistake(packed: bytes) -> None:
    with pytest.raises(UsageError, match="no whole gzip"):
        decoded(packed, "gzip")


@pytest.mark.parametrize("encodings", ["br", "zstd", "compress", "gzip, br"])
def test_an_encoding_that_is_not_read_is_415(encodings: str) -> None:
    with pytest.raises(EncodingError, match="is not read here"):
        decoded(b"x", encodings)
