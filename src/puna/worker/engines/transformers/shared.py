"""One transformers model that many share: a running batch where its cache can be joined, else batches as they come."""

from __future__ import annotations

import importlib
import queue
from typing import Any, Callable, List, Optional

from puna.worker.app import scope
from puna.worker.engines.transformers.cache import Unlike
from puna.worker.engines.transformers.loop import BatchLoop, BatchRow
from puna.worker.engines.transformers.rows import GenerateRows, Part


class SharedModel:
    """`generate` for calls that are understood, `alone` for all others."""

    def __init__(self, loop: Optional[BatchLoop], rows: GenerateRows) -> None:
        self.loop, self._rows = loop, rows
        """No loop: the model's cache is nothing that rows can be joined in."""

    def alone(self, function: Callable[[], Any]) -> Any:
        """What `function` returns, while nothing else runs on the model; within another such call, at once."""
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

    def leave() -> None:
        for row in rows:
            row.leave()
        inbox.put(None)

    if request is not None:
        request.on_cancel(leave)
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
            row.leave()
        if request is not None:
            request.forget(leave)
