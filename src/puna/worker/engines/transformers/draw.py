"""The next token of each row of a batch: its own penalties, limits and seed, and the form that it is held to."""

from __future__ import annotations

import importlib
import importlib.util
import json
import threading
from typing import Any, Dict, FrozenSet, List, Optional, Sequence, Tuple

from puna.worker.engines.engine import EngineRefusal, Score


def can_hold() -> bool:
    """True when the environment has xgrammar; nothing is imported for the answer."""
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
                    described = info.from_huggingface(tokenizer, vocab_size=vocabulary, stop_token_ids=ends or None)
                    self._compiler = library.GrammarCompiler(described)
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
    """The state of one row in its form."""

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


NEVER = float("-inf")
PROMPT_PLACES = 256  # places whose log-probabilities are computed at once: a vocabulary of floats for each


class Draw:
    """One row's way to its next token."""

    def __init__(self, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> None:
        self.temperature = temperature
        """0: always the likeliest."""
        self.warp = (temperature, max(0, top_k), top_p, min_p)
        self.repetition, self.presence, self.frequency = 1.0, 0.0, 0.0
        self.bias: Dict[int, float] = {}
        self.allowed: List[int] = []
        """Token ids; empty: all."""
        self.min_tokens = 0
        self.top: Optional[int] = None
        """Tell the log-probability of each token, and of so many of the likeliest."""
        self.seed: Optional[int] = None
        self.form: Optional[Matcher] = None
        """What the reply is held to."""
        self._generator: Any = None

    @property
    def edits(self) -> bool:
        """The row's scores are not the model's own."""
        more = self.bias or self.allowed or self.min_tokens or self.presence or self.frequency
        return bool(more) or self.repetition != 1.0 or self.form is not None

    def edited(self, torch: Any, scores: Any, prompt: Any, reply: List[int], ends: FrozenSet[int]) -> Any:
        """The scores [vocabulary] after penalties and limits; OpenAI's and vLLM's definitions."""
        scores = scores.clone()
        replied = torch.tensor(reply, dtype=torch.long, device=scores.device)
        if self.repetition != 1.0:
            seen = torch.unique(torch.cat([prompt.to(scores.device), replied]))
            held = scores[seen]
            scores[seen] = torch.where(held > 0, held / self.repetition, held * self.repetition)
        if reply and (self.presence or self.frequency):
            tokens, counts = torch.unique(replied, return_counts=True)
            scores[tokens] -= self.presence + self.frequency * counts.to(scores.dtype)
        for token, bias in self.bias.items():
            if token < scores.shape[0]:
                scores[token] += bias
        if self.allowed:
            others = torch.ones_like(scores, dtype=torch.bool)
            others[torch.tensor([t for t in self.allowed if t < scores.shape[0]], device=scores.device)] = False
            scores = scores.masked_fill(others, NEVER)
        if len(reply) < self.min_tokens:
            scores[torch.tensor(sorted(ends), dtype=torch.long, device=scores.device)] = NEVER
        return scores if self.form is None else self.form.masked(scores)

    def generator(self, torch: Any, device: Any) -> Any:
        """The row's own, which no other row draws from."""
        if self._generator is None:
            self._generator = torch.Generator(device=device).manual_seed(self.seed)
        return self._generator


def next_tokens(torch: Any, scores: Any, draws: Sequence[Draw]) -> List[int]:
    """The next token of each row; `scores` [rows, vocabulary], edited already."""
    chosen = scores.argmax(-1)
    groups: Dict[Tuple[Any, ...], List[int]] = {}
    for row, draw in enumerate(draws):
        if draw.temperature > 0:
            groups.setdefault(draw.warp, []).append(row)
    for warp, rows in groups.items():
        warped = scores[rows]
        for warper in _warpers(*warp):
            warped = warper(None, warped)
        chances = warped.softmax(-1)
        free = [at for at, row in enumerate(rows) if draws[row].seed is None]
        if free:
            places = [rows[at] for at in free]
            chosen[places] = torch.multinomial(chances if len(free) == len(rows) else chances[free], 1).squeeze(1)
        for at, row in enumerate(rows):
            if draws[row].seed is not None:
                generator = draws[row].generator(torch, scores.device)
                chosen[row] = torch.multinomial(chances[at], 1, generator=generator)[0]
    found: List[int] = chosen.tolist()
    return found


def _warpers(temperature: float, top_k: int, top_p: float, min_p: float) -> List[Any]:
    """transformers' own, in the order of its `generate`."""
    library = importlib.import_module("transformers")
    found = [library.TemperatureLogitsWarper(temperature)] if temperature != 1.0 else []
    if top_k:
        found.append(library.TopKLogitsWarper(top_k))
    if top_p < 1.0:
        found.append(library.TopPLogitsWarper(top_p))
    if min_p > 0.0:
        found.append(library.MinPLogitsWarper(min_p))
    return found


def scored(logits: Any, tokens: Sequence[int], top: int) -> List[Score]:
    """The log-probabilities of tokens at places whose `logits` are [places, vocabulary], before any sampling."""
    found: List[Score] = []
    for first in range(0, len(tokens), PROMPT_PLACES):
        likely = logits[first : first + PROMPT_PLACES].float().log_softmax(-1)
        mine = tokens[first : first + PROMPT_PLACES]
        own = likely[range(len(mine)), list(mine)].tolist()
        best = likely.topk(top, -1) if top else None
        for place, value in enumerate(own):
            around = [] if best is None else _ranked(best, place)
            found.append((value, around))
    return found


def _ranked(best: Any, place: int) -> List[Tuple[int, float]]:
    values: List[float] = best.values[place].tolist()
    return [(int(token), values[rank]) for rank, token in enumerate(best.indices[place].tolist())]
