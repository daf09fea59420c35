"""Log-probabilities in OpenAI's two shapes: a chat's list of tokens, and a completion's four lists."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional, Sequence

from puna.worker.engines.engine import Score

LEAST = -9999.0  # in place of minus infinity, which JSON has no word for; vLLM's server says so too


def of_chat(tokenizer: Any, token_ids: Sequence[int], scores: List[Score], top: int) -> Dict[str, Any]:
    """The `logprobs` of a chat's choice."""
    content = []
    for place, token in enumerate(token_ids):
        own, best = scores[place]
        around = [_entry(tokenizer, other, value) for other, value in best[:top]]
        content.append(dict(_entry(tokenizer, token, own), top_logprobs=around))
    return {"content": content, "refusal": None}


def of_text(tokenizer: Any, token_ids: Sequence[int], scores: Sequence[Optional[Score]], offset: int) -> Dict[str, Any]:
    """The `logprobs` of a completion's choice; a prompt's first token has no score. `offset`: characters before it."""
    told: Dict[str, List[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for place, token in enumerate(token_ids):
        text, score = tokenizer.decode([token]), scores[place]
        told["tokens"].append(text)
        told["text_offset"].append(offset)
        offset += len(text)
        if score is None:
            told["token_logprobs"].append(None)
            told["top_logprobs"].append(None)
            continue
        own, best = score
        around: Dict[str, float] = {}
        for other, value in best:  # two tokens may read alike: the likelier one counts
            around.setdefault(tokenizer.decode([other]), _finite(value))
        around.setdefault(text, _finite(own))
        told["token_logprobs"].append(_finite(own))
        told["top_logprobs"].append(around if best else None)
    return told


def _entry(tokenizer: Any, token: int, value: float) -> Dict[str, Any]:
    text = tokenizer.decode([token])
    whole = "\ufffd" not in text  # part of a character has no text, and its bytes are not this one's
    return {"token": text, "logprob": _finite(value), "bytes": list(text.encode()) if whole else None}


def _finite(value: float) -> float:
    return value if math.isfinite(value) else LEAST
