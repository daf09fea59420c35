"""Lines of a request carry its id; lines outside of any do not."""

from __future__ import annotations

import asyncio
import os
import re

import pytest

from puna.process import guard
from puna.worker.app import calllog
from puna.worker.app.calllog import LONGEST_LINE, CallLog, LogScope, _current


def written(parts: list[str], trace: str = "") -> str:
    """What reaches the descriptor."""
    read, write = os.pipe()
    log, scope = CallLog(write, None), LogScope(trace)
    token = _current.set(scope if trace else None)
    try:
        for part in parts:
            assert log.write(part) == len(part)
        log.end(scope)
    finally:
        _current.reset(token)
        os.close(write)
    data = b""
    while piece := os.read(read, 65536):
        data += piece
    os.close(read)
    return data.decode()


def test_outside_of_a_request_text_passes_as_it_is() -> None:
    assert written(["no", " tag\n", "part"]) == "no tag\npart"


def test_each_line_of_a_request_is_tagged_and_the_last_is_ended() -> None:
    assert written(["a", "b\nc\n", "d"], "t1") == "[t1] ab\n[t1] c\n[t1] d\n"


def test_a_progress_bar_leaves_its_last_state() -> None:
    assert written(["\r 10%", "\r 90%", "\r100%\n"], "t1") == "[t1] 100%\n"


def test_a_line_without_an_end_is_written_in_parts() -> None:
    text = written(["x" * (LONGEST_LINE + 1), "y"], "t1")
    assert text == "[t1] " + "x" * (LONGEST_LINE + 1) + "\n[t1] y\n"


def test_text_that_utf_8_has_no_bytes_for_is_escaped() -> None:
    assert written(["\udcff ü\n"]) == "\\udcff ü\n"


def test_each_line_begins_with_its_time_and_its_stream_in_a_worker_that_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calllog, "_is_stamping", True)
    monkeypatch.setattr(calllog.time, "time", lambda: 1764072000.25)
    stamp = "2025-11-25T12:00:00.250000Z stderr F "  # of a descriptor that is not 1
    assert written(["a", "b\n\nc", "d\n", "e"]) == f"{stamp}ab\n{stamp}\n{stamp}cd\n{stamp}e"
    assert written(["a\n", "b"], "t1") == f"{stamp}[t1] a\n{stamp}[t1] b\n"
    assert written(["\r 10%", "\r 20%", "\n", "x"]) == f"{stamp}\r 10%\r 20%\n{stamp}x"
    assert re.fullmatch(guard.STAMP, stamp.encode()) and len(stamp) == guard.STAMP_BYTES


def test_a_note_says_on_every_line_which_request_it_is_about(capfd: pytest.CaptureFixture[str]) -> None:
    calllog.note("infer raised:\nTraceback\nValueError: x\n", "t1")
    calllog.note("ready")
    assert capfd.readouterr().err == "puna: [t1] infer raised:\n[t1] Traceback\n[t1] ValueError: x\npuna: ready\n"


def test_tasks_of_a_request_speak_for_it() -> None:
    async def heard() -> str:
        async def task() -> str:
            scope = _current.get()
            return scope.trace if scope else ""

        _current.set(LogScope("t9"))
        return await asyncio.create_task(task())

    assert asyncio.run(heard()) == "t9"
