"""One transformers model that many share: a running batch where its cache can be joined, else batches as they come."""

from __future__ import annotations

import importlib
import queue
import threading
import time
from typing import Any, Callable, Dict, List, Optional

from puna.worker.app import scope
from puna.worker.engines.transformers.loop import MAX_ROWS, BatchLoop, BatchRow, Unlike

# The callers of a batch come back at almost one time. The next batch waits for them, but never long against its work.
GATHER_SHARE, GATHER_LONGEST_S = 0.05, 0.05


class Part:
    """One call: its own rows, and the settings that it shares with the others of its batch."""

    def __init__(self, ids: Any, mask: Any, settings: Any, options: Dict[str, Any]) -> None:
        self.ids, self.mask, self.settings, self.options = ids, mask, settings, options
        self.on_tokens: Optional[Callable[[Any], None]] = None
        """Told each step's new token, row by row."""
        self.seed: Optional[int] = None
        """Drawn from this seed, in a batch of its own."""
        self.draw: Optional[Callable[[], Any]] = None
        """Makes each row's way to its next token; None where the call is no rows of a running batch."""
        self.most, self.pad = 0, 0
        self.ends: List[int] = []
        self.tokens: Any = None
        self.error: Optional[BaseException] = None
        self.abandoned, self.done = threading.Event(), threading.Event()
        """Nobody waits for it any more; nobody need."""


class GenerateRows:
    """`run(parts)` for calls of equal settings, one batch at a time; a call alone never waits for others."""

    def __init__(self, run: Callable[[List[Part]], None]) -> None:
        self._run = run
        self._changed = threading.Condition()
        self._waiting: List[Part] = []
        self._is_led, self._inside = False, 0
        self._last_size, self._last_s = 1, 0.0

    def generate(self, part: Part) -> Any:
        """The tokens of one call. Raises what its batch raises."""
        request = scope.current()
        if request is not None:
            request.on_cancel(part.abandoned.set)
        with self._changed:
            self._waiting.append(part)
            self._changed.notify_all()
            while self._is_led and not part.done.is_set():
                self._changed.wait()
            if not part.done.is_set():
                self._is_led = True
        while not part.done.is_set():
            self._lead(part)
        if request is not None:
            request.forget(part.abandoned.set)
            if request.is_cancelled:
                raise scope.Cancelled
        if part.error is not None:
            raise part.error
        return part.tokens

    def alone(self, function: Callable[[], Any]) -> Any:
        """Run `function` while no batch runs; within another such call, at once."""
        if self.is_inside:
            return function()
        with self._changed:
            self._changed.wait_for(lambda: not self._is_led)
            self._is_led, self._inside = True, threading.get_ident()
        try:
            return function()
        finally:
            self._inside = 0
            self._hand_over()

    @property
    def is_inside(self) -> bool:
        """This thread is within `alone`: it must not wait for a batch, which waits for it."""
        return self._inside == threading.get_ident()

    def _lead(self, mine: Part) -> None:
        """Run batches until this thread's own call is done, then let another lead."""
        with self._changed:
            if self._last_size > 1:
                longest_s = min(GATHER_LONGEST_S, GATHER_SHARE * self._last_s)
                self._changed.wait_for(lambda: len(self._waiting) >= self._last_size, longest_s)
            batch = self._next()
        begun = time.monotonic()
        try:
            self._run(batch)
        except BaseException as error:  # noqa: BLE001 - raised in each caller's thread
            for part in batch:
                part.error = error
        self._last_size, self._last_s = len(batch), time.monotonic() - begun
        for part in batch:
            part.done.set()
        if mine.done.is_set():
            self._hand_over()
        else:
            with self._changed:
                self._changed.notify_all()

    def _hand_over(self) -> None:
        with self._changed:
            self._is_led = False
            self._changed.notify_all()

    def _next(self) -> List[Part]:
        first, rows = self._waiting[0], 0
        batch: List[Part] = []
        for part in list(self._waiting):
            size = int(part.ids.shape[0])
            if part.settings == first.settings and (not batch or rows + size <= MAX_ROWS):
                batch.append(part)
                rows += size
                self._waiting.remove(part)
        return batch


class SharedModel:
    """`generate` for calls that are understood, `alone` for all others."""

    def __init__(self, loop: Optional[BatchLoop], rows: GenerateRows) -> None:
        self.loop, self._rows = loop, rows
        """No loop: the model's cache is nothing that rows can be joined in."""

    def alone(self, function: Callable[[], Any]) -> Any:
        """Run `function` while nothing else runs on the model; within another such call, at once."""
        return self._rows.alone(function) if self.loop is None else self.loop.alone(function)

    @property
    def is_inside(self) -> bool:
        """This thread is within `alone`."""
        return self._rows.is_inside or (self.loop is not None and self.loop.is_inside)

    def generate(self, part: Part) -> Any:
        """The tokens of one call, [rows, length], padded after each row's end. Raises what its steps raise."""
        if self.loop is not None and part.draw is not None:
            try:
                return _tokens(self.loop, part)
            except Unlike:
                self.loop = None
        elif self.loop is not None:
            return self.loop.alone(lambda: self._rows.generate(part))
        return self._rows.generate(part)


def _tokens(loop: BatchLoop, part: Part) -> Any:
    assert part.draw is not None
    inbox: Any = queue.SimpleQueue()
    rows = [
        BatchRow(
            ids[part.mask[at].bool()].to(loop.model.device), part.draw(), part.most, frozenset(part.ends), inbox.put
        )
        for at, ids in enumerate(part.ids)
    ]
    wait_for(loop, rows, inbox)
    torch = importlib.import_module("torch")
    longest = max(len(row.tokens) for row in rows)
    filled = [row.tokens + [part.pad] * (longest - len(row.tokens)) for row in rows]
    return torch.tensor(filled, dtype=part.ids.dtype, device=part.ids.device)


def wait_for(loop: BatchLoop, rows: List[BatchRow], inbox: Any) -> None:
    """Run the rows to their ends.

    Raises:
        Cancelled: the request's client went. What the steps raise goes through.
    """
    request = scope.current()

    def abandon() -> None:
        for row in rows:
            row.is_abandoned = True
        inbox.put(None)

    if request is not None:
        request.on_cancel(abandon)
    try:
        loop.add(rows)
        left = len(rows)
        while left:
            step = inbox.get()
            if step is None:
                raise scope.Cancelled
            if step.error is not None:
                raise step.error
            left -= step.reason is not None
    finally:
        for row in rows:
            row.is_abandoned = True
        if request is not None:
            request.forget(abandon)
