"""transformers' `generate` from many threads of `infer`, on the demo's tiny Llama: rows of one batch, and the rest."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from puna import demo
from puna.worker import protocol
from worker.test_server import wait_for

pytestmark = pytest.mark.process
Write = Callable[..., Path]
Start = Callable[..., Any]

APP = f"""
    import os, threading
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer

    class InferlessPythonModel:
        def initialize(self):
            folder = {os.fspath(demo.BASE)!r}
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            self.widest = 0
            self.model.register_forward_pre_hook(self.note, with_kwargs=True)

        def note(self, module, arguments, named):
            self.widest = max(self.widest, named["input_ids"].shape[0])

        def infer(self, inputs):
            how, prompt = inputs["prompt"].split(" ", 1)
            ids = self.tokenizer(prompt, return_tensors="pt")
            plain = dict(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
            if how == "streamer":
                streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True)
                threading.Thread(target=self.model.generate, kwargs=dict(plain, streamer=streamer)).start()
                return {{"text": "".join(streamer)}}
            if how == "beams":
                plain["num_beams"] = 2
            if how == "endless":
                open("endless", "w").close()
                plain.update(max_new_tokens=100_000, eos_token_id=None)
            out = self.model.generate(**plain)
            assert out[0, : ids.input_ids.shape[1]].tolist() == ids.input_ids[0].tolist()
            return {{"text": self.tokenizer.decode(out[0, ids.input_ids.shape[1] :]), "widest": self.widest}}
"""
PROMPTS = ["What is AI?", "Hello", "Tell me about the high grassland where llamas graze, please.", "Who are you? " * 5]


def replies(client: Any, prompts: list[str]) -> dict[str, dict[str, Any]]:
    """Prompt -> outputs by name, all sent before any reply is read."""
    for number, prompt in enumerate(prompts):
        client.send(number, {"prompt": prompt}, deadline_s=60)
    found = {}
    for _ in prompts:
        number, status, body = client.reply()
        assert status == 200, body
        found[prompts[number]] = {o["name"]: o["data"][0] for o in body["outputs"]}
    return found


@pytest.fixture
def client(app: Write, start: Start) -> Any:
    worker = start(app(APP), "--concurrency", "32")  # `widest` and the hook are the app's own, so it must ask
    client = worker.client()
    client.socket.settimeout(120)  # importing torch on a busy machine
    said = client.until(protocol.HELLO)
    said = said if said["state"] == "ready" else client.until(protocol.READY)
    assert said["engine"]["kind"] == "transformers" and said["concurrency"] == 32
    return client


def test_calls_that_come_together_are_rows_of_one_batch_and_say_what_each_says_alone(client: Any) -> None:
    prompts = ["plain " + p for p in PROMPTS] * 4
    alone = [replies(client, [prompt])[prompt] for prompt in prompts[:4]]
    assert {reply["widest"] for reply in alone} == {1}
    together = replies(client, prompts)
    assert [together[prompt]["text"] for prompt in prompts[:4]] == [reply["text"] for reply in alone]
    assert max(reply["widest"] for reply in together.values()) > 4


def test_streamers_and_beams_run_by_themselves_and_say_the_same(client: Any) -> None:
    prompts = [f"{how} {PROMPTS[0]}" for how in ("plain", "streamer", "beams")]
    told = replies(client, prompts)
    assert told[prompts[0]]["text"] == told[prompts[1]]["text"] and told[prompts[2]]["text"]


def test_a_client_that_hangs_up_ends_its_row(client: Any, tmp_path: Path) -> None:
    client.send(1, {"prompt": "endless x"}, deadline_s=60)
    wait_for(tmp_path / "app" / "endless")
    client.socket.sendall(protocol.encode(protocol.CANCEL, 1))
    assert client.next(protocol.STARTED)[:2] == (protocol.END, 1)
