"""Runs the prompts of one request on an engine, all at once, and yields what each choice gains."""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from puna.worker.engines.engine import Delta, Engine, LoadedAdapter

Gain = Tuple[int, Delta]  # choice of the reply, and what it gains


class Generation:
    """One request: `prompts` with `n` choices each; `is_over()` says that nobody waits for more."""

    def __init__(
        self,
        engine: Engine,
        prompts: List[List[int]],
        params: Dict[str, Any],
        adapter: Optional[LoadedAdapter],
        is_over: Callable[[], bool],
    ) -> None:
        self._engine, self._prompts, self._params, self._adapter = engine, prompts, params, adapter
        self._is_over = is_over
        self._n = int(params.get("n", 1))

    def run(self) -> Iterator[Gain]:
        """Yield until every choice has ended, or nobody waits. Raises what the engine raises."""
        if len(self._prompts) == 1:
            return self._one(0)
        return self._many()

    def _one(self, number: int) -> Iterator[Gain]:
        stream = self._engine.stream(self._prompts[number], self._params, self._adapter)
        try:
            for delta in stream:
                if self._is_over():
                    return
                yield number * self._n + delta.index, delta
        finally:
            _close(stream)

    def _many(self) -> Iterator[Gain]:
        """A thread a prompt, as many at once as the engine likes: it is the engine that batches them."""
        gains = queue.Queue()  # type: queue.Queue[Any]
        waiting = iter(range(len(self._prompts)))
        lock, stopped = threading.Lock(), threading.Event()

        def work() -> None:
            try:
                while not stopped.is_set():
                    with lock:
                        number = next(waiting, None)
                    if number is None:
                        break
                    for gain in self._one(number):
                        gains.put(gain)
                        if stopped.is_set():
                            break
            except BaseException as error:  # noqa: BLE001 - raised again where the gains are read
                gains.put(error)
            gains.put(None)

        count = max(1, min(len(self._prompts), self._engine.concurrency))
        threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            left = count
            while left:
                gain = gains.get()
                if gain is None:
                    left -= 1
                elif isinstance(gain, BaseException):
                    raise gain
                else:
                    yield gain
        finally:
            stopped.set()
            for thread in threads:
                thread.join()


def _close(stream: Any) -> None:
    """End it in the engine too; an iterator without `close` has nothing to end."""
    with contextlib.suppress(AttributeError):
        stream.close()
