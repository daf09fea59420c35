"""Compressed request bodies: unpacked within the limit, or refused with the reason."""

import gzip
import zlib

import pytest

from puna.errors import EncodingError, TooLargeError, UsageError
from puna.serve.encoding import decoded

BODY = b'{"inputs": []}' * 50
RAW = zlib.compressobj(wbits=-15)
BARE = RAW.compress(BODY) + RAW.flush()


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
    assert decoded(packed, encodings, len(BODY)) == BODY


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    assert len(bomb) < 60_000
    with pytest.raises(TooLargeError):
        decoded(bomb, "gzip", 1_000_000)
    with pytest.raises(TooLargeError):
        decoded(gzip.compress(BODY), "gzip", len(BODY) - 1)


@pytest.mark.parametrize(
    "packed",
    [b"", b"no", gzip.compress(BODY)[:-9], gzip.compress(BODY) + b"more", BARE],
    ids=["empty", "text", "cut", "more behind it", "another encoding"],
)
def test_what_is_no_whole_gzip_is_the_callers_mistake(packed: bytes) -> None:
    with pytest.raises(UsageError, match="no whole gzip"):
        decoded(packed, "gzip", 1 << 20)


@pytest.mark.parametrize("encodings", ["br", "zstd", "compress", "gzip, br"])
def test_an_encoding_that_is_not_read_is_415(encodings: str) -> None:
    with pytest.raises(EncodingError, match="is not read here"):
        decoded(b"x", encodings, 100)
