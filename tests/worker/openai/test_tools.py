"""Tools of a chat: the calls in a text, streamed or whole, and what `tool_choice` makes of a reply without one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from puna.worker.engines.engine import Delta
from puna.worker.openai import parameters, tools
from worker.openai.test_completions import HI, Asked, loaded, refused, tiny
from worker.tiny_engine import TinyEngine

__all__ = ["loaded", "tiny"]

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "of a place", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
ROME, NOW = ("weather", '{"city": "Rome"}'), ("now", "{}")
NAMED = {"type": "function", "function": {"name": "weather"}}
SAID = [
    ('{"name": "weather", "parameters": {"city": "Rome"}}', "", [ROME]),
    ('<|python_tag|>{"name": "weather", "arguments": {"city": "Rome"}}', "", [ROME]),
    (
        '{"name": "weather", "parameters": {"city": "Rome"}}; {"name": "now", "parameters": {}}',
        "",
        [ROME, ("now", "{}")],
    ),
    ('<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>', "", [ROME]),
    ('Let me see.\n<tool_call>{"name": "now", "arguments": {}}</tool_call>', "Let me see.", [NOW]),
    ('[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}}]', "", [ROME]),
    ('[{"name": "weather", "arguments": "{\\"city\\": \\"Rome\\"}"}]', "", [ROME]),
    ('```json\n{"name": "weather", "parameters": {"city": "Rome"}}\n```', "", [ROME]),
    ('{"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}', "", [ROME]),
]
NO_CALLS = [
    "It is warm.",
    '{"name": "nobody", "parameters": {}}',
    '{"name": "weather", "parameters": "warm"}',
    '{"city": "Rome"}',
    '{"name": "weather", "parameters": {"city"',
    "[1, 2]",
    "<tool_call>nothing</tool_call>",
    "a < b, [see] {this}",
]


def says(monkeypatch: pytest.MonkeyPatch, engine: TinyEngine, text: str, reason: str = "stop", size: int = 3) -> None:
    """The engine writes this text, `size` characters a step."""

    def stream(prompt: list[int], params: dict[str, Any], adapter: Any = None) -> Iterator[Delta]:
        engine.asked.append((prompt, params, adapter))
        for at in range(0, len(text), size):
            yield Delta(0, text[at : at + size], [at], None)
        yield Delta(0, "", [7], reason)

    monkeypatch.setattr(engine, "stream", stream)


def whole(**body: Any) -> Any:
    status, reply = Asked("chat", {"messages": HI, "tools": TOOLS, **body}).run().reply
    assert status == 200, reply
    return reply["choices"][0]


def streamed(**body: Any) -> tuple[str, list[tuple[str, str]], Any, list[Any]]:
    """Text, calls, reason and the pieces of text."""
    asked = Asked("chat", {"messages": HI, "tools": TOOLS, "stream": True, **body}).run()
    pieces = [chunk["choices"][0] for chunk in asked.chunks]
    texts = [p["delta"].get("content", "") for p in pieces]
    calls = [c for p in pieces for c in p["delta"].get("tool_calls", ())]
    assert [c["index"] for c in calls] == list(range(len(calls)))
    assert [p["finish_reason"] for p in pieces[:-1]] == [None] * (len(pieces) - 1)
    named = [(c["function"]["name"], c["function"]["arguments"]) for c in calls]
    return "".join(texts), named, pieces[-1]["finish_reason"], [t for t in texts if t]


@pytest.mark.parametrize(("text", "content", "calls"), SAID)
def test_a_call_in_a_models_text_is_a_call_whole_and_streamed(
    tiny: TinyEngine, monkeypatch: pytest.MonkeyPatch, text: str, content: str, calls: Any
) -> None:
    assert tools.find(text, ("weather", "now")) == (content, calls)
    says(monkeypatch, tiny, text)
    choice = whole()
    assert [(c["function"]["name"], c["function"]["arguments"]) for c in choice["message"]["tool_calls"]] == calls
    assert all(c["type"] == "function" and c["id"].startswith("call_") for c in choice["message"]["tool_calls"])
    assert (choice["message"]["content"], choice["finish_reason"]) == (content or None, "tool_calls")
    assert streamed()[:3] == (content, calls, "tool_calls")
    one = whole(parallel_tool_calls=False)["message"]["tool_calls"]
    assert len(one) == 1
    assert whole(tool_choice="none")["message"] == {"role": "assistant", "content": text, "refusal": None}


@pytest.mark.parametrize("text", NO_CALLS)
def test_a_text_without_a_call_stays_a_text(tiny: TinyEngine, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    says(monkeypatch, tiny, text)
    choice = whole()
    assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert streamed()[:3] == (text, [], "stop")


def test_a_text_is_streamed_as_it_comes_though_tools_are_there(
    tiny: TinyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, tiny, "It is warm < cold and that is all that I can say.")
    assert len(streamed()[3]) > 10


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_call_that_was_asked_for_and_did_not_come_is_an_error(
    tiny: TinyEngine, monkeypatch: pytest.MonkeyPatch, choice: Any
) -> None:
    says(monkeypatch, tiny, "It is warm.")
    error = refused("chat", status=500, tools=TOOLS, tool_choice=choice)
    assert error["code"] == "no_tool_call" and "It is warm." in error["message"] and "vLLM" in error["message"]
    called = "a tool" if choice == "required" else f"`{choice['function']['name']}`"
    assert error["message"].startswith(f"the model did not call {called}, which `tool_choice` asks for")
    asked = Asked("chat", {"messages": HI, "tools": TOOLS, "tool_choice": choice, "stream": True}).run()
    assert "did not call" in json.loads(asked.sent[-1][1])["error"]
    says(monkeypatch, tiny, '{"name": "weath', "length")
    assert refused("chat", tools=TOOLS, tool_choice=choice)["param"] == "max_tokens"
    says(monkeypatch, tiny, SAID[0][0])
    reply = whole(tool_choice=choice)
    assert reply["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": ROME[1]}


def test_a_function_by_its_name_is_the_only_one_told_of_and_may_be_answered_with_its_arguments(
    tiny: TinyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, tiny, '{"city": "Rome"}')
    assert streamed(tool_choice=NAMED)[1:3] == ([ROME], "stop")
    assert "tools: weather" in tiny.tokenizer().decode(tiny.asked[0][0])
    says(monkeypatch, tiny, '{"name": "now", "parameters": {}}')
    assert refused("chat", status=500, tools=TOOLS, tool_choice=NAMED)["code"] == "no_tool_call"
    says(monkeypatch, tiny, '{"town": "Rome"}')
    assert refused("chat", status=500, tools=TOOLS, tool_choice=NAMED)["code"] == "no_tool_call"


def test_an_engine_that_can_is_held_to_the_schema(tiny: TinyEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "extras", parameters.FORMS)
    says(monkeypatch, tiny, '{"city": "Oslo"}')
    assert streamed(tool_choice=NAMED)[1:3] == ([("weather", '{"city": "Oslo"}')], "stop")
    assert tiny.asked[-1][1]["constraint"] == {"json": WEATHER}
    says(monkeypatch, tiny, '[{"name": "weather", "parameters": {"city": "Rome"}}]')
    assert streamed(tool_choice="required", parallel_tool_calls=False)[1:3] == ([ROME], "tool_calls")
    held = tiny.asked[-1][1]["constraint"]["json"]
    assert (held["type"], held["minItems"], held["maxItems"]) == ("array", 1, 1)
    names = [one["properties"]["name"]["enum"] for one in held["items"]["anyOf"]]
    assert names == [["weather"], ["now"]] and held["items"]["anyOf"][0]["properties"]["parameters"] == WEATHER
    error = refused("chat", tools=TOOLS, tool_choice="required", response_format={"type": "json_object"})
    assert error["param"] == "tool_choice"
    whole(tool_choice="auto")
    assert "constraint" not in tiny.asked[-1][1]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": NAMED}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "always"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": 5}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "nope"}}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools"),
        ({"tools": TOOLS + TOOLS}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": 5}}]}, "tools"),
    ],
)
def test_tools_that_make_no_sense_are_refused(tiny: TinyEngine, body: Any, param: str) -> None:
    assert refused("chat", **body)["param"] == param
    assert not tiny.asked
