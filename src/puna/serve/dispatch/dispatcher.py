"""Bring each request to a replica: at once, or through the pending queue, and again when a replica dies with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from puna.control.domain.records import WHOLE
from puna.control.domain.states import EndpointState
from puna.control.wire import ASLEEP, AWAKE, COLD, WARM, Conviction, DeathReport, EndpointLoad, EndpointRoute
from puna.errors import DeadlineError, NotFoundError, PunaError, ReplicaDiedError, UnavailableError
from puna.serve.dispatch.call import ENDED, SENT, STREAMING, WAITING, Call, Deadlines, OnDone, SuspectGroup, Suspicion
from puna.serve.dispatch.pending_queue import PendingQueue, Waiter
from puna.serve.dispatch.poison import PATIENCE_S, Isolation, Poison, digest, probation_s
from puna.serve.dispatch.routing import Affinity, beginnings, choose
from puna.serve.dispatch.worker_connection import InFlight, Lost, Reply, Unbegun, WorkerConnection

ZYGOTE = "zygote"
OVERRUN = 504
"""A worker's answer for a call that goes on: it may still die of it."""
ATTRIBUTED_BYTES = 1 << 20
"""A larger body is not kept once its client has gone, and what dies of it then is the app's own fault."""
TOLD_S = 30.0
"""A death is reported with every report for so long: one may be lost, and a control plane that is new must know too."""
MAX_TRIES = 5
"""Replicas that may die before they began with a request, until it is given up all the same."""

# In these states no replica will come by waiting; in all others a request waits for one.
HOPELESS: dict[str, str] = {
    EndpointState.EMPTY: "has nothing deployed",
    EndpointState.BUILDING: "is being built for the first time",
    EndpointState.FAILED: "could not be deployed",
    EndpointState.FAILING: "cannot serve, its replicas keep dying",
}


class Moved(Exception):
    """The call that waits here goes on in another dispatcher."""

    def __init__(self, heir: Dispatcher) -> None:
        super().__init__()
        self.heir = heir


class Dispatcher:
    """One endpoint in this gateway: its connections, its pending queue, the requests passing through.

    Where two revisions share the requests each has a dispatcher; the second one's hangs on the first one's `split`.
    """

    def __init__(self, route: EndpointRoute, on_cold: Callable[[], None], startup_allowance_s: float) -> None:
        self.route = route
        self.connections: dict[tuple[str, int], WorkerConnection] = {}
        self.queue = PendingQueue(route.name, startup_allowance_s)
        self._least_allowance_s = startup_allowance_s
        self.split: Split | None = None
        self.heir: Dispatcher | None = None
        """Where what was accepted here goes on, once this dispatcher's revision has no share any more."""
        self.poison = Poison(route.name)
        self._isolation = Isolation(self.pump)
        self._affinity = Affinity()
        self._has_engine = False
        self._last_request = 0.0  # on the monotonic clock
        self._deaths: list[tuple[float, DeathReport]] = []  # of replicas that had requests; when, on the loop's clock
        self._on_cold = on_cold
        self._deadlines: Deadlines[Call] = Deadlines(self._late)
        self._tasks: set[asyncio.Task[None]] = set()

    def update(self, route: EndpointRoute) -> None:
        """Take a newer route: dial new replicas, retire those that are gone, wake or refuse those who wait."""
        now = asyncio.get_running_loop().time()
        if route.revision != self.route.revision:
            self.poison = Poison(route.name)  # another app dies of other things
        self.poison.learn(route.poison, route.blocked, now)
        self.route = route
        self.queue.startup_allowance_s = max(self._least_allowance_s, route.startup_timeout_s)
        self._has_engine = bool(route.schema and route.schema.get("engine"))
        listed = {(replica.id, replica.epoch): replica for replica in route.replicas}
        for key, replica in listed.items():
            if key not in self.connections or self.connections[key].closed:
                self.connections[key] = WorkerConnection(replica, self.pump, self._died)
                task = asyncio.get_running_loop().create_task(self.connections[key].run())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            self.connections[key].listed_as(replica)
        for key, connection in list(self.connections.items()):
            if key not in listed:
                connection.retire()
                if connection.outstanding == 0:
                    del self.connections[key]
        why_not = self.refusal()
        if why_not is not None:
            for waiter in self.queue:
                waiter.wake(why_not)
        self.pump()

    def retire(self, heir: Dispatcher) -> None:
        """Its revision has lost its share: who waits moves to `heir`, and what replicas have they finish."""
        self.heir = heir
        for waiter in self.queue:
            waiter.wake(Moved(heir))
        self.update(replace(self.route, replicas=()))

    def adopt(self, call: Call) -> None:
        """Go on with a call that another dispatcher had accepted: it is not refused for want of a place."""
        call.owner, call.suspicion = self, None
        call.split = self.route.revision if call.split else 0
        why_not = self.refusal()
        if why_not is not None:
            self.end(call, None, why_not)
        else:
            self._seek(call, len(self.queue) + 1)

    def refusal(self) -> PunaError | None:
        """The reason for which this endpoint takes no requests at all; None: it does."""
        route = self.route
        if not route.active:
            return UnavailableError(f"{route.name} is deactivated", f"puna activate {route.name}")
        if route.state in HOPELESS and not route.replicas:
            return UnavailableError(f"{route.name} {HOPELESS[route.state]}{route.reason and ': ' + route.reason}")
        return None

    @property
    def both(self) -> tuple[Dispatcher, ...]:
        """It, and that of a second revision which has a share."""
        return (self,) if self.split is None else (self, self.split.dispatcher)

    @property
    def ready(self) -> bool:
        """A replica is ready, busy or not."""
        for connection in self.connections.values():  # asked for each request: `any` costs thrice as much
            if connection.usable:
                return True
        return False

    @property
    def tier(self) -> str:
        """The best that a request finds now."""
        best = COLD
        for connection in self.connections.values():
            if connection.usable:
                if not connection.asleep:
                    return AWAKE
                best = ASLEEP
        return best

    @property
    def in_flight(self) -> int:
        """Requests that replicas have."""
        return sum(connection.outstanding for connection in self.connections.values())

    def pump(self) -> None:
        """Give free places to those who wait, in their order."""
        if self._isolation.connection is not None:
            self._isolation.settle(lambda: any(waiter.alone for waiter in self.queue))
        while (waiter := self.queue.first()) is not None:
            connection = self._find(waiter)
            if connection is None:
                break
            self.queue.grant(waiter, connection)
        if waiter is None:
            return
        if not self.ready:
            self.queue.turned_cold()
        elif waiter.tried or waiter.alone:  # what is no place for the first in line may be one for those behind
            for waiter in self.queue:
                connection = self._find(waiter)
                if connection is not None:
                    self.queue.grant(waiter, connection)
                elif not waiter.tried and not waiter.alone:
                    return

    def _find(self, waiter: Waiter) -> WorkerConnection | None:
        if waiter.alone:
            return self._isolation.find(self.connections.values(), waiter.tried)
        return choose(self.connections.values(), waiter.tried)

    def sweep(self, now: float) -> None:
        """End the waits that have been too long, and the suspicions that are over."""
        self.poison.sweep(now)
        for waiter in self.queue.expired(now, self.route.inference_time_s):
            waited = f"{self.route.name}: no replica was free within {now - waiter.entered_at:.0f} s"
            waiter.wake(DeadlineError(waited, f"puna scale {self.route.name} --max-replica ..."))

    def serve(self, call: Call) -> asyncio.Future[Reply | None]:
        """The whole reply, or None once a stream has begun on `call.exchange`.

        Raises:
            PunaError: it is not even taken, and why; the future has it, or ClientGone, when no reply can be had.
        """
        future: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()

        def on_done(reply: Reply | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(reply)
            else:
                future.set_exception(error)

        self.begin(call, on_done)
        return future

    def begin(self, call: Call, on_done: OnDone) -> None:
        """Bring the call to a replica; `on_done` hears how that went, perhaps before this returns.

        Raises:
            PunaError: it is not even taken, and why.
        """
        why_not = self.refusal()
        if why_not is not None:
            raise why_not
        if self.poison:
            self._check(call)
        call.owner, call.on_done = self, on_done
        self._last_request = time.monotonic()
        self._seek(call)

    def end(self, call: Call, reply: Reply | None, error: BaseException | None) -> None:
        """The call's last word; harmless when it was said before."""
        if call.stage is ENDED:
            return
        on_done, call.on_done = call.on_done, None
        if call.suspicion is not None and reply is not None and reply.status != OVERRUN:
            self.poison.lived(call.suspicion.digest)
        self.leave(call)
        self._last_request = time.monotonic()
        if on_done is not None:
            on_done(reply, error)

    def leave(self, call: Call) -> None:
        """Nobody waits for the call any more: give back what it holds."""
        stage, call.stage = call.stage, ENDED
        if stage is WAITING:
            if call.waiter is not None:
                self.queue.leave(call.waiter)
                self._waited(call)
        elif stage is not ENDED:
            self._deadlines.remove(call)
            assert call.connection is not None and call.exchange is not None
            call.timed(asyncio.get_running_loop().time())
            if call.suspicion is not None and stage is STREAMING:
                if call.exchange.ended and not call.exchange.error:
                    self.poison.lived(call.suspicion.digest)
            if isinstance(call.body, bytes) and len(call.body) > ATTRIBUTED_BYTES:  # of a file the hash is kept
                call.exchange.call = None
            call.connection.abandon(call.exchange)

    def _seek(self, call: Call, max_queue: int | None = None) -> None:
        """To a replica with a free place, or else into the pending queue."""
        call.stage = WAITING
        connection = self._choose(call) if not len(self.queue) else None
        if connection is not None:
            self._send(call, connection)
            return
        call.tier = self.tier
        cold = call.tier == COLD
        entered = asyncio.get_running_loop().time()
        wake = partial(self._woken, call)
        limit = self.route.max_queue if max_queue is None else max_queue
        call.waiter = self.queue.enter(entered, wake, cold=cold, max_queue=limit, tried=call.tried, key=call.key)
        call.waiter.asleep = call.tier == ASLEEP
        if call.is_suspect:
            call.waiter.alone = True
        if cold:
            self._on_cold()

    def _choose(self, call: Call) -> WorkerConnection | None:
        if call.is_suspect:
            return self._isolation.find(self.connections.values(), call.tried)
        # Only an engine's replica remembers what it has read.
        if (
            self._has_engine
            and sum(connection.usable and not connection.asleep for connection in self.connections.values()) > 1
        ):
            body = call.body
            call.beginnings = call.beginnings or beginnings(body if isinstance(body, bytes) else body.beginning)
            return self._affinity.choose(self.connections.values(), call.beginnings, call.tried)
        return choose(self.connections.values(), call.tried)

    def _woken(self, call: Call, error: BaseException | None) -> None:
        """The wait is over: a replica has a place, or there will be none, or it goes on elsewhere."""
        if isinstance(error, Moved):
            assert call.waiter is not None
            self.queue.leave(call.waiter)
            self._waited(call)
            error.heir.adopt(call)
            return
        if error is not None:
            self.end(call, None, error)
            return
        assert call.waiter is not None and isinstance(call.waiter.granted, WorkerConnection)
        connection, was_alone = call.waiter.granted, call.waiter.alone
        self._waited(call)
        try:
            if self.poison:
                self._check(call)
            if call.is_suspect and not was_alone:  # since it came, a replica has died with an equal one
                self._seek(call, len(self.queue) + 1)
            else:
                self._send(call, connection)
        except PunaError as why_not:
            self.end(call, None, why_not)

    @staticmethod
    def _waited(call: Call) -> None:
        waiter, call.waiter = call.waiter, None
        assert waiter is not None
        call.queued_s += asyncio.get_running_loop().time() - waiter.entered_at
        call.cold = call.cold or waiter.cold

    def _send(self, call: Call, connection: WorkerConnection) -> None:
        """Hand the call to a replica, which has `inference_time_s` for it."""
        limit_s = self.route.inference_time_s
        head: dict[str, Any] = {
            "path": call.path,
            "deadline_s": limit_s,
            "trace": call.trace,
            "model_name": call.endpoint,
            "model_version": call.version,
        }
        if call.adapter is not None:
            head["adapter"] = call.adapter
        if call.json_bytes:
            head["json_bytes"] = call.json_bytes
        suspicion = call.suspicion if call.is_suspect else None
        if suspicion is not None:
            head["alone_s"] = probation_s(suspicion.age_s)  # other gateways have requests for this replica too
        if call.cold:
            call.tier = WARM if connection.born == ZYGOTE else COLD
        elif not call.tier:
            call.tier = AWAKE
        if call.beginnings:
            self._affinity.served(call.beginnings, connection.replica_id)
        call.stage, call.connection = SENT, connection
        call.exchange = connection.send(head, call.body, partial(self._on_reply, call))
        call.sent, call.exchange.call = call.exchange.sent, call
        if suspicion is not None:
            self._isolation.seat(call.exchange, suspicion.group, suspicion.age_s)
        self._deadlines.add(call, call.sent + limit_s)

    def _on_reply(self, call: Call, reply: Reply | None, error: BaseException | None) -> None:
        """Handle the outcome of a sent call: a reply, the beginning of a stream, or the need to try elsewhere."""
        if error is None:
            if reply is not None:
                self.end(call, reply, None)
                return
            call.stage = STREAMING
            call.timed(asyncio.get_running_loop().time())
            on_done, call.on_done = call.on_done, None
            if on_done is not None:
                on_done(None, None)
            return
        self._deadlines.remove(call)
        if isinstance(error, PunaError):
            self.end(call, None, error)
            return
        assert call.connection is not None
        if isinstance(error, Unbegun):
            self._unbegun(call)
            return
        if isinstance(error, Lost):
            call.tried += (call.connection.replica_id,)
            call.lost += 1
            call.deaths += error.started
        try:
            if call.deaths > call.most_deaths or call.lost > MAX_TRIES:
                message = f"{self.route.name}: {call.lost} replicas died with this request"
                raise ReplicaDiedError(message, f"puna logs {self.route.name}")
            if self.poison:
                self._check(call)
            if self.heir is not None:
                self.heir.adopt(call)
            else:
                self._seek(call)
        except PunaError as why_not:
            self.end(call, None, why_not)

    # -- deaths ----------------------------------------------------------------------------------------------------

    def _check(self, call: Call) -> None:
        """Refuse what is known to kill, and put what may under suspicion.

        Raises:
            PoisonError: replicas die of this body.
            RateLimitError: they die of this key's bodies.
        """
        now = asyncio.get_running_loop().time()
        self.poison.check_key(call.key, now)
        found = call.suspicion.digest if call.suspicion else _digest(call)
        suspect = self.poison.check(found, now)
        if suspect is not None and call.suspicion is None:
            call.suspicion = Suspicion(found, suspect.age_s, SuspectGroup([call]))

    def _died(self, connection: WorkerConnection, begun: list[InFlight]) -> None:
        """A replica has died by itself, with these: put them under suspicion, or find one guilty."""
        now = asyncio.get_running_loop().time()
        key = ""
        group, culprit = SuspectGroup(), begun[0] if len(begun) == 1 else self._isolation.guest
        for exchange in begun:
            call = exchange.call
            if call is None:  # it was given up long before `infer` was called for it, or is too large to be kept
                continue
            before = call.suspicion
            if culprit is not None and exchange is not culprit and culprit in begun:
                call.deaths -= 1
                continue
            age_s = now - exchange.sent
            found = before.digest if before else _digest(call)
            self.poison.died(found, now, age_s, alone=len(begun) == 1)
            call.suspicion = Suspicion(found, age_s, group, is_proved=len(begun) == 1)
            group.calls.append(call)
            if exchange is culprit and before is not None:
                self._acquit(before.group, call)
            if len(begun) == 1:
                key = call.key
        if all(call.deaths == 0 for call in group.calls):
            group.patience_s = PATIENCE_S  # next time they will be tried one by one to the end
        if not group.calls:
            return
        self._deaths = [(at, death) for at, death in self._deaths if now - at < TOLD_S]
        death = DeathReport(connection.route.id, connection.route.revision, connection.survived, key)
        self._deaths.append((now, death))
        self._on_cold()

    def _acquit(self, group: SuspectGroup, culprit: Call) -> None:
        """A replica that died with all of these has died of one."""
        assert culprit.suspicion is not None
        for call in group.calls:
            if call is not culprit and call.suspicion is not None and call.suspicion.group is group:
                call.deaths -= 1
                if call.suspicion.digest != culprit.suspicion.digest:
                    self.poison.lived(call.suspicion.digest)
        group.release()

    def _late(self, call: Call) -> None:
        limit_s, exchange = self.route.inference_time_s, call.exchange
        if exchange is not None and exchange.found_asleep:
            # Waking is not counted. Asked only now: most calls end sooner, and what a reply costs matters more.
            exchange.on_woken = partial(self._late, call)
            at = (exchange.woke if exchange.started else call.sent + self.queue.startup_allowance_s) + limit_s
            if at > asyncio.get_running_loop().time():
                self._deadlines.add(call, at)
                return
            if not exchange.started:
                call.abort(DeadlineError(f"{call.endpoint}: its replica did not wake", f"puna logs {call.endpoint}"))
                return
        if exchange is not None and not exchange.started and call.stage is SENT:
            self._unbegun(call)
        else:
            call.abort(too_long(call.endpoint, limit_s))

    def _unbegun(self, call: Call) -> None:
        """Its replica may be sick, or lost in a long call of somebody else: it goes on elsewhere, once."""
        assert call.connection is not None and call.exchange is not None
        call.connection.stall()
        if call.moved:
            call.abort(too_long(call.endpoint, self.route.inference_time_s))
            return
        call.moved = True
        if any(connection.usable for connection in self.connections.values()):
            call.tried += (call.connection.replica_id,)  # it is not to wait there a second time
        call.connection.abandon(call.exchange)
        try:
            if self.heir is not None:
                self.heir.adopt(call)
            else:
                self._seek(call)
        except PunaError as why_not:
            self.end(call, None, why_not)

    def close(self) -> None:
        """The endpoint is gone: refuse those who wait, finish what is in flight."""
        for waiter in self.queue:
            waiter.wake(NotFoundError(f"{self.route.name} was deleted"))
        for connection in self.connections.values():
            connection.retire()

    def load(self) -> EndpointLoad:
        """This dispatcher's part of a load report."""
        busy = {connection.replica_id: connection.outstanding for connection in self.connections.values()}
        for key in [
            key for key, connection in self.connections.items() if not connection.listed and connection.outstanding == 0
        ]:
            del self.connections[key]
        now = asyncio.get_running_loop().time()
        return EndpointLoad(
            sum(busy.values()),
            len(self.queue),
            self._last_request,
            busy,
            deaths=tuple(death for at, death in self._deaths if now - at < TOLD_S),
            poison=tuple(Conviction(self.route.revision, *found) for found in self.poison.convicted(now).items()),
        )


@dataclass
class Split:
    """A second revision that shares an endpoint's requests: its dispatcher, and whose turn it is.

    Turns are spread evenly, and of each hundred requests it gets exactly its share.
    """

    dispatcher: Dispatcher
    percent: int
    _turn: int = 0

    def pick(self, first: Dispatcher, call: Call, asked: str) -> Dispatcher:
        """Pick for the call the revision that it asked for, if that has a share, else the one whose turn it is."""
        if asked and asked in (str(first.route.revision), str(self.dispatcher.route.revision)):
            is_second = asked == str(self.dispatcher.route.revision)
        else:
            self._turn += self.percent
            is_second = self._turn >= WHOLE
            self._turn -= WHOLE * is_second
        dispatcher = self.dispatcher if is_second else first
        call.split = dispatcher.route.revision
        return dispatcher


def _digest(call: Call) -> str:
    body = call.body if isinstance(call.body, bytes) else call.body.fingerprint
    return digest(call.path, body, call.adapter["name"] if call.adapter else "")


def too_long(endpoint: str, limit_s: float) -> DeadlineError:
    """`infer` has used up its time."""
    return DeadlineError(f"{endpoint}: no reply within inference_time ({limit_s:g} s)")
