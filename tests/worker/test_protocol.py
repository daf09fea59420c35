"""Frames survive any split of the bytes, and impossible ones are refused."""

from __future__ import annotations

import random
from typing import Any

import pytest

from puna.process import guard
from puna.worker import protocol
from worker import wire


def frames() -> list[tuple[int, int, bytes]]:
    return [(protocol.PING, 0, b""), (protocol.REQUEST, 2**64 - 1, b"x" * 3000), (protocol.CHUNK, 7, b'{"a":1}')]


@pytest.mark.parametrize("seed", range(20))
def test_frames_come_out_whole_however_the_bytes_arrive(seed: int) -> None:
    chance = random.Random(seed)
    data = b"".join(protocol.encode(*frame) for frame in frames())
    cuts = sorted(chance.sample(range(len(data)), chance.randrange(1, 40)))
    decoder, found = protocol.Decoder(), []
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        found += decoder.feed(data[start:end])
    assert found == frames()


def test_frames_come_out_byte_by_byte() -> None:
    decoder, found = protocol.Decoder(), []
    for byte in protocol.encode(protocol.PONG, 5, b"abc"):
        found += decoder.feed(bytes([byte]))
    assert found == [(protocol.PONG, 5, b"abc")]


@pytest.mark.parametrize("length", [0, 8, protocol.MAX_PAYLOAD_BYTES + 1])
def test_an_impossible_length_is_refused(length: int) -> None:
    with pytest.raises(protocol.ProtocolError):
        protocol.Decoder().feed(protocol.HEADER.pack(length, 1, 1))


def test_a_request_carries_its_body_untouched() -> None:
    body = b'{"inputs": []}\n\x00\n'
    kind, request_id, payload = protocol.Decoder().feed(wire.request(9, {"path": "infer"}, body))[0]
    assert (kind, request_id) == (protocol.REQUEST, 9)
    assert protocol.decode_request(payload) == ({"path": "infer"}, body)


def test_a_reply_carries_status_and_body() -> None:
    _, _, payload = protocol.Decoder().feed(protocol.encode_reply(3, 504, b"late"))[0]
    assert protocol.decode_reply(payload) == (504, b"late")


def test_the_guards_copy_of_the_constants_is_the_same() -> None:
    for name in ("SHUTDOWN", "PING", "SLEEP", "WAKE", "HELLO", "READY", "FAILED", "PONG", "ASLEEP", "AWAKE", "FORKED"):
        assert getattr(guard, name) == getattr(protocol, name)
    assert guard.HEADER.format == protocol.HEADER.format


INF = float("inf")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"out": [1.0, float("nan"), INF, -INF]}, '{"out":[1.0,null,null,null]}'),
        ([{"a": ({"b": [[float("nan")], "NaN"]},)}], '[{"a":[{"b":[[null],"NaN"]}]}]'),
        ({"a": 1, "b": "\u00e9"}, '{"a":1,"b":"\\u00e9"}'),
    ],
)
def test_json_is_such_as_every_reader_takes(value: Any, text: str) -> None:
    assert protocol.dumps(value).decode() == text
    ((_, _, payload),) = protocol.Decoder().feed(protocol.encode(protocol.CHUNK, 1, value))
    assert payload.decode() == text


def test_what_does_not_fit_into_a_frame_is_refused_with_its_size_before_it_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocol, "MAX_PAYLOAD_BYTES", 109)
    frame = protocol.encode_reply(1, 200, b"x" * 98)
    assert protocol.Decoder().feed(frame) == [(protocol.REPLY, 1, b"\0\xc8" + b"x" * 98)]
    with pytest.raises(protocol.TooLongError, match="it has 101 bytes; at most 100 can be sent"):
        protocol.encode_reply(1, 200, b"x" * 99)
    with pytest.raises(protocol.ProtocolError):
        protocol.Decoder().feed(frame[:3] + b"\xff" + frame[4:])


def test_large_frames_come_out_as_they_went_in_whatever_the_pieces() -> None:
    frames = [(protocol.CHUNK, n, bytes([n]) * size) for n, size in enumerate((5, 300_000, 0, 65_537, 70_000, 1), 1)]
    data = b"".join(protocol.encode(*frame) for frame in frames)
    for step in (1 << 18, 99_991, 4096):
        decoder, found = protocol.Decoder(), []
        for start in range(0, len(data), step):
            found += decoder.feed(data[start : start + step])
        assert found == frames
