"""Turns by the key that asks: which build begins next, and threads for fetches from other machines."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from puna.control.domain.records import Build
from puna.control.domain.states import StepState
from puna.errors import QueueFullError


@dataclass(frozen=True)
class Slots:
    """Kinds of builds, and how many may do what at once; a key that holds no place finds a few more."""

    kinds: tuple[str, ...] = ("revision", "runtime")
    building: int = 1
    """Environments and bundles: they take cores and disk."""
    trying: int = 8
    """Validations: an app's `initialize` takes what it likes of its `startup_timeout_s`, and hardly any core."""
    under_way: int = 64
    """All of them, those that wait for a place to be tried included."""
    guests: int = 2
    """Places beyond each number, for keys that hold none of these: nobody's builds can hold all."""


def is_free(places: int, holders: Collection[str], owner: str, guests: int) -> bool:
    """True when a place is free for `owner`; one who holds none finds `guests` more. `holders` hold the taken ones."""
    return len(holders) < places or (owner not in holders and len(holders) < places + guests)


def is_past(build: Build, step: str) -> bool:
    """True when a step of a build has ended; one that it does not have never does."""
    return any(one.name == step and one.state is StepState.DONE for one in build.steps)


def next_build(
    queued: Sequence[Build],
    running: Sequence[Build],
    slots: Slots,
    digests: Mapping[str, str],
    turns: Mapping[str, int],
) -> Build | None:
    """The build to begin now, of those that wait, the oldest first; None when none may.

    An endpoint's builds run one after another, and an environment is built once while others wait for it: `digests`
    are the builds' environments by id, `turns` say when an endpoint or runtime had its last turn.
    """
    busy = {subject(build) for build in running}
    made = {digests.get(build.id) for build in running if not is_past(build, "environment")} - {None, ""}
    under_way = [build.owner for build in running]
    building = [build.owner for build in running if not is_past(build, "bundle")]
    for build in sorted(queued, key=lambda build: (turns.get(subject(build), 0), build.created)):
        has_place = is_free(slots.building, building, build.owner, slots.guests)
        has_place = has_place and is_free(slots.under_way, under_way, build.owner, slots.guests)
        if has_place and subject(build) not in busy and digests.get(build.id) not in made:
            return build
    return None


def subject(build: Build) -> str:
    """Whose turn it is: an endpoint, a runtime or a run."""
    return f"{build.kind} {build.subject}"


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
        """Return or raise as `call` does, once it is `owner`'s turn.

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
