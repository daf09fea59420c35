"""OpenAI's sampling parameters: read from a request, checked, and named as engines take them."""

from __future__ import annotations

from typing import Any, Collection, Dict, List, Optional

from puna.worker.refusal import Refusal

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
# What changes the reply's meaning when it is dropped in silence: refused, unless the engine's `extras` has it.
_EXTRAS = ("logit_bias", "logprobs", "top_logprobs", "response_format")  # a Delta has no logprobs yet


def read(body: Dict[str, Any], extras: Collection[str]) -> Dict[str, Any]:
    """The parameters that the request sets, `max_tokens` aside.

    Raises:
        Refusal: a value makes no sense, or the engine cannot do what is asked.
    """
    params = {}  # type: Dict[str, Any]
    for name, (low, high, whole) in _NUMBERS.items():
        value = number(body, name, low, high, whole)
        if value is not None:
            if value == 0 and name in _ABOVE_ZERO:
                raise Refusal("`%s` must be over 0" % name, name)
            params[name] = value
    stop = _stop(body.get("stop"))
    if stop:
        params["stop"] = stop
    if body.get("ignore_eos") is not None:
        params["ignore_eos"] = flag(body, "ignore_eos")
    for name in _EXTRAS:
        if _asks(name, body.get(name)):
            if name not in extras:
                raise Refusal("`%s` is not supported by this endpoint's engine" % name, name, "unsupported_parameter")
            params[name] = _formed(name, body[name])
    _refuse_the_rest(body, params.get("n", 1))
    return params


def max_tokens(body: Dict[str, Any]) -> Optional[int]:
    """How long the reply may be, by either of its names; None when the request does not say."""
    found = [number(body, name, 1, 2**31 - 1, True) for name in ("max_completion_tokens", "max_tokens")]
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


def _stop(value: Any) -> List[str]:
    texts = [value] if isinstance(value, str) else value
    if texts is None:
        return []
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise Refusal("`stop` must be a text or a list of texts, none of them empty, not %s" % shown(value), "stop")
    if len(texts) > MAX_STOPS:
        raise Refusal("`stop` has %d texts; %d at most" % (len(texts), MAX_STOPS), "stop")
    return texts


def _asks(name: str, value: Any) -> bool:
    """Whether the value asks for anything: clients send neutral ones too."""
    if name == "response_format":
        return value is not None and value != {"type": "text"}
    return value is not None and value is not False and value != {} and not (name == "top_logprobs" and value == 0)


def _formed(name: str, value: Any) -> Dict[str, Any]:
    """The value, in a form that an engine need not check again."""
    if not isinstance(value, dict):
        raise Refusal("`%s` must be an object, not %s" % (name, shown(value)), name)
    if name == "response_format" and value.get("type") not in FORMATS:
        raise Refusal("`response_format.type` is %s; one of %s" % (shown(value.get("type")), ", ".join(FORMATS)), name)
    if name == "response_format" and value["type"] == "json_schema":
        held = value.get("json_schema")
        if not isinstance(held, dict) or not isinstance(held.get("schema"), dict):
            raise Refusal("`response_format.json_schema` must be an object with a `schema`", name)
    if name == "logit_bias" and not all(k.isdigit() and _is_bias(v) for k, v in value.items()):
        raise Refusal("`logit_bias` must hold token ids with numbers from -100 to 100", name)
    return value


def _is_bias(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -100 <= value <= 100


def _refuse_the_rest(body: Dict[str, Any], n: int) -> None:
    if body.get("echo"):
        raise Refusal("`echo` is not supported: put the prompt before the reply yourself", "echo")
    if body.get("suffix"):
        raise Refusal("`suffix` is not supported: these models do not fill in the middle", "suffix")
    best_of = number(body, "best_of", 1, MAX_CHOICES, True)
    if best_of is not None and best_of != n:
        raise Refusal("`best_of` is not supported: ask for `n` replies and choose", "best_of")
