"""Brings each request to a replica: at once, or through the waiting room, and once more when a replica dies with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from puna.deploy.states import EndpointState
from puna.errors import DeadlineError, NotFoundError, PunaError, ReplicaDiedError, UnavailableError
from puna.serve.link import Exchange, Link, Lost, Refused, Reply
from puna.serve.routes_table import EndpointRoute, Table
from puna.serve.routing import choose
from puna.serve.waiting_room import STARTUP_ALLOWANCE_S, Ticket, WaitingRoom

MAX_TRIES = 5
"""Replicas that may die before they began with a request, until it is given up all the same."""

# In these states no replica will come by waiting; in all others a request waits for one.
HOPELESS: dict[str, str] = {
    EndpointState.EMPTY: "has nothing deployed",
    EndpointState.BUILDING: "is being built for the first time",
    EndpointState.FAILED: "could not be deployed",
    EndpointState.FAILING: "cannot serve, its replicas keep dying",
}


class ClientGone(Exception):
    """The client hung up: nobody waits for an answer."""


@dataclass(eq=False)
class Call:
    """One request on its way through the gateway."""

    endpoint: str
    path: str
    """As protocol.REQUEST lists them."""
    body: bytes
    trace: str
    version: str = "1"
    adapter: Mapping[str, str] | None = None
    """The LoRA that the engine is to answer with: its name and path."""
    cold: bool = False
    """It waited while no replica was ready."""
    queued_s: float = 0.0
    infer_s: float = 0.0
    link: Link | None = None
    exchange: Exchange | None = None
    timer: asyncio.TimerHandle | None = None
    """Ends a begun stream at its limit."""
    _aborted: BaseException | None = None
    _pending: asyncio.Future[Any] | None = None

    async def hold(self, future: asyncio.Future[Any]) -> Any:
        """Wait for `future`, or for `abort`, whichever comes first."""
        if self._aborted is not None:
            raise self._aborted
        self._pending = future
        try:
            return await future
        finally:
            self._pending = None

    def abort(self, error: BaseException) -> None:
        """End the call with `error`, wherever it is."""
        self._aborted = self._aborted or error
        if self._pending is not None and not self._pending.done():
            self._pending.set_exception(error)

    def leave(self) -> None:
        """Nobody waits for the reply any more; harmless when it has ended."""
        if self.timer is not None:
            self.timer.cancel()
        if self.link is not None and self.exchange is not None:
            self.link.abandon(self.exchange)


@dataclass
class Tally:
    """What a lane has seen since the gateway began; times are Unix seconds."""

    requests_total: int = 0
    last_request: float = 0.0
    cold_s: list[float] = field(default_factory=list)
    """Cold waits since the last report."""


class Lane:
    """One endpoint in this gateway: its links, its waiting room, the requests passing through."""

    def __init__(self, route: EndpointRoute, on_cold: Callable[[], None], startup_allowance_s: float) -> None:
        self.route = route
        self.links: dict[tuple[str, int], Link] = {}
        self.room = WaitingRoom(route.name, startup_allowance_s)
        self.tally = Tally()
        self._on_cold = on_cold
        self._tasks: set[asyncio.Task[None]] = set()

    def update(self, route: EndpointRoute) -> None:
        """Take a newer route: dial new replicas, retire those that are gone, wake or refuse those who wait."""
        self.route = route
        listed = {(replica.id, replica.epoch): replica for replica in route.replicas}
        for key, replica in listed.items():
            if key not in self.links or self.links[key].closed:
                self.links[key] = Link(replica, self.pump)
                task = asyncio.get_running_loop().create_task(self.links[key].run())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            self.links[key].listed = True
            self.links[key].concurrency = replica.concurrency
        for key, link in list(self.links.items()):
            if key not in listed:
                link.retire()
                if link.outstanding == 0:
                    del self.links[key]
        why_not = self.refusal()
        if why_not is not None:
            for ticket in self.room:
                ticket.wake(why_not)
        self.pump()

    def refusal(self) -> PunaError | None:
        """Why this endpoint takes no requests at all; None: it does."""
        route = self.route
        if not route.active:
            return UnavailableError(f"{route.name} is deactivated", f"puna activate {route.name}")
        if route.state in HOPELESS and not route.replicas:
            return UnavailableError(f"{route.name} {HOPELESS[route.state]}{route.reason and ': ' + route.reason}")
        return None

    @property
    def ready(self) -> bool:
        """A replica is ready, busy or not."""
        return any(link.usable for link in self.links.values())

    @property
    def in_flight(self) -> int:
        """Requests that replicas have."""
        return sum(link.outstanding for link in self.links.values())

    def pump(self) -> None:
        """Give free places to those who wait, the first in line first."""
        if not len(self.room):
            return
        if not self.ready:
            self.room.turned_cold()
            return
        for ticket in self.room:
            link = choose(self.links.values(), ticket.tried)
            if link is not None:
                self.room.leave(ticket)
                link.reserve()
                ticket.granted = link
                ticket.wake(None)
            elif not ticket.tried:
                return  # nothing is free: those behind need not ask

    def sweep(self, now: float) -> None:
        """End the waits that have been too long."""
        for ticket in self.room.expired(now, self.route.inference_time_s):
            waited = f"{self.route.name}: no replica was free within {now - ticket.entered_at:.0f} s"
            ticket.wake(DeadlineError(waited, f"puna scale {self.route.name} --max-replica ..."))

    async def serve(self, call: Call) -> Reply | None:
        """The whole reply, or None once a stream has begun on `call.exchange`.

        Raises:
            PunaError: no reply can be had, and why.
            ClientGone: nobody waits for it.
        """
        why_not = self.refusal()
        if why_not is not None:
            raise why_not
        self.tally.requests_total += 1
        self.tally.last_request = time.time()
        tried: list[str] = []
        deaths = 0
        try:
            while True:
                call.link = await self._turn(call, tried)
                try:
                    return await self._exchange(call, call.link)
                except Refused:
                    continue
                except Lost as lost:
                    tried.append(call.link.replica_id)
                    deaths += lost.started
                    if deaths > 1 or len(tried) > MAX_TRIES:
                        message = f"{self.route.name}: {len(tried)} replicas died with this request"
                        raise ReplicaDiedError(message, f"puna logs {self.route.name}") from None
        finally:
            self.tally.last_request = time.time()

    async def _turn(self, call: Call, tried: list[str]) -> Link:
        """A replica with a place reserved for this call."""
        if not len(self.room):
            link = choose(self.links.values(), tried)
            if link is not None:
                link.reserve()
                return link
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def wake(error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        cold = not self.ready
        entered = loop.time()
        ticket = self.room.enter(entered, wake, cold=cold, max_queue=self.route.max_queue, tried=tuple(tried))
        if cold:
            self._on_cold()
        try:
            await call.hold(future)
            assert isinstance(ticket.granted, Link)
            return ticket.granted
        except BaseException:  # raised again: only the place in the queue is given back here
            self._give_up(ticket)
            raise
        finally:
            call.queued_s += loop.time() - entered
            if ticket.cold and not call.cold:
                call.cold = True
                self.tally.cold_s.append(call.queued_s)

    def _give_up(self, ticket: Ticket) -> None:
        self.room.leave(ticket)
        if isinstance(ticket.granted, Link):
            ticket.granted.release()
            self.pump()

    async def _exchange(self, call: Call, link: Link) -> Reply | None:
        """Send the call over `link` and wait for its reply, `inference_time_s` at most."""
        loop = asyncio.get_running_loop()
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
        began = loop.time()
        call.exchange = link.send(head, call.body)
        timer = loop.call_later(limit_s, call.abort, too_long(call.endpoint, limit_s))
        begun = False
        try:
            reply: Reply | None = await call.hold(call.exchange.outcome)
            begun = reply is None
            return reply
        finally:
            call.infer_s = loop.time() - began
            if begun:
                call.timer = timer  # the stream runs against the same limit; whoever ends it cancels the timer
            else:
                timer.cancel()
                call.leave()

    def close(self) -> None:
        """The endpoint is gone: refuse those who wait, finish what is in flight."""
        for ticket in self.room:
            ticket.wake(NotFoundError(f"{self.route.name} was deleted"))
        for link in self.links.values():
            link.retire()

    def load(self) -> dict[str, Any]:
        """This lane's part of a load report."""
        cold, self.tally.cold_s = self.tally.cold_s, []
        busy = {link.replica_id: link.outstanding for link in self.links.values()}
        for key in [key for key, link in self.links.items() if not link.listed and link.outstanding == 0]:
            del self.links[key]
        return {
            "in_flight": sum(busy.values()),
            "queued": len(self.room),
            "last_request": self.tally.last_request,
            "requests_total": self.tally.requests_total,
            "replicas": busy,
            "cold": cold,
        }


def too_long(endpoint: str, limit_s: float) -> DeadlineError:
    """`infer` has used up its time."""
    return DeadlineError(f"{endpoint}: no reply within inference_time ({limit_s:g} s)")


class Lanes:
    """All endpoints of one gateway."""

    def __init__(self, on_cold: Callable[[], None], startup_allowance_s: float = STARTUP_ALLOWANCE_S) -> None:
        """`on_cold` is called when a request has to wait with no replica ready."""
        self.by_name: dict[str, Lane] = {}
        self._on_cold = on_cold
        self._startup_allowance_s = startup_allowance_s
        self._closing: list[Lane] = []

    def update(self, table: Table) -> None:
        """Take a newer table."""
        for name, route in table.endpoints.items():
            if name not in self.by_name:
                self.by_name[name] = Lane(route, self._on_cold, self._startup_allowance_s)
            self.by_name[name].update(route)
        for name in [name for name in self.by_name if name not in table.endpoints]:
            lane = self.by_name.pop(name)
            lane.close()
            self._closing.append(lane)
        self._closing = [lane for lane in self._closing if lane.in_flight]

    def find(self, name: str) -> Lane:
        """The lane of an endpoint.

        Raises:
            NotFoundError: no endpoint of that name.
        """
        lane = self.by_name.get(name)
        if lane is None:
            raise NotFoundError(f"no endpoint is named {name!r}", "puna ps")
        return lane

    def sweep(self, now: float) -> None:
        """End waits that have been too long; `now` on the loop's clock."""
        for lane in self.by_name.values():
            lane.sweep(now)

    def load(self) -> dict[str, Any]:
        """The endpoints' part of a load report."""
        return {name: lane.load() for name, lane in self.by_name.items()}
