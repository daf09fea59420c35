"""Threads of their own for what asks other machines: a host that never answers holds up nobody else's call."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from puna.control.operations.turns import is_free
from puna.errors import QueueFullError

T = TypeVar("T")
EACH = 4
"""Fetches of one key at once."""
PLACES, GUESTS = 16, 8
"""All fetches at once, and places beyond for keys that have none under way."""
MOST_WAITING = 256
AGAIN_S = 10
WAIT_S = 30.0
"""So long a call waits for its turn; then whoever asked is told to come again."""


class Fetches:
    """Calls in threads, in turns by the key that asks; used from one event loop."""

    def __init__(self, each: int = EACH, places: int = PLACES, wait_s: float = WAIT_S) -> None:
        """No thread is started before there is something to do."""
        self._each, self._places, self._wait_s = each, places, wait_s
        self._holders: list[str] = []
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []

    async def run(self, owner: str, call: Callable[[], T]) -> T:
        """What `call` returns or raises, once it is `owner`'s turn.

        Raises:
            QueueFullError: others that are fetched leave no place.
        """
        await self._enter(owner)
        try:
            return await _in_thread(call)
        finally:
            self._leave(owner)

    def _may_begin(self, owner: str) -> bool:
        return self._holders.count(owner) < self._each and is_free(self._places, self._holders, owner, GUESTS)

    async def _enter(self, owner: str) -> None:
        if self._may_begin(owner):
            self._holders.append(owner)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((owner, turn))
        try:
            if len(self._waiting) > MOST_WAITING:
                raise TimeoutError
            await asyncio.wait_for(turn, self._wait_s)
        except BaseException as error:  # raised again, as what the caller understands
            if turn.done() and not turn.cancelled():  # it had just begun
                self._leave(owner)
            if not isinstance(error, TimeoutError):
                raise
            said = f"{self._holders.count(owner)} repositories or models of yours are being fetched already"
            raise QueueFullError(said, AGAIN_S, f"their hosts answer slowly: ask again in {AGAIN_S} s") from None
        finally:
            with contextlib.suppress(ValueError):
                self._waiting.remove((owner, turn))

    def _leave(self, owner: str) -> None:
        self._holders.remove(owner)
        for other, turn in self._waiting:
            if not turn.done() and self._may_begin(other):
                self._holders.append(other)
                turn.set_result(None)


async def _in_thread(call: Callable[[], T]) -> T:
    """Run a call in a thread that ends with it; one that still runs keeps no process from ending."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def tell(told: Callable[[Any], None], value: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(lambda: None if answer.done() else told(value))

    def work() -> None:
        try:
            tell(answer.set_result, call())
        except BaseException as error:  # noqa: BLE001 - whoever asked sees it
            tell(answer.set_exception, error)

    threading.Thread(target=work, name="fetch", daemon=True).start()
    return await answer
