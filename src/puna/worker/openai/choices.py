"""The choices of a reply as they grow: text, log-probabilities, calls of tools; whole at the end, or piece by piece."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence

from puna.worker.engines.engine import Delta, Score
from puna.worker.openai import logprobs, tools


class Form:
    """What a request's choices look like."""

    def __init__(self, is_chat: bool, tokenizer: Any, top: Optional[int], asked: tools.Tools) -> None:
        self.is_chat, self.tokenizer, self.top, self.tools = is_chat, tokenizer, top, asked


class Choice:
    """One choice. `gain` says what a stream sends; `whole` is the choice of a reply."""

    def __init__(self, form: Form, index: int) -> None:
        self.form, self.index = form, index
        self.reason = ""
        self._text, self._told = "", 0
        self._ids: List[int] = []
        self._scores: List[Optional[Score]] = []
        self._scored = self._offset = 0
        """Of the tokens, those whose log-probabilities a stream has told; and the characters of those."""

    def echo(self, text: str, ids: Sequence[int], scores: Optional[List[Score]]) -> None:
        """The prompt stands before the reply; `scores` are those of its second token and later ones."""
        self._text = text + self._text
        if self.form.top is not None:
            none: List[Optional[Score]] = [None]
            self._ids, self._scores = list(ids) + self._ids, none + list(scores or none * (len(ids) - 1)) + self._scores

    def add(self, delta: Delta) -> None:
        """What the engine's step added."""
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
        told = self._logprobs()
        if not self.form.is_chat:
            return {"text": self._text, "index": self.index, "logprobs": told, "finish_reason": self.reason}
        content, calls, reason = self._read()
        message: Dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if calls:
            message["tool_calls"] = tools.as_json(calls)
        return {"index": self.index, "message": message, "logprobs": told, "finish_reason": reason}

    def pieces(self) -> List[Dict[str, Any]]:
        """The choices of the chunks that a stream sends now.

        Raises:
            Refusal: a call of a tool was asked for, and the model made none.
        """
        if not self.form.is_chat:
            text, self._told = self._text[self._told :], len(self._text)
            if not text and not self.reason and self._scored == len(self._ids):
                return []
            return [self._piece("text", text, self.reason or None)]
        if not self.reason:
            text, self._told = self._text[self._told : self._certain()], max(self._told, self._certain())
            if not text and (self.form.tools.is_read or self._scored == len(self._ids)):
                return []
            return [self._piece("delta", {"content": text}, None)]
        content, calls, reason = self._read()
        rest = (content or "")[self._told :]
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
        if self.form.tools.must or (not self._told and tools.may_begin(self._text)):
            return 0
        place = self._text.find(tools.OPEN)
        if place < 0:
            sizes = range(min(len(tools.OPEN) - 1, len(self._text)), 0, -1)
            place = len(self._text) - next((n for n in sizes if self._text.endswith(tools.OPEN[:n])), 0)
        return len(self._text[:place].rstrip())

    def _logprobs(self) -> Optional[Dict[str, Any]]:
        """Of the tokens that no chunk has told of."""
        top = self.form.top
        if top is None:
            return None
        ids, scores = self._ids[self._scored :], self._scores[self._scored :]
        self._scored = len(self._ids)
        if self.form.is_chat:
            return logprobs.of_chat(self.form.tokenizer, ids, [score for score in scores if score is not None], top)
        told = logprobs.of_text(self.form.tokenizer, ids, scores, self._offset)
        self._offset += sum(map(len, told["tokens"]))
        return told

    def _piece(self, key: str, what: Any, reason: Optional[str]) -> Dict[str, Any]:
        told = self._logprobs() if self._scored < len(self._ids) else None
        return {"index": self.index, key: what, "logprobs": told, "finish_reason": reason}
