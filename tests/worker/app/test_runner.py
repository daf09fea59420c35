"""Apps with BATCH_SIZE, with OPENAI_CLIENT_COMPATIBLITY, and with an async infer: how many requests meet in `infer`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from puna.worker import protocol

pytestmark = pytest.mark.process
Write = Callable[..., Path]
Start = Callable[..., Any]

SCHEMA = """
    INPUT_SCHEMA = {"prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["hi"]}}
    BATCH_SIZE = 4
    BATCH_WINDOW = %d
"""
APP = """
    class InferlessPythonModel:
        def infer(self, many):
            prompts = [one["prompt"] for one in many]
            if "bad" in prompts:
                raise ValueError("bad luck")
            if "short" in prompts:
                return [{"text": "one"}]
            return [{"text": prompt, "size": len(many)} for prompt in prompts]
"""


def ask(client: Any, prompts: list[str]) -> dict[str, Any]:
    """Prompt -> (status, outputs by name or error), all sent before any reply is read."""
    for number, prompt in enumerate(prompts):
        client.send(number, {"prompt": prompt})
    replies: dict[str, Any] = {}
    for _ in prompts:
        number, status, body = client.reply()
        told = {o["name"]: o["data"][0] for o in body["outputs"]} if status == 200 else body["error"]
        replies[prompts[number]] = status, told
    return replies


def test_a_full_batch_runs_at_once_and_each_gets_its_own_output(app: Write, start: Start) -> None:
    client = start(app(APP, SCHEMA % 60_000)).ready()  # a window longer than the test: only full batches run
    replies = ask(client, list("abcdefgh"))
    assert replies == {letter: (200, {"text": letter, "size": 4}) for letter in "abcdefgh"}


def test_a_batch_that_does_not_fill_runs_when_its_window_is_over(app: Write, start: Start) -> None:
    client = start(app(APP, SCHEMA % 300)).ready()
    replies = ask(client, ["a", "b"])
    assert replies == {letter: (200, {"text": letter, "size": 2}) for letter in "ab"}


def test_a_failing_batch_fails_its_members_only(app: Write, start: Start) -> None:
    client = start(app(APP, SCHEMA % 60_000)).ready()
    replies = ask(client, ["bad", "x", "y", "z", "a", "b", "c", "d"])
    failed = {prompt for prompt, (status, _) in replies.items() if status == 500}
    assert "bad" in failed and len(failed) == 4 and all("bad luck" in replies[p][1] for p in failed)
    assert all(replies[p] == (200, {"text": p, "size": 4}) for p in set(replies) - failed)


def test_a_result_of_the_wrong_length_says_so(app: Write, start: Start) -> None:
    client = start(app(APP, SCHEMA % 60_000)).ready()
    replies = ask(client, ["short", "x", "y", "z"])
    for status, error in replies.values():
        assert status == 500 and "a list of 4 inputs (BATCH_SIZE = 4) and returned 1" in error


def test_a_leading_batch_dimension_is_accepted_and_a_cancelled_member_keeps_no_one(app: Write, start: Start) -> None:
    client = start(app(APP, SCHEMA % 400)).ready()
    client.send(1, {"prompt": "abandoned"})
    client.socket.sendall(protocol.encode(protocol.CANCEL, 1))
    body = {"inputs": [{"name": "prompt", "shape": [1, 1], "datatype": "BYTES", "data": ["kept"]}]}
    client.send(2, json.dumps(body).encode())
    number, status, reply = client.reply()
    assert (number, status) == (2, 200) and [o["data"] for o in reply["outputs"]] == [["kept"], [1]]


def test_a_batching_app_is_valid(app: Write, validated: Callable[..., dict[str, Any]]) -> None:
    report = validated(app(APP, SCHEMA % 100))
    assert report["ok"], report
    assert report["schema"]["flags"]["batch_size"] == 4


def test_an_openai_apps_message_arrives_decoded(app: Write, start: Start) -> None:
    schema = """
        INPUT_SCHEMA = {"message": {"datatype": "STRING", "shape": [1], "example": ["[]"]}}
        OPENAI_CLIENT_COMPATIBLITY = True
    """
    source = """
        class InferlessPythonModel:
            def infer(self, inputs): return {"text": inputs["message"][0]["content"]}
    """
    client = start(app(source, schema)).ready()
    status, body = client.call({"message": json.dumps([{"role": "user", "content": "hello"}])})
    assert status == 200 and body["outputs"][0]["data"] == ["hello"]
    status, body = client.call({"message": "[{"})
    assert status == 400 and "'message' is not JSON" in body["error"]


def test_calls_of_an_async_infer_meet_on_its_loop(app: Write, start: Start) -> None:
    source = """
        import asyncio
        class InferlessPythonModel:
            def initialize(self): self.waiting, self.all_here = 0, None
            async def infer(self, inputs):
                self.all_here = self.all_here or asyncio.Event()
                self.waiting += 1
                if self.waiting == 5: self.all_here.set()
                await self.all_here.wait()  # alone, it would wait until its deadline
                return {"text": inputs["prompt"]}
    """
    client = start(app(source), "--concurrency", "5").ready()
    replies = ask(client, list("abcde"))
    assert replies == {letter: (200, {"text": letter}) for letter in "abcde"}
