"""Every parameter of OpenAI's two paths: who honours it, what is let through, what is refused; shown in the docs."""

from __future__ import annotations

import difflib
from typing import Any, Collection, Dict, List, NamedTuple, Tuple

from puna.worker.openai.refusal import Refusal

CHAT, TEXT = ("chat",), ("completion",)
BOTH = CHAT + TEXT
URLS = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}
EVERY, ENGINE, NOTHING, REFUSED = "every engine", "engines that can", "changes no answer", "refused"
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
        ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
        BOTH, ENGINE, "hold the reply to a form; one of them at a time (transformers: with xgrammar in the runtime)",
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
    """Whether the value asks for anything: clients send neutral ones too."""
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
                raise Refusal(
                    "`%s` is not supported by this endpoint's engine%s" % (name, _instead(name)), name,
                    "unsupported_parameter",
                )  # fmt: skip
            used.append(name)
    return used


def _instead(name: str) -> str:
    if name in FORMS:
        return ": to hold a reply to a form, add xgrammar to the runtime's packages, or load the model with vLLM"
    return "; vLLM has it"


FORMS = ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")


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
