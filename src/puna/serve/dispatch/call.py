"""One request on its way through the gateway: its stage, what it holds, its deadline, and the callback for its end."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

from puna.control.wire import ASLEEP
from puna.serve.dispatch.pending_queue import Waiter
from puna.serve.dispatch.worker_connection import InFlight, Reply, WorkerConnection
from puna.serve.http.body import Body
from puna.serve.limits import KeyUse

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Calls and the moments, on the loop's clock, at which `late(call)` is called for those that are still here."""

    def __init__(self, late: Callable[[T], None]) -> None:
        self._late = late
        self._at: dict[T, float] = {}
        self._timer: asyncio.Handle | None = None
        self._due = math.inf  # when the timer is; uvloop's own cannot say where that is at once

    def add(self, call: T, at: float) -> None:
        """Watch `call`."""
        self._at[call] = at
        if at < self._due:
            self._arm(at)

    def remove(self, call: T) -> None:
        """Forget `call`; harmless when it is not here. The timer stays: most often another call needs it."""
        self._at.pop(call, None)

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due = asyncio.get_running_loop().call_at(at, self._look), at

    def _look(self) -> None:
        self._timer, self._due = None, math.inf
        now = asyncio.get_running_loop().time()
        for call in sorted((call for call, at in self._at.items() if at <= now), key=self._at.__getitem__):
            self._at.pop(call, None)
            self._late(call)
        if self._at:
            self._arm(min(self._at.values()))


REVISION = b"x-puna-revision"
"""The header that says which revision answered, and may ask for one of those that have a share."""


class Stage(Enum):
    """Stages of a call."""

    WAITING = "waiting"
    """In the pending queue, or about to enter it."""
    SENT = "sent"
    """A replica has it."""
    STREAMING = "streaming"
    """Its reply has begun, event by event."""
    ENDED = "ended"
    """It was answered, or nobody waits for the answer."""


WAITING, SENT, STREAMING, ENDED = Stage
"""Names of their own: looking up an enum's member takes Python 3.11 a tenth of a microsecond, ten times a request."""

OnDone = Callable[[Reply | None, BaseException | None], None]
"""Called once, with the whole reply; with neither when a stream has begun; or with the reason why there is none."""


class Owner(Protocol):
    """The owner of a call, which brings it to its end: its endpoint's dispatcher."""

    def end(self, call: Call, reply: Reply | None, error: BaseException | None) -> None:
        """Say the last word on it."""

    def leave(self, call: Call) -> None:
        """Nobody waits for it any more."""


@dataclass(eq=False)
class SuspectGroup:
    """Calls that a replica had when it died: once one is found to be the cause, the others were not."""

    calls: list[Call] = field(default_factory=list)
    patience_s: float = math.inf
    """How long they are tried one after the other; then all that are left go together again."""
    until: float = math.inf
    """When that is over, on the loop's clock; known once the first of them is tried."""

    def release(self) -> None:
        """Let all go together that are left."""
        for call in self.calls:
            if call.suspicion is not None:
                call.suspicion.alone = False
            if call.waiter is not None:
                call.waiter.alone = False
        self.calls = []  # with their bodies


@dataclass(eq=False)
class Suspicion:
    """A call whose body a replica has died with."""

    digest: str
    age_s: float
    """How long a replica has taken to die with it, at most."""
    group: SuspectGroup
    alone: bool = True
    """It is to be tried where nobody else can come to harm."""
    has_passed: bool = False
    """It has run for longer than a replica took to die."""
    is_proved: bool = False
    """A replica has died with it that had nothing else."""


@dataclass(eq=False, slots=True)
class Call:
    """One request on its way through the gateway."""

    endpoint: str
    path: str
    """As protocol.REQUEST lists them."""
    body: Body
    trace: str
    version: str = "1"
    json_bytes: int = 0
    """Bytes of the body that are JSON, when tensors' bytes follow it; 0: all of it."""
    key: str = ""
    """The id of the key that it came with, once that was found good."""
    split: int = 0
    """The revision that it was given to, where two share the requests; else 0."""
    adapter: Mapping[str, str] | None = None
    """The LoRA that the engine is to answer with: its name and path."""
    cold: bool = False
    """It waited while no replica was ready."""
    tier: str = ""
    """What it found, one of TIERS; empty until it is known."""
    queued_s: float = 0.0
    wake_s: float = 0.0
    """Of the time on its replica, what that took to wake."""
    infer_s: float = 0.0
    """The rest of that time."""
    first_byte: float = 0.0
    """Of a stream: when its first event was sent, on the clock of `time.perf_counter`."""
    broke_off: bool = False
    """Its stream ended with an error: its status had been sent by then."""
    stage: Stage = WAITING
    on_done: OnDone | None = None
    owner: Owner | None = None
    connection: WorkerConnection | None = None
    exchange: InFlight | None = None
    waiter: Waiter | None = None
    sent: float = 0.0
    """When, on the loop's clock."""
    beginnings: tuple[int, ...] = ()
    """As routing.beginnings found them, where they matter."""
    tried: tuple[str, ...] = ()
    """Replicas that it is not sent to again: they died with it, or let its time pass."""
    lost: int = 0
    """How many replicas died with it."""
    deaths: int = 0
    """How many of them may have died of it."""
    moved: bool = False
    """A replica let its time pass without beginning, and it went on elsewhere."""
    suspicion: Suspicion | None = None
    use: KeyUse | None = None
    """Where its key has limits: what it has of them."""
    tokens: int = 0
    """What its whole reply says that it cost; asked only where its key has limits."""
    events: int = 0
    """Of a stream: how many were sent."""
    _aborted: BaseException | None = None
    _pending: asyncio.Future[Any] | None = None

    def timed(self, now: float) -> None:
        """Note how long its replica has had it."""
        exchange = self.exchange
        assert exchange is not None
        out_s = now - self.sent
        if exchange.found_asleep:
            self.tier = ASLEEP
            self.wake_s = min(exchange.wake_s, out_s) if exchange.started else out_s
        self.infer_s = out_s - self.wake_s

    @property
    def is_suspect(self) -> bool:
        """It is to run alone."""
        return self.suspicion is not None and self.suspicion.alone

    @property
    def most_deaths(self) -> int:
        """Replicas that may die with it: one more where nobody knows whether they died of it."""
        return 1 if self.suspicion is None or self.suspicion.is_proved else 2

    async def hold(self, future: asyncio.Future[Any]) -> Any:
        """Wait for `future`, or for `abort`, whichever comes first; while streaming."""
        if self._aborted is not None:
            raise self._aborted
        self._pending = future
        try:
            return await future
        finally:
            self._pending = None

    def abort(self, error: BaseException) -> None:
        """End the call with `error`, wherever it is."""
        if self.stage is STREAMING:
            self._aborted = self._aborted or error
            if self._pending is not None and not self._pending.done():
                self._pending.set_exception(error)
        elif self.owner is not None:
            self.owner.end(self, None, error)

    def leave(self) -> None:
        """Nobody waits for the reply any more; harmless when it has ended."""
        if self.owner is not None:
            self.owner.leave(self)
