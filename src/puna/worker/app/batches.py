"""Requests of an app with BATCH_SIZE, collected: `infer` gets a list of inputs and returns a list of outputs."""

from __future__ import annotations

import threading
import time
from typing import Any, Callable, List, Optional

from puna.worker.app import scope


class Member:
    """One request in a batch."""

    __slots__ = ("done", "error", "is_gone", "result", "value")

    def __init__(self, value: Any) -> None:
        self.value, self.done = value, threading.Event()
        self.result: Any = None
        self.error: Optional[BaseException] = None
        self.is_gone = False

    def leave(self) -> None:
        """The client went: what has not begun need not."""
        self.is_gone = True


class Batches:
    """`infer` of many threads becomes `run` of a list, one list at a time. `run` returns as many results."""

    def __init__(self, run: Callable[[List[Any]], List[Any]], size: int, window_s: float) -> None:
        self._run, self.size, self.window_s = run, size, window_s
        self._changed = threading.Condition()
        self._turn = threading.Lock()
        self._open: Optional[List[Member]] = None

    def infer(self, value: Any) -> Any:
        """This request's result. Raises what `run` raises, for all of its batch."""
        member = Member(value)
        request = scope.current()
        if request is not None:
            request.on_cancel(member.leave)
        with self._changed:
            batch = self._open
            is_first = batch is None
            if batch is None:
                batch = self._open = []
            batch.append(member)
            if len(batch) == self.size:
                self._open = None
                self._changed.notify_all()
        if is_first:
            self._lead(batch)
        else:
            member.done.wait()
        if member.error is not None:
            raise member.error
        return member.result

    def _lead(self, batch: List[Member]) -> None:
        """The first of a batch runs it: when it is full, or its window is over and no other batch runs."""
        end = time.monotonic() + self.window_s
        with self._changed:
            self._changed.wait_for(lambda: self._open is not batch, max(0.0, end - time.monotonic()))
        with self._turn:
            with self._changed:
                if self._open is batch:
                    self._open = None
            # Not the first member's scope: its client may go, and the others stay.
            with scope.entered(scope.RequestScope()):
                self._settle([m for m in batch if not m.is_gone])
        for member in batch:
            member.done.set()

    def _settle(self, members: List[Member]) -> None:
        if not members:
            return
        try:
            results = self._run([m.value for m in members])
        except BaseException as error:  # noqa: BLE001 - raised in each member's thread
            for member in members:
                member.error = error
            return
        for number, member in enumerate(members):
            member.result = results[number]
