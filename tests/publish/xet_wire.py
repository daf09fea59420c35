"""The upload half of the xet protocol, as a server reads it: chunks out of xorbs, files out of shards."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import lz4.frame

STORED, LZ4, GROUPED_LZ4 = 0, 1, 2
CHUNK_HEADER = struct.Struct("<B3sB3s")  # version, packed length, scheme, plain length; lengths of 3 bytes
SHARD_TAG = b"HFRepoMetaData"
SHARD_HEADER_BYTES = RECORD_BYTES = 48
HAS_VERIFICATION, HAS_METADATA = 1 << 31, 1 << 30
END_OF_FILES = b"\xff" * 32


@dataclass(frozen=True)
class Term:
    """Part of a file: the chunks `first` up to `last` of one xorb."""

    xorb: str
    first: int
    last: int


def hash_text(raw: bytes) -> str:
    """A hash as URLs write it: four little-endian words in hex."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


def ungroup(grouped: bytes) -> bytes:
    """Undo byte grouping: all first bytes of each four stand first, then all second ones, and so on."""
    plain, start = bytearray(len(grouped)), 0
    for lane in range(4):
        count = len(range(lane, len(grouped), 4))
        plain[lane::4] = grouped[start : start + count]
        start += count
    return bytes(plain)


def read_xorb(body: bytes) -> list[bytes]:
    """The chunks of one uploaded xorb, unpacked, in order; its footer, which starts otherwise, is left."""
    chunks, at = [], 0
    while at + CHUNK_HEADER.size <= len(body) and body[at] == 0:
        _, packed, scheme, plain = CHUNK_HEADER.unpack_from(body, at)
        at += CHUNK_HEADER.size
        data = body[at : at + int.from_bytes(packed, "little")]
        at += len(data)
        if scheme in (LZ4, GROUPED_LZ4):
            data = lz4.frame.decompress(data)
        chunk = ungroup(data) if scheme == GROUPED_LZ4 else data
        assert len(chunk) == int.from_bytes(plain, "little"), "a chunk has another length than it says"
        chunks.append(chunk)
    return chunks


def read_shard(body: bytes) -> Iterator[list[Term]]:
    """The files that a shard describes, each as its terms."""
    assert body.startswith(SHARD_TAG), "not a shard"
    at = SHARD_HEADER_BYTES
    while body[at : at + 32] != END_OF_FILES:
        flags, count = struct.unpack_from("<II", body, at + 32)
        at += RECORD_BYTES
        terms = []
        for _ in range(count):
            _, _, first, last = struct.unpack_from("<4I", body, at + 32)
            terms.append(Term(hash_text(body[at : at + 32]), first, last))
            at += RECORD_BYTES
        at += RECORD_BYTES * count if flags & HAS_VERIFICATION else 0
        at += RECORD_BYTES if flags & HAS_METADATA else 0
        yield terms


def rebuild(terms: list[Term], xorbs: Mapping[str, list[bytes]]) -> bytes:
    """A file's bytes."""
    return b"".join(chunk for term in terms for chunk in xorbs[term.xorb][term.first : term.last])
