"""The requests that a worker has: queued, running, answered; who may run next, and whose time is over."""

from __future__ import annotations

import collections
import threading
import time
from typing import Any, Callable, Deque, Dict, List, Optional, Tuple

from puna.worker import process

OVERRUN_GRACE_S = 5.0  # how long a call may go on after its 504 before the worker gives itself up
MIN_QUEUE = 256  # several gateways, each with a few requests ahead
QUEUE_PER_THREAD = 4  # the gateway's waiting room is the real queue; this one only bridges hand-overs
Key = Tuple[int, int]  # connection, request id


class WorkerCall:
    """One request. The flags are guarded by the table's lock; `send` is its connection's."""

    __slots__ = (
        "alone_s", "body", "cancel", "deadline", "head", "is_answered", "is_running", "key", "send", "stream_begun",
    )  # fmt: skip

    def __init__(
        self, key: Key, head: Dict[str, Any], body: bytes, deadline: float, send: Callable[[bytes], None]
    ) -> None:
        self.key, self.head, self.body, self.deadline, self.send = key, head, body, deadline, send
        self.alone_s = float(head.get("alone_s") or 0.0)  # nothing else runs for so long from its beginning
        self.is_running = self.is_answered = self.stream_begun = False
        self.cancel: Optional[Callable[[], Any]] = None

    @property
    def request_id(self) -> int:
        """The other side's number of it."""
        return self.key[1]

    @property
    def trace(self) -> str:
        """The request's id in the log."""
        return str(self.head.get("trace") or self.request_id)


class CallTable:
    """All live calls. `late(call)` answers one whose deadline has passed; `poisoned(call)` ends the process.

    `refused(call)` sends one that has not begun elsewhere: what runs may go on for long before the process ends.
    """

    def __init__(
        self,
        threads: int,
        late: Callable[[WorkerCall], None],
        poisoned: Callable[[WorkerCall], None],
        refused: Callable[[WorkerCall], None],
    ) -> None:
        lock = threading.RLock()
        self._work = threading.Condition(lock)  # a call was queued, or the worker stops
        self._times = threading.Condition(lock)  # the next deadline may be another
        self._lock = lock
        self.threads, self._late, self._poisoned, self._refused = threads, late, poisoned, refused
        self._queue: Deque[WorkerCall] = collections.deque()
        self._live: Dict[Key, WorkerCall] = {}
        self._when_empty: List[Callable[[], None]] = []
        self._wake_at = float("inf")
        self._sending = self._idle = self._running = 0
        self._alone: Optional[WorkerCall] = None
        self._alone_until = float("inf")
        self._stopped = False
        self.accepts = True
        self.refusal = ""
        self.overrun_grace_s = OVERRUN_GRACE_S
        self.until = process.unread_page()
        """Until when the running calls may take, for the guard to read."""

    # -- for the connections

    def add(self, call: WorkerCall) -> str:
        """Queue a call; the text says why not, when it is not."""
        with self._lock:
            if not self.accepts:
                return self.refusal
            if len(self._queue) >= max(MIN_QUEUE, QUEUE_PER_THREAD * self.threads):
                return "the replica has too many requests queued"
            if self._alone is not None and self._is_kept():
                return "a request that replicas may die of runs alone here"
            if call.key in self._live:
                return "request id %d is in use on this connection" % call.request_id
            self._live[call.key] = call
            self._queue.append(call)
            if call.alone_s:
                self._alone, self._alone_until = call, float("inf")
            self._work.notify()
            if call.deadline < self._wake_at:
                self._times.notify()
        return ""

    def cancel(self, key: Key) -> None:
        """The client went: drop the call if it has not begun, else make its reply go nowhere."""
        with self._lock:
            call = self._live.get(key)
            if call is not None:
                self._close(call)

    def cancel_connection(self, connection: int) -> None:
        """Cancel every call of a connection that has ended."""
        with self._lock:
            for call in [c for c in self._live.values() if c.key[0] == connection]:
                self._close(call)

    def drain(self, refusal: str, then: Callable[[], None]) -> None:
        """Accept nothing more; call `then` when nothing is left."""
        with self._lock:
            self.accepts, self.refusal = False, refusal
            self._when_empty.append(then)
            self._settle()

    def give_up(self, refusal: str, then: Callable[[], None]) -> None:
        """Run nothing more; call `then` when what runs has ended."""
        with self._lock:
            self.accepts, self.refusal = False, refusal
            waiting = self._empty_queue()
        for call in waiting:
            self._refused(call)
        self.drain(refusal, then)

    def stop(self) -> None:
        """Let `take` return None."""
        with self._lock:
            self.accepts, self._stopped = False, True
            self._work.notify_all()

    # -- for the threads that run infer

    def take(self) -> Optional[WorkerCall]:
        """The next call, marked as running; None when the worker stops."""
        with self._lock:
            while True:
                if self.has_more:
                    call = self._queue.popleft()
                    call.is_running = True
                    self._running += 1
                    self._take_until(call.deadline)
                    return call
                if self._stopped:
                    return None
                self._idle += 1
                self._work.wait()
                self._idle -= 1

    def lacking(self) -> int:
        """The number of calls that wait for which no thread does."""
        with self._lock:
            return max(0, len(self._queue) - self._idle)

    @property
    def is_idle(self) -> bool:
        """No call is queued or runs."""
        with self._lock:
            return not self._live and self.accepts

    def hold_deadline(self, call: WorkerCall) -> None:
        """The call waits for something that its time does not count for."""
        with self._lock:
            call.deadline = float("inf")

    def restart_deadline(self, call: WorkerCall, seconds: float) -> None:
        """Its time begins now."""
        with self._lock:
            call.deadline = time.monotonic() + seconds
            self._take_until(call.deadline)
            self._times.notify()

    @property
    def has_more(self) -> bool:
        """A call waits to be taken, and may be."""
        return bool(self._queue) and not (self._queue[0].alone_s and self._running)

    def begins_alone(self, call: WorkerCall) -> None:
        """`infer` is about to be called for a call that is to run alone."""
        with self._lock:
            if call is self._alone:
                self._alone_until = time.monotonic() + call.alone_s

    def close(self, call: WorkerCall, data: bytes, over: bytes) -> bytes:
        """The call has ended: what must be sent, and then be counted by `sent`.

        That is `data`, or `over` when it was answered (504) or cancelled before. The other side counts on one of
        them: it holds the place until `infer` is really over.
        """
        with self._lock:
            answered, call.is_answered = call.is_answered, True
            self._live.pop(call.key, None)  # first, because the other side may use the id again at once
            self._sending += 1
            self._running -= 1
            if not self._running:
                self.until[process.CALLS] = 0.0
                if self._alone is not None:
                    self._work.notify()
        return over if answered else data

    def sent(self, count: int) -> None:
        """Count replies that have been sent."""
        with self._lock:
            self._sending -= count
            if not self.accepts:
                self._times.notify()
            self._settle()

    # -- for the watching thread

    def watch(self) -> None:
        """Answer calls at their deadlines, for ever."""
        while True:
            late, waiting = self._wait_for_late()
            for call in late:
                self._late(call)
            for call in waiting:
                self._refused(call)

    def _wait_for_late(self) -> Tuple[List[WorkerCall], List[WorkerCall]]:
        """Calls whose time has passed; and those that will not begin, because of one that has overrun."""
        with self._lock:
            while True:
                now = time.monotonic()
                late = [c for c in self._live.values() if not c.is_answered and c.deadline <= now]
                for call in late:
                    self._close(call)
                    call.deadline = now  # it is given its grace from here: this process may have been stopped till now
                if late:
                    return late, []
                waiting = self._check_overruns(now)
                if waiting:
                    return [], waiting
                times = [c.deadline + self.overrun_grace_s * c.is_answered for c in self._live.values()]
                self._wake_at = min((t for t in times if t > now), default=float("inf"))
                self._times.wait(min(self._wake_at - now, 3600.0))

    def _check_overruns(self, now: float) -> List[WorkerCall]:
        """A thread cannot be killed: when one has overrun and nobody else's call runs, the process must go."""
        running = [c for c in self._live.values() if c.is_running]
        over = [c for c in running if c.is_answered and now >= c.deadline + self.overrun_grace_s]
        if not over:
            return []
        self.accepts, self.refusal = False, "the replica restarts: a call overran its time"
        waiting = self._empty_queue()
        if not waiting and all(c.is_answered for c in running) and not self._sending:
            self._poisoned(over[0])
        return waiting

    # -- with the lock held

    def _is_kept(self) -> bool:
        """A call waits to run alone, or has not run alone for long enough."""
        assert self._alone is not None
        if self._live.get(self._alone.key) is not self._alone or time.monotonic() >= self._alone_until:
            self._alone = None
        return self._alone is not None

    def _take_until(self, deadline: float) -> None:
        if deadline > self.until[process.CALLS]:  # never earlier while any call runs: the latest deadline counts
            self.until[process.CALLS] = deadline

    def _empty_queue(self) -> List[WorkerCall]:
        """Take out what waits; the caller refuses it, without the lock."""
        waiting = list(self._queue)
        self._queue.clear()
        for call in waiting:
            self._live.pop(call.key, None)
        return waiting

    def _close(self, call: WorkerCall) -> None:
        call.is_answered = True
        if not call.is_running:
            self._live.pop(call.key, None)
            self._queue.remove(call)  # it must not take the place of one that somebody waits for
            self._settle()
        elif call.cancel is not None:
            call.cancel()

    def _settle(self) -> None:
        if not self._live and not self._sending:
            waiting, self._when_empty = self._when_empty, []
            for then in waiting:
                then()
