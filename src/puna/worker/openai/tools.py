"""Tools of a chat: what `tool_choice` asks for, what holds a reply to it, and the calls that a model's text holds.

An engine that can hold a reply to a JSON schema is held to the tools'. Of others the text is read: the forms of Llama
(an object with `name` and `parameters`), of Hermes and Qwen (`<tool_call>`), and of Mistral (a list).
"""

from __future__ import annotations

import json
import os
from typing import Any, Collection, Dict, List, Optional, Tuple

from puna.worker.openai import parameters
from puna.worker.openai.parameters import Refusal, flag, shown

OPEN, CLOSE = "<tool_call>", "</tool_call>"
BEGINNINGS = ("{", "[", "```", "<|python_tag|>", "[TOOL_CALLS]", OPEN)
Call = Tuple[str, str]
"""A function's name, and its arguments as JSON text."""


class Tools:
    """The tools of one request, and what is asked of them."""

    def __init__(self, body: Dict[str, Any], extras: Collection[str]) -> None:
        """`extras`: the parameters that the engine has.

        Raises:
            Refusal: tools or choice make no sense.
        """
        self.schemas = _schemas(body.get("tools"))
        self.choice, self.named = _choice(body.get("tool_choice"), self.schemas)
        self.one_only = not flag(body, "parallel_tool_calls", True)
        self.is_held = self.must and set(parameters.FORMS) <= set(extras)
        """The engine holds the reply to the schema."""

    @property
    def must(self) -> bool:
        """A reply without a call is wrong."""
        return self.choice == "required" or bool(self.named)

    @property
    def is_read(self) -> bool:
        """Replies are looked through for calls."""
        return bool(self.schemas) and self.choice != "none"

    def constraint(self) -> Optional[Dict[str, Any]]:
        """The form that holds a reply to the choice, for engines that can."""
        if not self.is_held:
            return None
        if self.named:
            return {"json": self.schemas[self.named]}
        definitions: Dict[str, Any] = {}
        one_of = []
        for name, schema in self.schemas.items():
            own = dict(schema)
            for key, value in (own.pop("$defs", None) or {}).items():
                if definitions.setdefault(key, value) != value:
                    raise Refusal("two tools define `$defs.%s` differently: rename one of them" % key, "tools")
            call = {"name": {"type": "string", "enum": [name]}, "parameters": own}
            one_of.append({"type": "object", "properties": call, "required": ["name", "parameters"]})
        held: Dict[str, Any] = {"type": "array", "minItems": 1, "items": {"type": "object", "anyOf": one_of}}
        if self.one_only:
            held["maxItems"] = 1
        if definitions:
            held["$defs"] = definitions
        return {"json": held}

    def read(self, text: str, reason: str) -> Tuple[Optional[str], List[Call], str]:
        """Read a whole reply: `(content, calls, finish reason)`.

        Raises:
            Refusal: a call was asked for, and this is none.
        """
        if self.named and self.is_held:
            return None, [(self.named, text)], reason
        content, calls = find(text, self.schemas)
        if self.named:
            calls = [call for call in calls if call[0] == self.named] or _bare(text, self.named, self.schemas)
        if self.one_only:
            calls = calls[:1]
        if calls:
            return content or None, calls, "tool_calls" if reason == "stop" and not self.named else reason
        if not self.must:
            return text, [], reason
        if reason == "length":
            raise Refusal("the reply reached `max_tokens` before its call was whole: ask for more", "max_tokens")
        wanted = "`%s`" % self.named if self.named else "a tool"
        raise Refusal(
            "the model did not call %s, which `tool_choice` asks for, and this endpoint's engine cannot hold it to "
            "that: load the model with vLLM, or send `tool_choice` auto. It wrote: %s" % (wanted, shown(text)),
            "tool_choice", "no_tool_call", 500,
        )  # fmt: skip


def as_json(calls: List[Call], streams: bool = False) -> List[Dict[str, Any]]:
    """The calls in OpenAI's form; in a stream each says which it is."""
    found = []
    for index, (name, arguments) in enumerate(calls):
        number = "call_" + os.urandom(12).hex()
        call = {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}
        found.append(dict(call, index=index) if streams else call)
    return found


def find(text: str, known: Collection[str]) -> Tuple[str, List[Call]]:
    """The text before the calls, and the calls, when all that is called is known; else all the text and none."""
    before, marker, rest = text.partition(OPEN)
    if marker:
        documents = [_parsed(part.partition(CLOSE)[0]) for part in rest.split(OPEN)]
        calls = [_call(document, known) for many in documents for document in many or [None]]
        return (before.strip(), [c for c in calls if c]) if all(calls) else (text, [])
    bare = text.strip()
    for mark in ("<|python_tag|>", "[TOOL_CALLS]"):
        bare = bare[len(mark) :].strip() if bare.startswith(mark) else bare
    if bare.startswith("```") and bare.endswith("```"):
        bare = bare[3:-3].partition("\n")[2].strip()
    calls = [_call(document, known) for document in _parsed(bare)]
    return ("", [c for c in calls if c]) if calls and all(calls) else (text, [])


def may_begin(text: str) -> bool:
    """True when a reply that begins so may be a call: until that is known, a stream holds it back."""
    bare = text.lstrip()
    return any(bare.startswith(b) or b.startswith(bare) for b in BEGINNINGS)


def _parsed(text: str) -> List[Any]:
    """The JSON documents of a text: one, a list of several, or several with `;` between them; none when broken."""
    decoder, found, at = json.JSONDecoder(), [], 0
    text = text.strip()
    try:
        while at < len(text):
            document, at = decoder.raw_decode(text, at)
            found += document if isinstance(document, list) else [document]
            while at < len(text) and text[at] in "; \n\t,":
                at += 1
    except (ValueError, RecursionError):
        return []
    return found


def _call(document: Any, known: Collection[str]) -> Optional[Call]:
    if not isinstance(document, dict):
        return None
    inner = document.get("function")
    said = inner if isinstance(inner, dict) else document
    name, arguments = said.get("name"), said.get("parameters", said.get("arguments"))
    if isinstance(arguments, str):
        arguments = (_parsed(arguments) or [None])[0]
    if name not in known or not isinstance(arguments, dict):
        return None
    return str(name), json.dumps(arguments, ensure_ascii=False)


def _bare(text: str, name: str, schemas: Dict[str, Any]) -> List[Call]:
    """A reply that is nothing but the arguments of the function that was asked for."""
    documents = _parsed(text)
    required, properties = (set(schemas[name].get(key) or ()) for key in ("required", "properties"))
    if len(documents) != 1 or not isinstance(documents[0], dict) or not required <= set(documents[0]) <= properties:
        return []
    return [(name, json.dumps(documents[0], ensure_ascii=False))]


def _schemas(tools: Any) -> Dict[str, Dict[str, Any]]:
    """Name -> JSON schema of the arguments."""
    found: Dict[str, Dict[str, Any]] = {}
    if tools is None:
        return found
    if not isinstance(tools, list):
        raise Refusal("`tools` must be a list of objects with a `type`, not %s" % shown(tools), "tools")
    for number, tool in enumerate(tools):
        where = "tools[%d]" % number
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or tool.get("type") != "function":
            raise Refusal("`%s` must be an object of type `function` with a `function`" % where, "tools")
        name, schema = function.get("name"), function.get("parameters")
        if not isinstance(name, str) or not name or name in found:
            raise Refusal("`%s.function.name` must be a name of its own, not %s" % (where, shown(name)), "tools")
        if schema is not None and not isinstance(schema, dict):
            raise Refusal("`%s.function.parameters` must be a JSON schema, not %s" % (where, shown(schema)), "tools")
        found[name] = schema or {"type": "object", "properties": {}}
    return found


def _choice(value: Any, schemas: Dict[str, Any]) -> Tuple[str, str]:
    """`(none, auto or required, name of the one function or empty)`."""
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if value is None:
        return ("auto" if schemas else "none"), ""
    if name is None and value not in ("none", "auto", "required"):
        raise Refusal(
            "`tool_choice` must be none, auto, required or a function by its name, not %s" % shown(value), "tool_choice"
        )
    if not schemas and value not in ("none", "auto"):
        raise Refusal("`tool_choice` asks for a call, and there are no `tools`", "tool_choice")
    if name is not None and name not in schemas:
        raise Refusal("`tool_choice` names %s, which is none of the `tools`" % shown(name), "tool_choice")
    return ("auto" if name is not None else str(value)), name or ""
