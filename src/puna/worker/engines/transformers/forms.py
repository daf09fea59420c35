"""Holds replies of a transformers model to a form, by xgrammar, where the app's environment has it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import threading
from typing import Any, Dict, List

from puna.worker.engines.engine import EngineRefusal


def can() -> bool:
    """Whether the environment has the library; nothing is imported for the answer."""
    return importlib.util.find_spec("xgrammar") is not None


class Forms:
    """Compiles what requests ask for, for one model and its tokenizer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._compiler: Any = None

    def compiled(self, constraint: Dict[str, Any], tokenizer: Any, vocabulary: int, ends: List[int]) -> Any:
        """The grammar of a constraint, by vLLM's keys.

        Raises:
            EngineRefusal: it cannot be compiled, or is of a kind that xgrammar does not take.
        """
        library = importlib.import_module("xgrammar")
        with self._lock:  # one at a time: its cache is no place for two
            try:
                if self._compiler is None:
                    info = library.TokenizerInfo
                    told = info.from_huggingface(tokenizer, vocab_size=vocabulary, stop_token_ids=ends or None)
                    self._compiler = library.GrammarCompiler(told)
                return _compile(self._compiler, dict(constraint))
            except EngineRefusal:
                raise
            except Exception as error:  # the caller sees it: the library speaks through what it raises
                raise EngineRefusal("the engine cannot hold a reply to this form: %s" % error) from error


def _compile(compiler: Any, form: Dict[str, Any]) -> Any:
    any_whitespace = not form.pop("disable_any_whitespace", False)
    key, value = next(iter(form.items()))
    if len(form) > 1 or key not in ("json", "json_object", "regex", "choice", "grammar"):
        raise EngineRefusal("`structured_outputs` with %s needs vLLM" % ", ".join(sorted(form)))
    if key == "json":
        schema = value if isinstance(value, str) else json.dumps(value)
        return compiler.compile_json_schema(schema, any_whitespace=any_whitespace)
    if key == "json_object":
        return compiler.compile_builtin_json_grammar()
    if key == "regex":
        return compiler.compile_regex(value)
    if key == "choice":
        if not value:
            raise EngineRefusal("a choice among no texts")
        value = "root ::= " + " | ".join(json.dumps(text) for text in value)
    return compiler.compile_grammar(value)


class Matcher:
    """How far one row has come in its form."""

    def __init__(self, grammar: Any, vocabulary: int) -> None:
        library = importlib.import_module("xgrammar")
        self._apply = library.apply_token_bitmask_inplace
        self._matcher = library.GrammarMatcher(grammar)
        self._mask = library.allocate_token_bitmask(1, vocabulary)

    @property
    def is_over(self) -> bool:
        """Nothing may follow."""
        return bool(self._matcher.is_terminated())

    def masked(self, scores: Any) -> Any:
        """The scores [vocabulary] of what may come next; all others are minus infinity."""
        if self.is_over:
            return scores
        self._matcher.fill_next_token_bitmask(self._mask, 0)
        rows = scores[None]
        self._apply(rows, self._mask.to(scores.device))
        return rows[0]

    def take(self, token: int) -> None:
        """The row has this token now."""
        if not self.is_over and not self._matcher.accept_token(token):
            raise RuntimeError("the form does not take the token %d that it let through" % token)
