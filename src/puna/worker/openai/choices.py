"""The choices of a reply as they grow: text, log-probabilities, calls of tools; whole at the end, or piece by piece."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional, Sequence

from puna.worker.engines.engine import Delta, Score
from puna.worker.openai import tools

LEAST = -9999.0  # in place of minus infinity, which JSON has no word for; vLLM's server says so too


class Form:
    """The form of a request's choices."""

    def __init__(self, is_chat: bool, tokenizer: Any, top: Optional[int], asked: tools.Tools) -> None:
        self.is_chat, self.tokenizer, self.top, self.tools = is_chat, tokenizer, top, asked


class Choice:
    """One choice. `gain` says what a stream sends; `whole` is the choice of a reply."""

    def __init__(self, form: Form, index: int) -> None:
        self.form, self.index = form, index
        self.reason = ""
        self._text, self._sent = "", 0
        self._ids: List[int] = []
        self._scores: List[Optional[Score]] = []
        self._scored = self._offset = 0
        """Of the tokens, those whose log-probabilities a stream has sent; and the characters of those."""

    def echo(self, text: str, ids: Sequence[int], scores: Optional[List[Score]]) -> None:
        """The prompt stands before the reply; `scores` are those of its second token and later ones."""
        self._text = text + self._text
        if self.form.top is not None:
            none: List[Optional[Score]] = [None]
            self._ids, self._scores = list(ids) + self._ids, none + list(scores or none * (len(ids) - 1)) + self._scores

    def add(self, delta: Delta) -> None:
        """Add a step of the engine."""
        self._text += delta.text
        self.reason = delta.finish_reason or self.reason
        if self.form.top is not None:
            self._ids += delta.token_ids
            self._scores += delta.scores

    def whole(self) -> Dict[str, Any]:
        """The choice of a reply that is not streamed.

        Raises:
            Refusal: a call of a tool was asked for, and the model made none.
        """
        logprobs = self._logprobs()
        if not self.form.is_chat:
            return {"text": self._text, "index": self.index, "logprobs": logprobs, "finish_reason": self.reason}
        content, calls, reason = self._read()
        message: Dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if calls:
            message["tool_calls"] = tools.as_json(calls)
        return {"index": self.index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def pieces(self) -> List[Dict[str, Any]]:
        """The choices of the chunks that a stream sends now.

        Raises:
            Refusal: a call of a tool was asked for, and the model made none.
        """
        if not self.form.is_chat:
            text, self._sent = self._text[self._sent :], len(self._text)
            if not text and not self.reason and self._scored == len(self._ids):
                return []
            return [self._piece("text", text, self.reason or None)]
        if not self.reason:
            text, self._sent = self._text[self._sent : self._certain()], max(self._sent, self._certain())
            if not text and (self.form.tools.is_read or self._scored == len(self._ids)):
                return []
            return [self._piece("delta", {"content": text}, None)]
        content, calls, reason = self._read()
        rest = (content or "")[self._sent :]
        found = [self._piece("delta", {"content": rest}, None)] if rest or self._scored < len(self._ids) else []
        if calls:
            found.append(self._piece("delta", {"tool_calls": tools.as_json(calls, streams=True)}, None))
        return [*found, self._piece("delta", {}, reason)]

    def _read(self) -> Any:
        if not self.form.tools.is_read:
            return self._text, [], self.reason
        return self.form.tools.read(self._text, self.reason)

    def _certain(self) -> int:
        """Characters that are no part of a call, whatever comes."""
        if not self.form.tools.is_read:
            return len(self._text)
        if self.form.tools.must or (not self._sent and tools.may_begin(self._text)):
            return 0
        place = self._text.find(tools.OPEN)
        if place < 0:
            sizes = range(min(len(tools.OPEN) - 1, len(self._text)), 0, -1)
            place = len(self._text) - next((n for n in sizes if self._text.endswith(tools.OPEN[:n])), 0)
        return len(self._text[:place].rstrip())

    def _logprobs(self) -> Optional[Dict[str, Any]]:
        """Of the tokens that no chunk has sent."""
        top = self.form.top
        if top is None:
            return None
        ids, scores = self._ids[self._scored :], self._scores[self._scored :]
        self._scored = len(self._ids)
        if self.form.is_chat:
            return _in_chat(self.form.tokenizer, ids, [score for score in scores if score is not None], top)
        found = _in_text(self.form.tokenizer, ids, scores, self._offset)
        self._offset += sum(map(len, found["tokens"]))
        return found

    def _piece(self, key: str, what: Any, reason: Optional[str]) -> Dict[str, Any]:
        logprobs = self._logprobs() if self._scored < len(self._ids) else None
        return {"index": self.index, key: what, "logprobs": logprobs, "finish_reason": reason}


def _in_chat(tokenizer: Any, ids: Sequence[int], scores: List[Score], top: int) -> Dict[str, Any]:
    """The `logprobs` of a chat's choice."""
    content = []
    for place, token in enumerate(ids):
        own, best = scores[place]
        around = [_entry(tokenizer, other, value) for other, value in best[:top]]
        content.append(dict(_entry(tokenizer, token, own), top_logprobs=around))
    return {"content": content, "refusal": None}


def _in_text(tokenizer: Any, ids: Sequence[int], scores: Sequence[Optional[Score]], offset: int) -> Dict[str, Any]:
    """The `logprobs` of a completion's choice; a prompt's first token has no score. `offset`: characters before it."""
    found: Dict[str, List[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for place, token in enumerate(ids):
        text, score = tokenizer.decode([token]), scores[place]
        found["tokens"].append(text)
        found["text_offset"].append(offset)
        offset += len(text)
        if score is None:
            found["token_logprobs"].append(None)
            found["top_logprobs"].append(None)
            continue
        own, best = score
        around: Dict[str, float] = {}
        for other, value in best:  # two tokens may read alike: the likelier one counts
            around.setdefault(tokenizer.decode([other]), _finite(value))
        around.setdefault(text, _finite(own))
        found["token_logprobs"].append(_finite(own))
        found["top_logprobs"].append(around if best else None)
    return found


def _entry(tokenizer: Any, token: int, value: float) -> Dict[str, Any]:
    text = tokenizer.decode([token])
    whole = "\ufffd" not in text  # part of a character has no text, and its bytes are not this one's
    return {"token": text, "logprob": _finite(value), "bytes": list(text.encode()) if whole else None}


def _finite(value: float) -> float:
    return value if math.isfinite(value) else LEAST
