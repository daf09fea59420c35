"""OpenAI's paths in the worker: bodies in, replies and streams out, on a real tiny model."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from puna.worker import protocol
from puna.worker.app import answers
from puna.worker.call_table import WorkerCall
from puna.worker.engines import engine
from puna.worker.engines.engine import Delta
from puna.worker.openai import completions, parameters
from worker.tiny_engine import CHATML, TinyEngine

HI = [{"role": "user", "content": "What is AI?"}]
GREEDY = {"temperature": 0, "max_tokens": 6}


@pytest.fixture(scope="module")
def loaded() -> TinyEngine:
    return TinyEngine()


@pytest.fixture
def tiny(loaded: TinyEngine) -> Iterator[TinyEngine]:
    """The worker's engine for one test."""
    loaded.asked.clear()
    loaded.closed_early, loaded.tokenizer().chat_template = 0, CHATML
    engine.register(loaded)
    yield loaded
    engine._engines.remove(loaded)


class Asked:
    """One request and the frames that came of it."""

    def __init__(self, path: str, body: Any, **head: Any) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.sent: list[tuple[int, bytes]] = []
        self.call = WorkerCall((1, 7), {"path": path, "model_name": "e", **head}, raw, 1e18, lambda data: None)

    def run(self) -> Asked:
        last = answers.answer(SimpleNamespace(folder="/nowhere"), self.call, lambda call, data: self._take(data))
        self._take(last)
        return self

    def _take(self, data: bytes) -> None:
        self.sent += [(kind, payload) for kind, _, payload in protocol.Decoder().feed(data)]

    @property
    def reply(self) -> tuple[int, Any]:
        assert [kind for kind, _ in self.sent] == [protocol.REPLY]
        status, body = protocol.decode_reply(self.sent[0][1])
        return status, json.loads(body)

    @property
    def chunks(self) -> list[Any]:
        kinds = [kind for kind, _ in self.sent]
        assert kinds == [protocol.BEGIN, *[protocol.CHUNK] * (len(kinds) - 2), protocol.END]
        return [json.loads(payload) for kind, payload in self.sent if kind == protocol.CHUNK]


def chat(**body: Any) -> Any:
    status, reply = Asked("chat", {"model": "e", "messages": HI, **GREEDY, **body}).run().reply
    assert status == 200, reply
    return reply


def completion(**body: Any) -> Any:
    status, reply = Asked("completion", {"model": "e", "prompt": "What is", **GREEDY, **body}).run().reply
    assert status == 200, reply
    return reply


def refused(path: str, status: int = 400, **body: Any) -> Any:
    asked: Any = {"messages": HI} if path == "chat" else {"prompt": "x"}
    told, reply = Asked(path, {**asked, **body}).run().reply
    assert told == status, reply
    assert set(reply) == {"error"} and set(reply["error"]) == {"message", "type", "param", "code"}
    return reply["error"]


def test_a_chat_goes_through_the_template_and_comes_back_in_openais_shape(tiny: TinyEngine) -> None:
    reply = chat(model="mine")
    ((prompt, params, adapter),) = tiny.asked
    assert prompt == tiny.tokenizer().encode("<|user|>What is AI?\n<|assistant|>", add_special_tokens=False)
    assert (params["max_tokens"], params["temperature"], adapter) == (6, 0, None)
    (choice,) = reply["choices"]
    assert choice["message"]["role"] == "assistant" and choice["message"]["content"]
    assert (choice["index"], choice["finish_reason"]) == (0, "length")
    assert (reply["object"], reply["model"]) == ("chat.completion", "mine")
    assert reply["id"].startswith("chatcmpl-") and abs(reply["created"] - time.time()) < 60
    total = {"prompt_tokens": len(prompt), "completion_tokens": 6, "total_tokens": len(prompt) + 6}
    assert reply["usage"] == total


def test_a_stream_has_role_first_pieces_that_add_up_then_the_reason_then_usage(tiny: TinyEngine) -> None:
    whole = chat()
    body = {"messages": HI, **GREEDY, "stream": True, "stream_options": {"include_usage": True}}
    *pieces, usage = Asked("chat", body).run().chunks
    assert {piece["object"] for piece in pieces} == {"chat.completion.chunk"}
    assert len({piece["id"] for piece in pieces}) == 1
    assert pieces[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert pieces[-1]["choices"][0]["delta"] == {} and pieces[-1]["choices"][0]["finish_reason"] == "length"
    text = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
    assert text == whole["choices"][0]["message"]["content"]
    assert all(piece["choices"][0]["finish_reason"] is None for piece in pieces[:-1])
    assert all(piece["usage"] is None for piece in pieces)
    assert usage["choices"] == [] and usage["usage"] == whole["usage"]


def test_a_stream_that_does_not_ask_for_usage_hears_nothing_of_it(tiny: TinyEngine) -> None:
    pieces = Asked("completion", {"prompt": "What is", **GREEDY, "stream": True}).run().chunks
    assert all("usage" not in piece for piece in pieces)
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == completion()["choices"][0]["text"]
    assert pieces[-1]["choices"][0]["finish_reason"] == "length"
    assert {piece["object"] for piece in pieces} == {"text_completion"}


def test_prompts_may_be_texts_and_ids_and_their_replies_stand_in_order(tiny: TinyEngine) -> None:
    texts = ["What is", "The cat", "One and"]
    alone = [completion(prompt=text)["choices"][0]["text"] for text in texts]
    together = completion(prompt=texts)
    assert [choice["text"] for choice in together["choices"]] == alone
    assert [choice["index"] for choice in together["choices"]] == [0, 1, 2]
    assert together["usage"]["completion_tokens"] == 18
    ids = [tiny.tokenizer().encode(text) for text in texts]
    assert completion(prompt=ids[1])["choices"][0]["text"] == alone[1]
    assert [choice["text"] for choice in completion(prompt=ids)["choices"]] == alone


def test_each_prompt_gets_n_choices_and_a_seed_repeats_them(tiny: TinyEngine) -> None:
    body = {"prompt": ["What is", "The cat"], "n": 2, "temperature": 1.5, "seed": 5}
    first, again = completion(**body), completion(**body)
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2, 3]
    texts = [choice["text"] for choice in first["choices"]]
    assert texts == [choice["text"] for choice in again["choices"]] and texts[0] != texts[1]
    assert first["usage"]["completion_tokens"] == 24
    prompt_tokens = len(tiny.tokenizer().encode("What is")) + len(tiny.tokenizer().encode("The cat"))
    assert first["usage"]["prompt_tokens"] == prompt_tokens
    streamed = [""] * 4
    for piece in Asked("completion", {**GREEDY, **body, "stream": True}).run().chunks:
        streamed[piece["choices"][0]["index"]] += piece["choices"][0]["text"]
    assert streamed == texts


def test_a_stop_text_ends_the_reply_before_it(tiny: TinyEngine) -> None:
    text = completion()["choices"][0]["text"]
    stop = text.strip()[4:7]
    for given in (stop, [stop, "never said"]):
        (choice,) = completion(stop=given)["choices"]
        assert choice["finish_reason"] == "stop" and choice["text"] == text[: text.index(stop)]
    assert completion(stop=[])["choices"][0]["text"] == text


def test_a_chat_that_names_no_limit_gets_what_is_left_and_a_completion_sixteen(
    tiny: TinyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "max_model_len", 64)
    Asked("chat", {"messages": HI, "temperature": 0}).run()
    Asked("completion", {"prompt": "What is", "temperature": 0}).run()
    (prompt, chat_params, _), (_, params, _) = tiny.asked
    assert chat_params["max_tokens"] == tiny.max_model_len - len(prompt)
    assert params["max_tokens"] == 16
    assert chat(max_tokens=None, max_completion_tokens=2)["usage"]["completion_tokens"] == 2


def test_tools_and_template_arguments_reach_the_template(tiny: TinyEngine) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    Asked("chat", {"messages": HI, "tools": [tool], "tool_choice": "auto", **GREEDY}).run()
    Asked("chat", {"messages": HI, "tools": [tool], "tool_choice": "none", **GREEDY}).run()
    with_tools, without = (tiny.tokenizer().decode(prompt) for prompt, _, _ in tiny.asked)
    assert "tools: weather auto" in with_tools and "tools" not in without
    Asked("chat", {"messages": HI, "chat_template_kwargs": {"add_generation_prompt": False}, **GREEDY}).run()
    body = {"messages": HI * 2, "chat_template_kwargs": {"strict": True}}
    assert "one message only" in refused("chat", **body)["message"]
    assert refused("chat", chat_template_kwargs={"tokenize": True})["param"] == "chat_template_kwargs"


def test_messages_of_parts_of_calls_and_of_developers_become_what_templates_know(tiny: TinyEngine) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 42}'}}
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "done", "tool_call_id": "1"},
    ]
    assert chat(messages=messages)["choices"]
    text = tiny.tokenizer().decode(tiny.asked[0][0])
    assert text == "<|system|>be brief\n<|user|>one\ntwo\n<|assistant|>call 42\n<|tool|>done\n<|assistant|>"


def calling(function: Any) -> dict[str, Any]:
    """An assistant's message that calls this function."""
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("chat", {"messages": []}, "messages"),
        ("chat", {"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ("chat", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ("chat", {"messages": [calling({"arguments": "{"})]}, "messages[0].tool_calls"),
        ("chat", {"messages": [calling(None)]}, "messages[0].tool_calls"),
        ("chat", {"temperature": "hot"}, "temperature"),
        ("chat", {"temperature": True}, "temperature"),
        ("chat", {"top_p": 0}, "top_p"),
        ("chat", {"n": 0}, "n"),
        ("chat", {"n": 1.5}, "n"),
        ("chat", {"max_tokens": 0}, "max_tokens"),
        ("chat", {"stop": ["a", ""]}, "stop"),
        ("chat", {"stream": "yes"}, "stream"),
        ("chat", {"tools": ["weather"]}, "tools"),
        ("completion", {"prompt": None}, "prompt"),
        ("completion", {"prompt": [1, "a"]}, "prompt"),
        ("completion", {"prompt": [[]]}, "prompt"),
        ("completion", {"prompt": [10**9]}, "prompt"),
        ("completion", {"suffix": "end"}, "suffix"),
        ("completion", {"best_of": 3}, "best_of"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_name(tiny: TinyEngine, path: str, body: Any, param: str) -> None:
    error = refused(path, **body)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert not tiny.asked


def test_neutral_values_and_what_is_for_openais_accounts_are_let_through(tiny: TinyEngine) -> None:
    neutral = {"logprobs": False, "logit_bias": {}, "response_format": {"type": "text"}, "stop": None, "user": "u"}
    more = {"presence_penalty": 0, "top_logprobs": 0, "modalities": ["text"], "length_penalty": 1.0, "guided_regex": ""}
    assert chat(**neutral, **more, store=True, metadata={"a": "b"}, nobody_knows=None)["choices"]
    for name in tiny.asked[0][1]:
        assert name in ("temperature", "max_tokens")


@pytest.mark.parametrize("path", completions.PATHS)
@pytest.mark.parametrize("name", [n for p in parameters.TABLE if p.who == parameters.ENGINE for n in p.names])
def test_a_constraint_that_the_engine_cannot_keep_is_never_dropped(tiny: TinyEngine, path: str, name: str) -> None:
    values = {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}, "logprobs": True}
    error = refused(path, **{name: False if "special" in name else values.get(name, [7] if "ids" in name else 3)})
    assert error["param"] == name and error["code"] in ("unsupported_parameter", "unknown_parameter")
    assert not tiny.asked


@pytest.mark.parametrize(
    ("path", "name", "told"),
    [
        ("chat", "max_token", "is `max_tokens` meant"),
        ("chat", "vllm_xargs", "unknown parameter `vllm_xargs`"),
        ("chat", "prompt", "a parameter of /v1/completions"),
        ("completion", "messages", "a parameter of /v1/chat/completions"),
        ("chat", "functions", "send `tools`"),
        ("completion", "use_beam_search", "not supported"),
    ],
)
def test_what_nobody_here_honours_is_refused_by_its_name(tiny: TinyEngine, path: str, name: str, told: str) -> None:
    error = refused(path, **{name: [1]})
    assert error["param"] == name and told in error["message"] and not tiny.asked


def test_a_reply_that_ends_without_a_reason_is_no_reply(tiny: TinyEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(prompt: list[int], params: dict[str, Any], adapter: Any = None) -> Iterator[Delta]:
        yield Delta(0, "half", [1], None)

    monkeypatch.setattr(tiny, "stream", stream)
    assert "without a reason" in refused("chat", status=500)["message"]
    asked = Asked("chat", {"messages": HI, "stream": True}).run()
    assert asked.sent[-1][0] == protocol.END and "without a reason" in json.loads(asked.sent[-1][1])["error"]


def test_an_engines_own_reason_is_told_as_it_is(tiny: TinyEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "stream", lambda *_: iter([Delta(0, "half", [1], "abort")]))
    assert chat()["choices"][0]["finish_reason"] == "abort"
    pieces = Asked("chat", {"messages": HI, "stream": True}).run().chunks
    assert pieces[-1]["choices"][0]["finish_reason"] == "abort"


def test_what_is_too_long_is_refused_with_the_numbers(tiny: TinyEngine) -> None:
    error = refused("completion", prompt="What is " * 300)
    assert error["code"] == "context_length_exceeded" and "256" in error["message"]
    assert refused("completion", prompt="x", max_tokens=256)["code"] == "context_length_exceeded"


def test_a_body_that_is_no_json_object_and_an_engines_refusal_are_the_callers_fault(tiny: TinyEngine) -> None:
    for body in (b"", b"{", b"[]", b"[" * 100_000):
        assert Asked("chat", body).run().reply[0] == 400
    assert "no repetition_penalty" in refused("chat", repetition_penalty=1.1)["message"]
    tiny.tokenizer().chat_template = None
    assert "/v1/completions" in refused("chat")["message"]


def test_an_app_without_an_engine_says_what_to_call_instead() -> None:
    error = refused("chat", status=404)
    assert "POST /v2/models/e/infer" in error["message"] and error["code"] == "no_engine"


def test_what_the_engine_raises_is_a_server_error_before_a_stream_and_its_last_word_after(tiny: TinyEngine) -> None:
    model, tiny._model = tiny._model, None
    try:
        assert refused("chat", status=500, stream=True)["type"] == "server_error"
    finally:
        tiny._model = model
    asked = Asked("completion", {"prompt": "What is", **GREEDY, "stream": True})

    def break_it(call: WorkerCall, data: bytes) -> None:
        asked._take(data)
        tiny._model = None

    try:
        last = answers.answer(SimpleNamespace(folder="/nowhere"), asked.call, break_it)
    finally:
        tiny._model = model
    ((kind, _, payload),) = protocol.Decoder().feed(last)
    assert kind == protocol.END and "NoneType" in json.loads(payload)["error"]


@pytest.mark.parametrize("prompt", ["What is", ["What is", "The cat"]])
def test_when_nobody_waits_any_more_the_engine_is_told_to_stop(tiny: TinyEngine, prompt: Any) -> None:
    asked = Asked("completion", {"prompt": prompt, "max_tokens": 200, "ignore_eos": True, "stream": True})
    tiny.gate = threading.Semaphore(4)
    thread = threading.Thread(target=asked.run)
    thread.start()
    try:
        end = time.monotonic() + 20
        while not any(kind == protocol.CHUNK for kind, _ in asked.sent):
            assert time.monotonic() < end
            time.sleep(0.005)
        asked.call.is_answered = True  # what CANCEL and the deadline do
    finally:
        tiny.gate.release(1 << 20)
        thread.join(20)
        tiny.gate = threading.Semaphore(1 << 30)
    assert not thread.is_alive()
    assert tiny.closed_early == (1 if isinstance(prompt, str) else 2)


def test_the_adapter_of_the_head_reaches_an_engine_that_takes_some(
    tiny: TinyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"messages": HI, **GREEDY}
    assert Asked("chat", body, adapter={"name": "acme/tone", "path": "/somewhere"}).run().reply[0] == 200
    ((_, _, adapter),) = tiny.asked
    assert adapter is not None and (adapter.name, adapter.path) == ("acme/tone", "/somewhere")
    monkeypatch.setattr(tiny, "takes_adapters", False)
    status, reply = Asked("chat", body, adapter={"name": "acme/tone", "path": "/somewhere"}).run().reply
    assert status == 400 and "ask for `e`" in reply["error"]["message"]


FORMS = [
    ({"response_format": {"type": "json_object"}}, {"json_object": True}),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}}, {"json": {}}),
    ({"structured_outputs": {"choice": ["a", "b"], "json": None}}, {"choice": ["a", "b"]}),
    ({"guided_json": "{}"}, {"json": "{}"}),
    ({"guided_regex": "a+"}, {"regex": "a+"}),
    ({"guided_choice": ["a"]}, {"choice": ["a"]}),
    ({"guided_grammar": "root ::= 'a'"}, {"grammar": "root ::= 'a'"}),
]


@pytest.mark.parametrize(("asked", "constraint"), FORMS)
def test_what_holds_a_reply_to_a_form_reaches_an_engine_that_can(
    tiny: TinyEngine, monkeypatch: pytest.MonkeyPatch, asked: Any, constraint: Any
) -> None:
    monkeypatch.setattr(tiny, "extras", parameters.FORMS)
    chat(**asked)
    assert tiny.asked[0][1]["constraint"] == constraint
    completion(**asked)
    assert tiny.asked[1][1]["constraint"] == constraint


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("response_format", "json"),
        ("response_format", {"type": "yaml"}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x"}}),
        ("structured_outputs", {"regex": "a", "json": {}}),
        ("structured_outputs", {"regexp": "a"}),
        ("structured_outputs", "a"),
        ("guided_json", 5),
        ("guided_choice", "a"),
        ("guided_choice", [5]),
        ("guided_regex", ["a"]),
        ("logit_bias", [5]),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"5": 101}),
        ("stop_token_ids", 5),
        ("stop_token_ids", [-1]),
        ("min_tokens", -1),
        ("min_tokens", 7),
        ("bad_words", [""]),
    ],
)
def test_an_engines_parameter_in_bad_form_is_refused(
    tiny: TinyEngine, monkeypatch: pytest.MonkeyPatch, name: str, wrong: Any
) -> None:
    monkeypatch.setattr(tiny, "extras", tuple(parameters.ALL))
    assert refused("chat", **GREEDY, **{name: wrong})["param"] == name
    assert not tiny.asked


def test_two_forms_at_a_time_are_refused(tiny: TinyEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "extras", parameters.FORMS)
    assert "send one of them" in refused("chat", guided_regex="a", guided_choice=["a"])["message"]


@pytest.mark.process
def test_a_worker_without_an_engine_says_so_under_every_python(app: Any, start: Any, python: str) -> None:
    client = start(app(), python=python).ready()
    for path in completions.PATHS:
        status, body = client.call(b'{"messages": [], "prompt": "x"}', path=path)
        assert status == 404 and "POST /v2/models/m/infer instead" in body["error"]["message"]
    assert client.call({"prompt": "hi"})[0] == 200


def test_prompt_and_reply_may_fill_the_context_and_no_more(tiny: TinyEngine) -> None:
    prompt = [5] * 250
    assert completion(prompt=prompt, max_tokens=6)["usage"]["prompt_tokens"] == 250
    assert tiny.asked[0][1]["max_tokens"] == 6
    assert refused("completion", prompt=prompt, max_tokens=7)["code"] == "context_length_exceeded"
