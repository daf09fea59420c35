"""One row of a dataset, read: a conversation or a plain text, or what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

ROLES = ("system", "user", "assistant")
# ShareGPT's names for them; its other names (function_call, observation...) have no place in these templates.
SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

Column = Literal["messages", "conversations", "prompt", "text"]
"""Columns that may hold a row's content; `prompt` goes with `completion`."""


class Message(TypedDict):
    """One turn, as chat templates take it."""

    role: str
    content: str


class BadRowError(Exception):
    """One row is malformed; the caller, who knows the file and the row's number, makes a DataError of it."""


@dataclass(frozen=True)
class Row:
    """A readable row; exactly one of `messages` and `text` holds something."""

    where: str
    """For errors: `chats.jsonl line 17`."""
    messages: tuple[Message, ...] = ()
    text: str = ""


def read_row(value: object, column: Column, where: str, *, need_assistant: bool) -> Row:
    """The row in `value`, an object with at least the named column.

    Raises:
        BadRowError: a turn lacks its role or content, a role is unknown, there is nothing to learn...
    """
    if not isinstance(value, Mapping):
        raise BadRowError(f"must be an object with `{column}`, not {_kind(value)}")
    if column == "text":
        return Row(where, text=_text(value, "text"))
    if column == "prompt":
        messages = _turns(value, "prompt", "user") + _turns(value, "completion", "assistant")
    else:
        messages = _messages(value, column)
    if need_assistant and not any(m["role"] == "assistant" for m in messages):
        raise BadRowError("has no assistant turn, so there is nothing to learn from it")
    return Row(where, messages=tuple(messages))


def column_of(keys: Mapping[str, Any]) -> Column | None:
    """Which column a row with these keys is read from, the richest first."""
    if "messages" in keys:
        return "messages"
    if "conversations" in keys:
        return "conversations"
    if "prompt" in keys and "completion" in keys:
        return "prompt"
    return "text" if "text" in keys else None


def _text(value: Mapping[str, Any], key: str) -> str:
    if key not in value:
        raise BadRowError(f"has no `{key}`")
    text = value[key]
    if not isinstance(text, str):
        raise BadRowError(f"`{key}` is {_kind(text)}, not text")
    if not text.strip():
        raise BadRowError(f"`{key}` is empty")
    return text


def _turns(value: Mapping[str, Any], key: str, role: str) -> list[Message]:
    # A prompt or a completion may be one text (one turn) or, as TRL also writes it, a list of turns.
    if isinstance(value.get(key), list):
        return _messages(value, key)
    return [Message(role=role, content=_text(value, key))]


def _messages(value: Mapping[str, Any], key: str) -> list[Message]:
    if key not in value:
        raise BadRowError(f"has no `{key}`")
    turns = value[key]
    if isinstance(turns, str):  # a CSV cell holds the list as JSON
        try:
            turns = json.loads(turns)
        except ValueError:
            raise BadRowError(f"`{key}` is text, not a list of turns") from None
    if not isinstance(turns, list):
        raise BadRowError(f"`{key}` is {_kind(turns)}, not a list of turns")
    if not turns:
        raise BadRowError(f"`{key}` is empty")
    return [_message(turn, f"`{key}[{i}]`", key == "conversations") for i, turn in enumerate(turns)]


def _message(turn: object, where: str, sharegpt: bool) -> Message:
    if not isinstance(turn, Mapping):
        raise BadRowError(f"{where} is {_kind(turn)}, not an object with a role and content")
    # Some files keep ShareGPT's column name but write role and content in it.
    if sharegpt and "role" not in turn:
        role_key, content_key, roles = "from", "value", SHAREGPT_ROLES
    else:
        role_key, content_key, roles = "role", "content", {name: name for name in ROLES}
    for key in (role_key, content_key):
        if turn.get(key) is None:
            raise BadRowError(f"{where} has no `{key}`")
        if not isinstance(turn[key], str):
            raise BadRowError(f"{where} has a `{key}` that is {_kind(turn[key])}, not text")
    role, content = turn[role_key], turn[content_key]
    if role not in roles:
        raise BadRowError(f"{where} has the unknown {role_key} {role!r}; known: {', '.join(roles)}")
    if not content.strip() and roles[role] == "assistant":
        raise BadRowError(f"{where} is an assistant turn with empty `{content_key}`")
    return Message(role=roles[role], content=content)


def _kind(value: object) -> str:
    names = {type(None): "null", list: "a list", dict: "an object", str: "text", bool: "true or false"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")
