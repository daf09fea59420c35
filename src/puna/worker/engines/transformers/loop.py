"""The thread that steps one transformers model: rows join a running batch, and each ends by itself.

transformers 5 has continuous batching of its own (`generate_batch`). It is not used: it changes the attention of the
app's model under the app's other calls, keeps a share of memory for its pages, knows neither stop texts nor a seed for
each request, and is in no version 4.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import inspect
import threading
import time
from typing import Any, Callable, Deque, Dict, FrozenSet, Iterator, List, Optional, Sequence, Tuple

from puna.worker.app import calllog
from puna.worker.engines.engine import Score, like_this_thread
from puna.worker.engines.transformers.draw import Draw, next_tokens, scored

Pairs = List[Tuple[Any, Any]]
"""Keys and values of each layer, [rows, heads, width, size]."""


class Unlike(Exception):
    """This model keeps something other than keys and values by position: its rows cannot be joined."""


class Held:
    """The cache of some rows, and which of its columns are padding."""

    def __init__(self, cache: Any, mask: Any) -> None:
        """`cache` as the model returned it; `mask` [rows, width] is 1 where a token stands.

        Raises:
            Unlike: it is no plain cache of that shape.
        """
        self.cache, self.mask = cache, mask
        wanted = tuple(mask.shape)
        for pair in pairs_of(cache):
            for tensor in pair:
                if getattr(tensor, "ndim", 0) != 4 or (tensor.shape[0], tensor.shape[2]) != wanted:
                    raise Unlike("a layer's cache is of shape %s" % (list(getattr(tensor, "shape", ())),))

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows, and the columns that are padding in each of those that stay."""
        mask = self.mask[list(rows)]
        first = int((mask.sum(0) > 0).int().argmax())
        self.mask = mask[:, first:]
        self.cache = cache_of([(k[list(rows), :, first:], v[list(rows), :, first:]) for k, v in pairs_of(self.cache)])

    def join(self, other: Held) -> None:
        """The other's rows stand below these from now on."""
        torch = importlib.import_module("torch")
        width = max(self.mask.shape[1], other.mask.shape[1])

        def both(mine: Any, theirs: Any) -> Any:
            pad = torch.nn.functional.pad
            return torch.cat([pad(t, (0, 0, width - t.shape[2], 0)) for t in (mine, theirs)])

        theirs = pairs_of(other.cache)
        mine = enumerate(pairs_of(self.cache))
        self.cache = cache_of([(both(k, theirs[layer][0]), both(v, theirs[layer][1])) for layer, (k, v) in mine])
        masks = (self.mask, other.mask)
        self.mask = torch.cat([torch.nn.functional.pad(m, (width - m.shape[1], 0)) for m in masks])


def empty_cache() -> Any:
    """A cache with nothing in it."""
    return importlib.import_module("transformers").DynamicCache()


def cache_of(pairs: Pairs) -> Any:
    """A cache of transformers' that holds these."""
    cache = empty_cache()
    for layer, (keys, values) in enumerate(pairs):
        cache.update(keys, values, layer)
    return cache


def pairs_of(cache: Any) -> Pairs:
    """Keys and values of a cache, as versions of transformers have them.

    Raises:
        Unlike: it is none of those.
    """
    if isinstance(cache, (tuple, list)):  # before 4.42 a model returned tuples, whatever it was given
        return [(pair[0], pair[1]) for pair in cache]
    layers = getattr(cache, "layers", None)
    if layers is not None:
        if any(type(layer).__name__ != "DynamicLayer" for layer in layers):
            raise Unlike("a layer keeps %s" % ", ".join(sorted({type(layer).__name__ for layer in layers})))
        return [(layer.keys, layer.values) for layer in layers]
    if type(cache).__name__ == "DynamicCache":
        return [(keys, cache.value_cache[layer]) for layer, keys in enumerate(cache.key_cache)]
    raise Unlike("the model keeps a %s" % type(cache).__name__)


MAX_ROWS = 32  # of one batch: more would each wait longer for every step
PREFILL_TOKENS = 8192  # of newcomers' prompts in one step, padding too: those who run wait for it


class BatchRow:
    """One sequence: a prompt, and the tokens that come after it."""

    def __init__(
        self, ids: Any, draw: Draw, most: int, ends: FrozenSet[int], on_step: Callable[[RowStep], Any]
    ) -> None:
        """`ids` [length] on the model's device; `on_step` is called with each token, in the loop's thread."""
        self.ids, self.draw, self.most, self.ends, self.on_step = ids, draw, most, ends, on_step
        self.tokens: List[int] = []
        self.wants_prompt = False
        """Tell the log-probabilities of the prompt's tokens with the first step."""
        self.is_abandoned = False
        """Nobody waits for it any more."""


class RowStep:
    """One row's gain: a token, or the reason why there are no more."""

    __slots__ = ("error", "prompt", "reason", "score", "token")

    def __init__(self, token: Optional[int], reason: Optional[str], error: Optional[BaseException] = None) -> None:
        self.token, self.reason, self.error = token, reason, error
        self.score: Optional[Score] = None
        self.prompt: Optional[List[Score]] = None
        """Of the prompt's second token and those after it."""


class BatchLoop:
    """Owns the steps of one model. `alone` calls take turns with them."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._changed = threading.Condition()
        self._waiting: Deque[BatchRow] = collections.deque()
        self._rows: List[BatchRow] = []
        self._held: Optional[Held] = None
        self._thread: Optional[threading.Thread] = None
        self._exclusive: Deque[object] = collections.deque()
        self._is_stepping = self._has_exclusive = False
        self._inside = 0
        self._owed_s = 0.0
        keep = [n for n in ("logits_to_keep", "num_logits_to_keep") if n in inspect.signature(model.forward).parameters]
        self._last_only: Dict[str, Any] = dict.fromkeys(keep[:1], 1)

    # -- for the callers

    def add(self, rows: List[BatchRow]) -> None:
        """Let them run; each has its own end."""
        with self._changed:
            self._waiting.extend(rows)
            if self._thread is None:
                target, like_mine = self._run, like_this_thread()
                self._thread = threading.Thread(target=target, args=(like_mine,), name="puna-batch", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def alone(self, function: Callable[[], Any]) -> Any:
        """Run `function` between two steps; within another such call, at once.

        Afterwards the batch may go on for as long as this took before another such call comes.
        """
        if self.is_inside:
            return function()
        waiter = object()
        with self._changed:
            self._exclusive.append(waiter)
            self._changed.wait_for(lambda: self._exclusive[0] is waiter and self._may_run_exclusive())
            self._exclusive.popleft()
            self._has_exclusive, self._inside = True, threading.get_ident()
        began = time.monotonic()
        try:
            return function()
        finally:
            with self._changed:
                self._has_exclusive, self._inside = False, 0
                self._owed_s = time.monotonic() - began
                self._changed.notify_all()

    @property
    def is_inside(self) -> bool:
        """This thread is within `alone`: it must not wait for the batch, which waits for it."""
        return self._inside == threading.get_ident()

    def _may_run_exclusive(self) -> bool:
        return not self._has_exclusive and not self._is_stepping and (self._owed_s <= 0 or not self._is_busy())

    def _is_busy(self) -> bool:
        return bool(self._waiting or self._rows)

    # -- in the loop's thread

    def _run(self, prepare: Callable[[], Any]) -> None:
        prepare()
        torch = importlib.import_module("torch")
        if self.model.device.type == "cuda":
            torch.cuda.set_device(self.model.device)  # apps load on the CPU and move the model after
        with torch.no_grad():
            while True:
                with self._turn() as new:
                    if new:
                        self._prefill(torch, new)
                    if self._rows:
                        self._step(torch)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[List[BatchRow]]:
        """One step's time, with the rows that come in; waits for something to do."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_busy() and not self._has_exclusive and (self._owed_s > 0 or not self._exclusive)
            )
            self._is_stepping = True
            new = self._admitted()
        began = time.monotonic()
        try:
            yield new
        finally:
            with self._changed:
                self._is_stepping = False
                self._owed_s -= time.monotonic() - began
                if self._exclusive:
                    self._changed.notify_all()

    def _admitted(self) -> List[BatchRow]:
        """The rows that come in now, in order; those that nobody waits for any more end."""
        new: List[BatchRow] = []
        width = 0
        while self._waiting and len(self._rows) + len(new) < MAX_ROWS:
            row = self._waiting[0]
            if row.is_abandoned:
                self._waiting.popleft().on_step(RowStep(None, "abandoned"))
                continue
            width = max(width, int(row.ids.shape[0]))
            apart = row.wants_prompt or (new and new[0].wants_prompt)  # all logits of a prompt: no padding among them
            if new and (apart or width * (len(new) + 1) > PREFILL_TOKENS):
                break
            new.append(self._waiting.popleft())
        return new

    def _prefill(self, torch: Any, new: List[BatchRow]) -> None:
        """Newcomers' prompts, and their first tokens; then they stand among the others."""
        try:
            width = max(int(row.ids.shape[0]) for row in new)
            pad = torch.nn.functional.pad
            ids = torch.stack([pad(row.ids, (width - int(row.ids.shape[0]), 0)) for row in new])
            ones = [torch.ones_like(row.ids) for row in new]
            mask = torch.stack([pad(one, (width - int(one.shape[0]), 0)) for one in ones])
            keep = {} if new[0].wants_prompt else self._last_only
            place = (mask.cumsum(-1) - 1).clamp(min=0)
            logits, cache = self._forward(ids, mask, place, empty_cache(), keep)
            held = Held(cache, mask)
            prompts = None
            if new[0].wants_prompt:
                asked = ids[0, 1:].tolist()
                prompts = scored(logits[0, :-1], asked, new[0].draw.top or 0)
            alive = self._advance(torch, new, logits[:, -1], prompts)
            if not alive:
                return
            if len(alive) < len(new):
                held.keep(alive)
            if self._held is None:
                self._held = held
            else:
                self._held.join(held)
            self._rows += [new[at] for at in alive]
        except BaseException as error:  # noqa: BLE001 - raised in the threads of the newcomers; the others go on
            if len(new) > 1 and not any(row.tokens for row in new):
                for row in new:  # what is wrong with one is not the others' fault
                    self._prefill(torch, [row])
                return
            if isinstance(error, Unlike):
                calllog.note("calls of this model run one after the other: %s" % error)
            for row in new:
                row.on_step(RowStep(None, None, error))

    def _step(self, torch: Any) -> None:
        """One token more for each row."""
        held = self._held
        assert held is not None
        try:
            last = [[row.tokens[-1]] for row in self._rows]
            ids = torch.tensor(last, device=held.mask.device)
            mask = torch.cat([held.mask, torch.ones_like(ids)], 1)
            logits, cache = self._forward(ids, mask, mask.sum(1, keepdim=True) - 1, held.cache, {})
            held.cache, held.mask = cache, mask
            alive = self._advance(torch, self._rows, logits[:, -1])
            if len(alive) < len(self._rows):
                self._rows = [self._rows[at] for at in alive]
                if alive:
                    held.keep(alive)
                else:
                    self._held = None
        except BaseException as error:  # noqa: BLE001 - raised in each caller's thread
            rows, self._rows, self._held = self._rows, [], None
            for row in rows:
                row.on_step(RowStep(None, None, error))

    def _forward(self, ids: Any, mask: Any, place: Any, cache: Any, keep: Dict[str, Any]) -> Any:
        out = self.model(
            input_ids=ids, attention_mask=mask, position_ids=place, past_key_values=cache, use_cache=True, **keep
        )
        return out.logits, out.past_key_values

    def _advance(
        self, torch: Any, rows: List[BatchRow], logits: Any, prompts: Optional[List[Score]] = None
    ) -> List[int]:
        """Tell each row its next token; the numbers of those that go on."""
        scores = logits.float()
        edited = [
            row.draw.edited(torch, scores[at], row.ids, row.tokens, row.ends) if row.draw.edits else scores[at]
            for at, row in enumerate(rows)
        ]
        if any(row.draw.edits for row in rows):
            chosen = next_tokens(torch, torch.stack(edited), [row.draw for row in rows])
        else:
            chosen = next_tokens(torch, scores, [row.draw for row in rows])
        alive = []
        for at, row in enumerate(rows):
            token = chosen[at]
            row.tokens.append(token)
            if row.draw.form is not None:
                row.draw.form.take(token)
            is_end = token in row.ends or (row.draw.form is not None and row.draw.form.is_over)
            reason = "stop" if is_end else "length" if len(row.tokens) >= row.most else None
            step = RowStep(token, "abandoned" if row.is_abandoned else reason)
            if row.draw.top is not None:
                (step.score,) = scored(logits[at : at + 1], [token], row.draw.top)
            step.prompt = prompts
            row.on_step(step)
            if step.reason is None:
                alive.append(at)
        return alive
