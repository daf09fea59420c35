"""Frames that are held for company, and that nothing held waits for a long call."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from puna.worker import protocol
from puna.worker.send_buffer import Flusher, SendBuffer
from worker import wire

Write = Callable[..., Path]
Start = Callable[..., Any]


def buffer(flusher: Flusher) -> tuple[SendBuffer, list[int]]:
    told: list[int] = []
    return flusher.buffer(told.append), told


def test_what_is_held_goes_out_in_one_write_for_each_connection_and_is_told_of_once() -> None:
    mine, told = buffer(Flusher())
    one: list[bytes] = []
    other: list[bytes] = []
    send_one, send_other = one.append, other.append
    mine.hold(send_one, b"a")
    mine.hold(send_one, b"b", 1)
    mine.hold(send_other, b"c", 1)
    assert (one, other, told) == ([], [], [])
    mine.flush()
    mine.flush()
    assert (one, other, told) == ([b"ab"], [b"c"], [2])


def test_what_nobody_flushes_goes_out_by_itself_also_after_a_pause() -> None:
    flusher = Flusher()
    mine, _ = buffer(flusher)
    threading.Thread(target=flusher.run, daemon=True).start()
    for wait_s in (0.0, 1.3):  # longer than the thread stays up without work
        time.sleep(wait_s)
        sent = threading.Event()
        mine.hold(lambda data, sent=sent: sent.set(), b"x")  # type: ignore[misc]
        assert sent.wait(5)


@pytest.mark.process
def test_replies_of_short_calls_do_not_wait_for_the_long_one_behind_them(
    app: Write, start: Start, tmp_path: Path
) -> None:
    source = f"""
        import os, time
        class InferlessPythonModel:
            def infer(self, inputs):
                while inputs["prompt"] == "long" and not os.path.exists({str(tmp_path / "go")!r}):
                    time.sleep(0.01)
                return {{"text": inputs["prompt"]}}
    """
    client = start(app(source)).ready()
    for number in range(1, 20):
        assert client.call({"prompt": str(number)})[0] == 200
    whole = b""
    for number, prompt in ((101, "a"), (102, "b"), (103, "long"), (104, "c")):
        body = b'{"inputs": [{"name": "prompt", "shape": [1], "data": ["%s"]}]}' % prompt.encode()
        whole += wire.request(number, {"path": "infer", "deadline_s": 60.0, "trace": "t"}, body)
    client.socket.sendall(whole)  # at once, so that all are queued when the first begins
    assert [client.reply()[0] for _ in range(2)] == [101, 102]
    assert client.next()[:2] == (protocol.STARTED, 103), "a long call is told of while it runs"
    (tmp_path / "go").touch()
    assert [client.reply()[0] for _ in range(2)] == [103, 104]
