"""The parameters of OpenAI's two paths: honoured, ignored or refused (docs/07 shows the table), and how it is read."""

from __future__ import annotations

import difflib
import json
from typing import Any, Collection, Dict, List, NamedTuple, Optional, Tuple


class Refusal(Exception):
    """The request cannot be answered; the text says why, `param` names what to change."""

    def __init__(
        self, message: str, param: Optional[str] = None, code: Optional[str] = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.code, self.status = message, param, code, status

    def as_json(self) -> bytes:
        """The body that OpenAI's clients read."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}, separators=(",", ":")).encode()


CHAT, TEXT = ("chat",), ("completion",)
BOTH = CHAT + TEXT
URLS = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}
EVERY, ENGINE, NOTHING, REFUSED = "every engine", "engines that can", "changes no answer", "refused"
FORMS = ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")
FORMS_HINT = ": to hold a reply to a form, add xgrammar to the runtime's packages, or load the model with vLLM"
NEUTRAL: Tuple[Any, ...] = (None, False, "", [], {})
"""Values by which clients say that they ask for nothing."""


class Parameter(NamedTuple):
    """One parameter, or several that are alike."""

    names: Tuple[str, ...]
    paths: Tuple[str, ...]
    who: str
    what: str
    neutral: Tuple[Any, ...] = ()
    """More values that ask for nothing."""


TABLE = (
    Parameter(("model",), BOTH, EVERY, "the endpoint, or an adapter that it serves"),
    Parameter(("messages",), CHAT, EVERY, "through the chat template of the model's tokenizer"),
    Parameter(("prompt",), TEXT, EVERY, "a text, token ids, or a list of either"),
    Parameter(("stream", "stream_options"), BOTH, EVERY, "`include_usage` asks for a last chunk with the tokens"),
    Parameter(
        ("max_tokens", "max_completion_tokens"), BOTH, EVERY,
        "16 in a completion and what is left of the context in a chat when left out",
    ),
    Parameter(("temperature", "top_p", "top_k", "min_p", "repetition_penalty"), BOTH, EVERY, "how a token is drawn"),
    Parameter(("seed",), BOTH, EVERY, "the same draw again, whoever else is served meanwhile"),
    Parameter(("n",), BOTH, EVERY, "so many replies; at temperature 0 they are equal"),
    Parameter(("best_of",), TEXT, EVERY, "taken when it is `n`, else refused"),
    Parameter(("stop",), BOTH, EVERY, "texts that end a reply and are not in it"),
    Parameter(("ignore_eos",), BOTH, EVERY, "go on to `max_tokens`"),
    Parameter(("add_special_tokens",), TEXT, EVERY, "whether the tokenizer puts its own before a text"),
    Parameter(("tools", "tool_choice", "parallel_tool_calls"), CHAT, EVERY, "see below"),
    Parameter(
        ("chat_template_kwargs", "add_generation_prompt", "continue_final_message", "documents", "reasoning_effort"),
        CHAT, EVERY, "given to the chat template",
    ),
    Parameter(("presence_penalty", "frequency_penalty", "logit_bias"), BOTH, ENGINE, "change the tokens' scores", (0,)),
    Parameter(
        ("stop_token_ids", "min_tokens", "allowed_token_ids", "bad_words", "skip_special_tokens",
         "spaces_between_special_tokens", "include_stop_str_in_output"),
        BOTH, ENGINE, "vLLM's own, as its server has them", (0,),
    ),
    Parameter(
        FORMS, BOTH, ENGINE,
        "hold the reply to a form; one of them at a time (transformers: with xgrammar in the runtime)",
    ),
    Parameter(("logprobs",), BOTH, ENGINE, "of each token of the reply"),
    Parameter(("top_logprobs",), CHAT, ENGINE, "of the likeliest tokens beside it, 20 at most", (0,)),
    Parameter(("echo",), TEXT, ENGINE, "the prompt before the reply, with its `logprobs`; then `max_tokens` may be 0"),
    Parameter(
        ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
         "prompt_cache_retention", "prediction", "request_id", "priority"),
        BOTH, NOTHING, "taken and not used: they are for OpenAI's accounts, caches and queues",
    ),
    Parameter(("suffix",), TEXT, REFUSED, "these models do not fill in the middle"),
    Parameter(("functions", "function_call"), CHAT, REFUSED, "the older form: send `tools` and `tool_choice`"),
    Parameter(("modalities",), CHAT, REFUSED, "the reply is text", (["text"],)),
    Parameter(("audio", "web_search_options", "verbosity"), CHAT, REFUSED, "OpenAI's own models have it"),
    Parameter(
        ("use_beam_search", "length_penalty", "prompt_logprobs", "truncate_prompt_tokens", "chat_template"),
        BOTH, REFUSED, "vLLM's server has it; here nothing answers to it", (1,),
    ),
)  # fmt: skip
ALL: Dict[str, Parameter] = {name: parameter for parameter in TABLE for name in parameter.names}


def asks(name: str, value: Any) -> bool:
    """True when the value asks for anything: clients send neutral ones too."""
    if name == "response_format" and value == {"type": "text"}:
        return False
    if name in ("skip_special_tokens", "spaces_between_special_tokens"):
        return value not in (None, True)
    if name in ("temperature", "logprobs", "max_tokens", "seed") and not isinstance(value, bool):
        return value is not None  # 0 is a number there
    more = ALL[name].neutral if name in ALL else ()
    return not any(value == n and isinstance(value, bool) == isinstance(n, bool) for n in NEUTRAL + more)


def check(body: Dict[str, Any], path: str, extras: Collection[str]) -> List[str]:
    """The engines' parameters that the request uses; `extras` are those that this engine has.

    What would change the answer and is known to nobody here must not be dropped in silence.

    Raises:
        Refusal: a parameter is unknown, of the other path, or beyond the engine.
    """
    used = []
    for name, value in body.items():
        if not asks(name, value):
            continue
        parameter = ALL.get(name)
        if parameter is None:
            raise Refusal("unknown parameter `%s`%s" % (name, _meant(name, path)), name, "unknown_parameter")
        if path not in parameter.paths and parameter.who != NOTHING:
            raise Refusal(
                "`%s` is a parameter of %s, not of %s" % (name, URLS[parameter.paths[0]], URLS[path]), name,
                "unknown_parameter",
            )  # fmt: skip
        if parameter.who == REFUSED:
            raise Refusal("`%s` is not supported: %s" % (name, parameter.what), name, "unsupported_parameter")
        if parameter.who == ENGINE:
            if name not in extras:
                hint = FORMS_HINT if name in FORMS else "; vLLM has it"
                message = "`%s` is not supported by this endpoint's engine%s" % (name, hint)
                raise Refusal(message, name, "unsupported_parameter")
            used.append(name)
    return used


def _meant(name: str, path: str) -> str:
    known = [n for n, p in ALL.items() if path in p.paths and p.who not in (NOTHING, REFUSED)]
    close = difflib.get_close_matches(name, known, 1)
    return "; is `%s` meant?" % close[0] if close else ""


def as_markdown() -> str:
    """The table, for the docs."""
    rows = ["| parameter | path | honoured by | |", "|---|---|---|---|"]
    where = {BOTH: "both", CHAT: "chat", TEXT: "completions"}
    for names, paths, who, what, _ in TABLE:
        rows.append("| %s | %s | %s | %s |" % (", ".join("`%s`" % n for n in names), where[paths], who, what))
    return "\n".join(rows)


MAX_CHOICES = 128
MAX_STOPS = 64
MAX_SEED = 2**63 - 1
FORMATS = ("text", "json_object", "json_schema")
# name -> (lowest, highest, whole numbers only); OpenAI's bounds, and vLLM's for what OpenAI does not have
_NUMBERS = {
    "temperature": (0, 2, False), "top_p": (0, 1, False), "top_k": (-1, 2**31 - 1, True), "min_p": (0, 1, False),
    "presence_penalty": (-2, 2, False), "frequency_penalty": (-2, 2, False), "repetition_penalty": (0, 10, False),
    "n": (1, MAX_CHOICES, True), "seed": (-MAX_SEED - 1, MAX_SEED, True),
}  # fmt: skip
_ABOVE_ZERO = ("top_p", "repetition_penalty")
_FORM_KEYS = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")
_FORM_OPTIONS = ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern")
MAX_TOP_LOGPROBS = 20  # OpenAI's bound for chats, and vLLM's own default for both


def read(body: Dict[str, Any], path: str, extras: Collection[str]) -> Dict[str, Any]:
    """The parameters that the request sets, `max_tokens` aside.

    `constraint` holds what the reply is held to, by one of vLLM's keys: `json`, `json_object`, `regex`, `choice`,
    `grammar`, `structural_tag`.

    Raises:
        Refusal: a parameter is unknown, its value makes no sense, or the engine cannot do what is asked.
    """
    used = check(body, path, extras)
    params = {}  # type: Dict[str, Any]
    for name, (low, high, whole) in _NUMBERS.items():
        value = number(body, name, low, high, whole)
        if value is not None:
            if value == 0 and name in _ABOVE_ZERO:
                raise Refusal("`%s` must be over 0" % name, name)
            if ALL[name].who != ENGINE or name in used:
                params[name] = value
    stop = _texts(body, "stop", MAX_STOPS)
    if stop:
        params["stop"] = stop
    if body.get("ignore_eos") is not None:
        params["ignore_eos"] = flag(body, "ignore_eos")
    forms = [name for name in used if name in FORMS]
    if len(forms) > 1:
        raise Refusal("`%s` and `%s` both hold the reply to a form: send one of them" % (forms[0], forms[1]), forms[1])
    for name in used:
        if name in forms:
            params["constraint"] = _constraint(name, body[name])
        elif name not in params:
            params[name] = _formed(name, body, path)
    top, beside = params.pop("logprobs", None), params.pop("top_logprobs", None)
    if beside is not None and top is not True:
        raise Refusal("`top_logprobs` needs `logprobs`: true", "top_logprobs")
    if top is not None:
        params["top"] = (beside or 0) if path == "chat" else top
    if params.get("min_tokens"):
        most = max_tokens(body)
        if most is not None and params["min_tokens"] > most:
            raise Refusal("`min_tokens` is %d, over `max_tokens` %d" % (params["min_tokens"], most), "min_tokens")
    best_of = number(body, "best_of", 1, MAX_CHOICES, True)
    if best_of is not None and best_of != params.get("n", 1):
        raise Refusal("`best_of` is not supported: ask for `n` replies and choose", "best_of")
    return params


def max_tokens(body: Dict[str, Any]) -> Optional[int]:
    """The most tokens of the reply, by either name; None when the request does not say; 0 only with `echo`."""
    least = 0 if body.get("echo") is True else 1
    found = [number(body, name, least, 2**31 - 1, True) for name in ("max_completion_tokens", "max_tokens")]
    return next((int(value) for value in found if value is not None), None)


def number(body: Dict[str, Any], name: str, low: float, high: float, whole: bool = False) -> Any:
    """A number within its bounds; None when the request leaves it out.

    Raises:
        Refusal: it is something else.
    """
    value = body.get(name)
    if value is None:
        return None
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise Refusal("`%s` must be a %snumber, not %s" % (name, "whole " if whole else "", shown(value)), name)
    if not low <= value <= high:
        raise Refusal("`%s` is %s; it must be between %s and %s" % (name, shown(value), low, high), name)
    return value


def flag(body: Dict[str, Any], name: str, default: bool = False) -> bool:
    """A truth value.

    Raises:
        Refusal: it is something else.
    """
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise Refusal("`%s` must be true or false, not %s" % (name, shown(value)), name)
    return value


def shown(value: Any) -> str:
    """A value as an error names it: short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _texts(body: Dict[str, Any], name: str, most: int) -> List[str]:
    value = body.get(name)
    texts = [value] if isinstance(value, str) else value
    if texts is None:
        return []
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise Refusal("`%s` must be a text or a list of texts, none of them empty, not %s" % (name, shown(value)), name)
    if len(texts) > most:
        raise Refusal("`%s` has %d texts; %d at most" % (name, len(texts), most), name)
    return texts


def _formed(name: str, body: Dict[str, Any], path: str) -> Any:
    """The value of an engine's parameter, in a form that the engine need not check again."""
    value = body[name]
    if name in ("stop_token_ids", "allowed_token_ids"):
        if not isinstance(value, list) or not all(type(v) is int and v >= 0 for v in value):
            raise Refusal("`%s` must be a list of token ids, not %s" % (name, shown(value)), name)
        return value
    if name == "bad_words":
        return _texts(body, name, MAX_STOPS)
    if name == "logit_bias":
        if not isinstance(value, dict):
            raise Refusal("`%s` must be an object, not %s" % (name, shown(value)), name)
        if not all(k.isdigit() and _is_bias(v) for k, v in value.items()):
            raise Refusal("`logit_bias` must hold token ids with numbers from -100 to 100", name)
        return value
    if name == "min_tokens":
        return number(body, name, 0, 2**31 - 1, True)
    if name in ("top_logprobs", "logprobs") and not (name == "logprobs" and path == "chat"):
        return number(body, name, 0, MAX_TOP_LOGPROBS, True)
    return flag(body, name)


def _constraint(name: str, value: Any) -> Dict[str, Any]:
    """The form that the reply is held to, by vLLM's keys."""
    if name == "response_format":
        return _response_format(value)
    if name == "structured_outputs":
        known = isinstance(value, dict) and set(value) <= set(_FORM_KEYS + _FORM_OPTIONS)
        if not known or sum(value.get(key) is not None for key in _FORM_KEYS) != 1:
            raise Refusal("`%s` must be an object with one of %s" % (name, ", ".join(_FORM_KEYS)), name)
        return {key: item for key, item in value.items() if item is not None}
    key = name[len("guided_") :]
    kinds = {"json": (dict, str), "choice": (list,)}.get(key, (str,))
    if not isinstance(value, kinds) or (key == "choice" and not all(isinstance(v, str) for v in value)):
        wanted = {"json": "a JSON schema", "choice": "a list of texts"}.get(key, "a text")
        raise Refusal("`%s` must be %s, not %s" % (name, wanted, shown(value)), name)
    return {key: value}


def _response_format(value: Any) -> Dict[str, Any]:
    name = "response_format"
    if not isinstance(value, dict):
        raise Refusal("`%s` must be an object, not %s" % (name, shown(value)), name)
    if value.get("type") not in FORMATS:
        raise Refusal("`response_format.type` is %s; one of %s" % (shown(value.get("type")), ", ".join(FORMATS)), name)
    if value["type"] == "json_object":
        return {"json_object": True}
    held = value.get("json_schema")
    if not isinstance(held, dict) or not isinstance(held.get("schema"), dict):
        raise Refusal("`response_format.json_schema` must be an object with a `schema`", name)
    return {"json": held["schema"]}


def _is_bias(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -100 <= value <= 100
