"""From a chat's messages to the prompt's token ids, through the chat template of the model's own tokenizer."""

from __future__ import annotations

import json
import threading
from typing import Any, Dict, List

from puna.worker.openai.parameters import Refusal, flag, shown

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_OURS = ("tokenize", "return_dict", "return_tensors", "chat_template", "conversation", "messages")
_lock = threading.Lock()  # fast tokenizers say "Already borrowed" when two threads set them up at once


def prompt_of(tokenizer: Any, body: Dict[str, Any], named: str = "") -> List[int]:
    """The prompt of a chat completion; `named`: the only tool that the template gets.

    Raises:
        Refusal: the messages make no sense, or the template refuses them.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise Refusal("this model has no chat template: POST /v1/completions with a `prompt`", "messages")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refusal("`messages` must be a list of at least one message", "messages")
    messages = [_message(number, message) for number, message in enumerate(messages)]
    options = _template_options(body, named)
    try:
        with _lock:
            text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
            # The template has written the special tokens already.
            return list(tokenizer.encode(text, add_special_tokens=False))
    except Exception as error:  # the caller sees it: a template speaks through what it raises
        raise Refusal("the model's chat template refuses this: %s" % error, "messages") from error


def encode(tokenizer: Any, text: str, special: bool) -> List[int]:
    """The token ids of a plain prompt; `special`: with what the tokenizer puts before one."""
    with _lock:
        return list(tokenizer.encode(text, add_special_tokens=special))


def _template_options(body: Dict[str, Any], named: str) -> Dict[str, Any]:
    extra = body.get("chat_template_kwargs") or {}
    if not isinstance(extra, dict):
        raise Refusal("`chat_template_kwargs` must be an object, not %s" % shown(extra), "chat_template_kwargs")
    for name in _OURS:
        if name in extra:
            raise Refusal("`chat_template_kwargs` cannot set `%s`" % name, "chat_template_kwargs")
    goes_on = flag(body, "continue_final_message")
    options = dict(extra, add_generation_prompt=flag(body, "add_generation_prompt", not goes_on))
    if goes_on:
        options["continue_final_message"] = True
    choice = body.get("tool_choice")
    tools = [tool for tool in body.get("tools") or () if not named or tool["function"]["name"] == named]
    if tools and choice != "none":
        options["tools"] = tools
    if choice is not None:
        options["tool_choice"] = choice
    if body.get("reasoning_effort") is not None:
        options.setdefault("reasoning_effort", body["reasoning_effort"])
    if isinstance(body.get("documents"), list):
        options["documents"] = body["documents"]
    return options


def _message(number: int, message: Any) -> Dict[str, Any]:
    where = "messages[%d]" % number
    if not isinstance(message, dict):
        raise Refusal("`%s` must be an object with `role` and `content`, not %s" % (where, shown(message)), where)
    role = message.get("role")
    if role not in ROLES:
        raise Refusal("`%s.role` is %s; it must be one of %s" % (where, shown(role), ", ".join(ROLES)), where + ".role")
    found = dict(message, content=_content(where + ".content", message))
    if role == "developer":
        found["role"] = "system"  # OpenAI's newer name; templates know the older one
    calls, where = message.get("tool_calls"), where + ".tool_calls"
    if calls:
        if not isinstance(calls, list):
            raise Refusal("`%s` must be a list, not %s" % (where, shown(calls)), where)
        found["tool_calls"] = [_call(where, call) for call in calls]
    return found


def _content(where: str, message: Dict[str, Any]) -> str:
    content = message.get("content")
    if content is None and message.get("role") == "assistant":
        return ""  # a message that only calls tools; templates add contents up as text
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Refusal("`%s` must be text or a list of parts, not %s" % (where, shown(content)), where)
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind != "text" or not isinstance(text, str):
            raise Refusal("`%s` has a part of type %s: this model reads text only" % (where, shown(kind)), where)
        texts.append(text)
    return "\n".join(texts)


def _call(where: str, call: Any) -> Dict[str, Any]:
    """Templates write the arguments as JSON themselves, so they get the object that the text stands for."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise Refusal("`%s` has a call without a `function`" % where, where)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            raise Refusal("`%s` has arguments that are not JSON: %s" % (where, shown(arguments)), where) from None
    return dict(call, function=dict(function, arguments=arguments))
