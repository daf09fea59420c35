"""Log-probabilities and echo on OpenAI's paths, of the running batch on a tiny Llama: what lm-eval asks of a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from puna.worker.engines import engine as engines
from worker.engines.transformers.test_loop import engine, ids, model
from worker.openai.test_completions import HI, Asked, refused

__all__ = ["engine", "model"]

TEXT = "What is AI? Artificial intelligence is"


@pytest.fixture(autouse=True)
def registered(engine: Any) -> Iterator[None]:
    engines.register(engine)
    engine._tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    yield
    engines._engines.remove(engine)


def ask(path: str, **body: Any) -> Any:
    status, reply = Asked(path, {"temperature": 0, **body}).run().reply
    assert status == 200, reply
    return reply


def test_a_prompt_is_scored_as_lm_eval_asks_for_it(engine: Any, model: Any) -> None:
    prompts = [ids(engine, TEXT), ids(engine, "Hello there, llama.")]
    reply = ask("completion", prompt=prompts, max_tokens=1, echo=True, logprobs=1)
    for choice, prompt in zip(reply["choices"], prompts, strict=True):
        told = choice["logprobs"]
        with torch.no_grad():
            likely = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
        expected = [float(likely[at, token]) for at, token in enumerate(prompt[1:])]
        assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
        assert told["token_logprobs"][1:-1] == pytest.approx(expected, abs=1e-4)
        greedy = [max(top.values()) for top in told["top_logprobs"][1:]]
        assert greedy[:-1] == pytest.approx(likely[:-1].max(-1).values.tolist(), abs=1e-4)
        assert len(told["tokens"]) == len(prompt) + 1 == len(told["text_offset"])
    assert reply["usage"]["completion_tokens"] == 2


def test_an_echo_stands_before_the_reply_whole_and_streamed() -> None:
    plain = ask("completion", prompt=TEXT, max_tokens=4)["choices"][0]
    body = {"prompt": TEXT, "max_tokens": 4, "echo": True, "logprobs": 2, "n": 2}
    reply = ask("completion", **body)
    assert [choice["text"] for choice in reply["choices"]] == [TEXT + plain["text"]] * 2
    pieces = Asked("completion", {**body, "n": 1, "temperature": 0, "stream": True}).run().chunks
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == TEXT + plain["text"]
    told: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for piece in pieces:
        for key, values in (piece["choices"][0]["logprobs"] or {}).items():
            told[key] += values
    first = reply["choices"][0]["logprobs"]
    assert told["tokens"] == first["tokens"] and told["text_offset"] == first["text_offset"]
    assert told["token_logprobs"][1:] == pytest.approx(first["token_logprobs"][1:], abs=1e-4)


def test_no_tokens_with_an_echo_is_the_prompt_alone(engine: Any) -> None:
    reply = ask("completion", prompt=TEXT, max_tokens=0, echo=True, logprobs=0)
    (choice,) = reply["choices"]
    assert (choice["text"], choice["finish_reason"], reply["usage"]["completion_tokens"]) == (TEXT, "length", 0)
    assert len(choice["logprobs"]["tokens"]) == len(ids(engine, TEXT)) and choice["logprobs"]["top_logprobs"][1] is None
    assert ask("completion", prompt=TEXT, max_tokens=0, echo=True)["choices"][0]["text"] == TEXT
    assert refused("completion", max_tokens=0)["param"] == "max_tokens"


def test_a_chats_tokens_have_their_bytes_and_the_likeliest_beside_them() -> None:
    body = {"messages": HI, "max_tokens": 6, "logprobs": True, "top_logprobs": 3}
    (choice,) = ask("chat", **body)["choices"]
    content = choice["logprobs"]["content"]
    assert len(content) == 6 and all(len(entry["top_logprobs"]) == 3 for entry in content)
    for entry in content:
        assert entry["logprob"] == entry["top_logprobs"][0]["logprob"] <= 0  # greedy
        assert entry["bytes"] is None or bytes(entry["bytes"]).decode() == entry["token"]
    pieces = Asked("chat", {**body, "temperature": 0, "stream": True}).run().chunks
    streamed = [e for p in pieces for e in (p["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert [entry["token"] for entry in streamed] == [entry["token"] for entry in content]
    assert json.dumps(choice["logprobs"], allow_nan=False)
    assert refused("chat", top_logprobs=3)["param"] == "top_logprobs"
    assert refused("chat", logprobs=True, top_logprobs=21)["param"] == "top_logprobs"
    assert refused("completion", logprobs=True)["param"] == "logprobs"
