"""The frames between gateway, guard's owner and worker: every message there is, grouped by sender. No I/O.

A frame is `length: u32` (of what follows), `kind: u8`, `request_id: u64`, payload; big-endian.
JSON payloads are UTF-8. REPLY carries `status: u16` and then the body's bytes, ready to be sent.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any

HEADER = struct.Struct(">IBQ")
HEADER_BYTES = HEADER.size
MAX_PAYLOAD_BYTES = 256 * 1024 * 1024
LARGE_BYTES = 65536  # from here on a copy costs more than a view that saves it

# from the gateway (request_id says which request) or from the owner (request_id 0)
# REQUEST is JSON {"path", "deadline_s": float left, "trace": str, "model_name", "model_version"} NEWLINE, then the
# client's body; where tensors' bytes follow its JSON, "json_bytes" says how long that is. One with "alone_s" may be
# what replicas die of: it has this one for itself for so long, and its STARTED comes first. Paths: `infer` and `stream`
# call the app; `chat` and `completion` ask its engine, with the LoRA {"name", "path"} of "adapter" when there is one.
REQUEST = 1
CANCEL = 2  # the client went away: drop the request if it has not begun; else END tells when it is over
DRAIN = 3  # accept nothing more; answer DRAINED when the last reply is out
SHUTDOWN = 4  # drain, finalize, exit
PING = 5
SLEEP = 6  # give memory back once nothing runs; ASLEEP or AWAKE says what came of it
WAKE = 7  # a REQUEST does so too: nobody has to ask first
FORK = 8  # to a zygote, with the owner's pipe and a page as passed files: JSON, the config of guard and worker
BODY = 9  # a piece of a long body; its REQUEST follows the last but one and brings the last: CANCEL drops them

# from the worker
HELLO = 65  # first frame on each connection: JSON {"state", "concurrency", "schema", "pid", "tier", "can_sleep"...}
READY = 66  # initialize has ended and the warm-up too: JSON as HELLO
REPLY = 67  # status u16, body; ends the request
BEGIN = 68  # a streamed reply begins; a retry elsewhere is no longer possible
CHUNK = 69  # one event of a streamed reply: JSON
# a streamed reply ends: JSON {}, {"tokens": int} where an engine counted them, or {"error": str}; after a 504 or CANCEL
# of a begun call: infer is over now
END = 70
FAILED = 71  # initialize failed: JSON {"message", "traceback"}
DRAINED = 72
PONG = 73
ASLEEP = 74  # to every connection: JSON {"tier", "seconds", "reason", "can_sleep"}
AWAKE = 75  # as ASLEEP; "reason" says why it stays awake, when it was asked to sleep
# infer has been called for this request; for a short call it is sent together with the reply. Empty, or of a request
# that woke the replica or waited for that: JSON {"tier": "asleep", "wake_ms": float}
STARTED = 76
BINARY_REPLY = 78  # as REPLY, between status and body `json_bytes: u32`: how much of the body is JSON
FORKED = 77  # the answer to FORK: JSON {"error": str}; an empty one comes from the new guard once it listens


class ProtocolError(Exception):
    """The other side sent something that is no frame."""


class TooLongError(Exception):
    """The payload does not fit into a frame: the other side would take it for garbage and hang up."""


_write = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode  # made once: json.dumps makes one a call


def dumps(value: Any) -> bytes:
    """JSON that every reader takes: NaN and the infinities, which JSON has no words for, are null, as KServe has them.

    Python's own writer says NaN, which Java's, Go's and JavaScript's readers refuse, with the whole reply.
    """
    try:
        return _write(value).encode()
    except ValueError:
        return _write(_finite(value)).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_finite(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def encode(kind: int, request_id: int = 0, payload: Any = b"") -> bytes:
    """One frame as bytes; a payload that is not bytes is written as JSON.

    Raises:
        TooLongError: it would be longer than MAX_PAYLOAD_BYTES.
    """
    if not isinstance(payload, (bytes, bytearray, memoryview)):
        payload = dumps(payload)
    if len(payload) > MAX_PAYLOAD_BYTES - 9:
        raise TooLongError("it has %d bytes; at most %d can be sent" % (len(payload), MAX_PAYLOAD_BYTES - 9))
    return HEADER.pack(len(payload) + 9, kind, request_id) + bytes(payload)


def encode_reply(request_id: int, status: int, body: bytes) -> bytes:
    """A REPLY frame: HTTP status and body."""
    return encode(REPLY, request_id, struct.pack(">H", status) + body)


def encode_binary_reply(request_id: int, status: int, body: bytes, json_bytes: int) -> bytes:
    """A BINARY_REPLY frame: tensors' bytes follow the first `json_bytes` of the body."""
    return encode(BINARY_REPLY, request_id, struct.pack(">HI", status, json_bytes) + body)


def decode_binary_reply(payload: bytes) -> tuple[int, bytes, int]:
    """`(status, body, json_bytes)` of a BINARY_REPLY's payload."""
    status, json_bytes = struct.unpack_from(">HI", payload)
    return status, bytes(payload[6:]), json_bytes


def decode_reply(payload: bytes) -> tuple[int, bytes]:
    """`(status, body)` of a REPLY's payload."""
    return struct.unpack_from(">H", payload)[0], bytes(payload[2:])


def decode_request(payload: bytes) -> tuple[dict[str, Any], bytes]:
    """`(head, body)` of a REQUEST's payload."""
    head, _, body = bytes(payload).partition(b"\n")
    return json.loads(head.decode()), body  # text: json.loads looks into bytes for their encoding first


class Decoder:
    """Bytes in, frames out, in whatever pieces the bytes arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """The frames that are whole now, as a list of `(kind, request_id, payload)`.

        Raises:
            ProtocolError: a length is impossible.
        """
        buffer = self._buffer
        source: bytes | bytearray = data  # most often it holds whole frames only, and none of it is copied twice
        if buffer:
            buffer += data
            source = buffer
        frames: list[tuple[int, int, bytes]] = []
        start, size = 0, len(source)
        while size - start >= HEADER_BYTES:
            length, kind, request_id = HEADER.unpack_from(source, start)
            if length < 9 or length > MAX_PAYLOAD_BYTES:
                raise ProtocolError("frame of %d bytes" % length)
            end = start + 4 + length
            if end > size:
                break
            if length > LARGE_BYTES:
                with memoryview(source) as view:
                    frames.append((kind, request_id, bytes(view[start + HEADER_BYTES : end])))
            else:
                frames.append((kind, request_id, bytes(source[start + HEADER_BYTES : end])))
            start = end
        if source is buffer:
            del buffer[:start]
        elif start < size:
            with memoryview(data) as view:
                buffer += view[start:]
        return frames
