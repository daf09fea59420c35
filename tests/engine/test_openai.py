"""OpenAI's paths on a real vLLM: constraints kept or refused, tools, log-probabilities, what the engine gives up."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.test_batching import MODEL, hub, serve
from puna.worker import protocol

__all__ = ["hub", "serve"]
pytestmark = [pytest.mark.process, pytest.mark.engine]

APP = f"""
from vllm import LLM
class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model={MODEL!r}, dtype="float32", enforce_eager=True, max_model_len=512)
    def infer(self, inputs):
        return {{"generated_text": "x"}}
"""
ON_TRANSFORMERS = f"""
from transformers import AutoModelForCausalLM
class InferlessPythonModel:
    def initialize(self):
        self.model = AutoModelForCausalLM.from_pretrained({MODEL!r})
    def infer(self, inputs):
        return {{"generated_text": "x"}}
"""
HI = [{"role": "user", "content": "What is AI?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}, "warm": {"type": "boolean"}},
    "required": ["city", "warm"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]
BROKEN = {"type": "object", "patternProperties": {"[": {"type": "string"}}}
Ask = Callable[..., tuple[int, Any]]


@pytest.fixture
def client(serve: Any) -> Any:
    return serve(APP)[0]


def ask(client: Any, path: str, **body: Any) -> tuple[int, Any]:
    asked: dict[str, Any] = {"messages": HI} if path == "chat" else {"prompt": "What is"}
    status, reply = client.call(json.dumps({**asked, "max_tokens": 300, **body}).encode(), path=path, deadline_s=600)
    return status, reply


def good(client: Any, path: str, **body: Any) -> list[Any]:
    status, reply = ask(client, path, **body)
    assert status == 200, reply
    return list(reply["choices"])


def streamed(client: Any, path: str, **body: Any) -> tuple[list[Any], dict[str, Any]]:
    """The chunks, and what END or the refusal says."""
    asked: dict[str, Any] = {"messages": HI} if path == "chat" else {"prompt": "What is"}
    data = json.dumps({**asked, "max_tokens": 300, "stream": True, **body}).encode()
    client.send(9, data, path=path, deadline_s=600)
    chunks = []
    while True:
        kind, _, payload = client.next(protocol.STARTED, protocol.BEGIN)
        if kind == protocol.REPLY:
            return chunks, json.loads(protocol.decode_reply(payload)[1])
        if kind == protocol.END:
            return chunks, json.loads(payload)
        chunks.append(json.loads(payload)["choices"][0])


def test_what_constrains_a_reply_is_kept_or_refused(client: Any) -> None:
    """One engine for all: a start takes half a minute."""
    forms(client)
    broken_forms(client)
    tool_choices(client)
    parameters_of_vllm(client)
    copies(client)


def test_transformers_with_xgrammar_beside_it_keeps_the_same(serve: Any) -> None:
    client, said = serve(ON_TRANSFORMERS)
    assert said["engine"]["kind"] == "transformers"
    forms(client)
    assert ask(client, "completion", guided_regex="[")[0] == 400
    assert ask(client, "completion", guided_grammar="no grammar at all")[0] == 400
    assert ask(client, "completion", structured_outputs={"structural_tag": "x"})[0] == 400
    named = {"type": "function", "function": {"name": "weather"}}
    (choice,) = good(client, "chat", tools=TOOLS, tool_choice=named)
    (call,) = choice["message"]["tool_calls"]
    assert set(json.loads(call["function"]["arguments"])) == {"city", "warm"}
    asked = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    chunks, end = streamed(client, "chat", **asked)
    assert "error" not in end and chunks[-1]["finish_reason"] == "tool_calls"
    copies(client)


def forms(client: Any) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMA}}
    for body in ({"response_format": wanted}, {"structured_outputs": {"json": SCHEMA}}, {"guided_json": SCHEMA}):
        (choice,) = good(client, "chat", **body)
        assert set(json.loads(choice["message"]["content"])) == {"city", "warm"}
    for body in ({"structured_outputs": {"regex": "[0-9]{3}"}}, {"guided_regex": "[0-9]{3}"}):
        assert re.fullmatch("[0-9]{3}", good(client, "completion", **body)[0]["text"])
    assert good(client, "completion", guided_choice=["yes", "no"])[0]["text"] in ("yes", "no")
    assert good(client, "completion", guided_grammar='root ::= "llama"')[0]["text"] == "llama"


def broken_forms(client: Any) -> None:
    for schema in (BROKEN, {"type": "nothing"}):
        form = {"type": "json_schema", "json_schema": {"name": "w", "schema": schema}}
        status, reply = ask(client, "chat", response_format=form)
        assert status == 400 and reply["error"]["type"] == "invalid_request_error", reply
        chunks, end = streamed(client, "chat", response_format=form)
        assert not chunks and end["error"]["type"] == "invalid_request_error", end
    assert ask(client, "completion", guided_regex="[")[0] == 400
    assert ask(client, "completion", guided_grammar="no grammar at all")[0] == 400
    assert good(client, "chat")[0]["finish_reason"] in ("stop", "length")  # the engine lives on


def tool_choices(client: Any) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    (choice,) = good(client, "chat", tools=TOOLS, tool_choice=named)
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "weather" and set(json.loads(call["function"]["arguments"])) == {"city", "warm"}
    asked = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    (choice,) = good(client, "chat", **asked)
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] in ("weather", "now") and choice["finish_reason"] == "tool_calls"
    chunks, end = streamed(client, "chat", **asked)
    assert "error" not in end and chunks[-1]["finish_reason"] == "tool_calls"
    assert [c["function"]["name"] for p in chunks for c in p["delta"].get("tool_calls", ())][0] in ("weather", "now")
    broken = [{"type": "function", "function": {"name": "weather", "parameters": BROKEN}}]
    assert ask(client, "chat", tools=broken, tool_choice="required")[0] == 400


def parameters_of_vllm(client: Any) -> None:
    greedy: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "logprobs": 0, "ignore_eos": True}
    plain = good(client, "completion", **greedy)[0]
    first = good(client, "completion", **greedy, allowed_token_ids=[40, 41])[0]
    assert len(set(first["logprobs"]["tokens"])) <= 2
    stopped = good(client, "completion", **greedy, allowed_token_ids=[40], stop_token_ids=[40])[0]
    assert stopped["finish_reason"] == "stop" and len(stopped["logprobs"]["tokens"]) == 1
    more = good(client, "completion", **greedy, allowed_token_ids=[40, 41], stop_token_ids=[40, 41], min_tokens=12)
    assert plain["finish_reason"] == "length" and len(plain["logprobs"]["tokens"]) == 12 and more
    word = plain["logprobs"]["tokens"][0]
    assert good(client, "completion", **greedy, bad_words=[word])[0]["logprobs"]["tokens"][0] != word
    status, reply = ask(client, "completion", nobody_knows=1)
    assert (status, reply["error"]["param"]) == (400, "nobody_knows")


def copies(client: Any) -> None:
    for path in ("chat", "completion"):
        choices = good(client, path, n=3, temperature=0, max_tokens=5)
        assert [choice["index"] for choice in choices] == [0, 1, 2]
        assert len({json.dumps(c.get("message", c.get("text"))) for c in choices}) == 1


def test_log_probabilities_are_the_models_own(client: Any, hub: Path) -> None:
    folder = next(hub.glob("hub/*/snapshots/*"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompts = [tokenizer.encode(text) for text in ("Llamas graze on the high grassland.", "What is AI?")]
    asked = {"prompt": prompts, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
    for choice, prompt in zip(good(client, "completion", **asked), prompts, strict=True):
        with torch.no_grad():
            likely = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
        told = choice["logprobs"]
        assert told["token_logprobs"][0] is None and len(told["tokens"]) == len(prompt) + 1
        expected = [float(likely[at, token]) for at, token in enumerate(prompt[1:])]
        assert told["token_logprobs"][1:-1] == pytest.approx(expected, abs=1e-3)
    chat = {"max_tokens": 5, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    (choice,) = good(client, "chat", **chat)
    assert [len(entry["top_logprobs"]) for entry in choice["logprobs"]["content"]] == [2] * 5
    chunks, _ = streamed(client, "chat", **chat)
    tokens = [e["token"] for p in chunks for e in (p["logprobs"] or {"content": []})["content"]]
    assert tokens == [entry["token"] for entry in choice["logprobs"]["content"]]
