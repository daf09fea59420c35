"""One connection to one worker's Unix socket: many requests share it, and each learns at once when the worker dies."""

from __future__ import annotations

import asyncio
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import orjson

from puna.control.wire import ASLEEP, ReplicaRoute
from puna.errors import MachineError
from puna.serve.http.body import Body, Spooled
from puna.worker import protocol

RECONNECT_S = (0.02, 0.05, 0.1, 0.2, 0.5)
AHEAD = ((0.002, 16), (0.02, 4))
"""Seconds that a call takes, and how many more than run at once a worker is given when it takes less: the way there and
back takes longer than such calls, and what queues can travel together. A no-op app, 64 callers, two cores busy with
other work: none ahead 1.8k requests/s, four 3.3k; after replies travelled together, CPU time of gateway, worker and
load generator for a request, medians of three: four ahead 181 us, eight 155, sixteen 126."""
AHEAD_WEIGHT = 0.2
REFUSED_PAUSE_S = 0.25
"""How long a connection rests after a refusal; a draining replica leaves the route table sooner or hangs up."""
STALLED_S = 5.0
"""A worker that let a request's time pass unbegun gets another after so long, if it has done nothing until then: it may
have been busy with another gateway's, of whose end nothing is known here."""
CANCELLED = 64
"""Requests that are remembered when they are given up unbegun: the worker may have begun just then, and die of one."""
MAX_BUFFERED_BYTES = 4 << 20
"""Of a stream's events that wait for its client; one alone may be larger. A client that reads so much slower than the
app writes loses its stream: with what is being sent it costs twice as much at most."""
EVENT_BYTES = 64
"""What an event costs beside its own bytes."""
TAKEN_BYTES = 256 << 10
"""So much is taken at a time: what is taken waits in a transport, where it is not counted."""


class Lost(Exception):
    """The worker went away before this request's reply began: it may be tried elsewhere."""

    def __init__(self, started: bool) -> None:
        """`started`: `infer` may have been called for it, so it may have been the cause."""
        super().__init__()
        self.started = started


class Refused(Exception):
    """The worker takes nothing more and never touched this request: it goes elsewhere, as if it had not been here."""


class Unbegun(Exception):
    """The request's time passed in the worker's queue: `infer` was never called for it."""


class Reply(NamedTuple):
    """A whole reply, ready to be sent."""

    status: int
    body: bytes
    json_bytes: int = 0
    """Bytes of the body that are JSON, when tensors' bytes follow it; 0: all of it."""


OnReply = Callable[[Reply | None, BaseException | None], None]
"""Called once: with the Reply, with neither when a stream has begun, or with Lost or Refused."""


@dataclass(eq=False, slots=True)
class InFlight:
    """One request on one worker."""

    request_id: int
    on_reply: OnReply | None
    sent: float = 0.0
    """When, on the loop's clock."""
    place: int = 1
    """How many were out when it was sent, itself included."""
    is_sent: bool = True
    """The worker has all of it; a long body takes a while."""
    started: bool = False
    """`infer` has been called for it."""
    is_alone: bool = False
    """It has the worker for itself, and the worker says so before it begins."""
    found_asleep: bool = False
    """The replica slept when it came, and had to wake for it."""
    wake_s: float = 0.0
    """How long it waited for that, as the worker says."""
    woke: float = 0.0
    """When that was over, on the loop's clock."""
    on_woken: Callable[[], None] | None = None
    """Called then, when somebody asked for it."""
    ended: bool = False
    abandoned: bool = False
    """Nobody waits for it any more; it only holds its place until the worker has finished with it."""
    error: str = ""
    """Why a begun stream ended early."""
    tokens: int = 0
    """What a stream that has ended cost, as the worker says."""
    call: Any = None
    """What it is for, for as long as the worker has it."""
    _events: list[bytes] = field(default_factory=list)
    _waiting_bytes: int = 0
    _more: asyncio.Future[None] | None = None

    def take(self) -> list[bytes]:
        """The stream's next events, each one JSON: all that are here, unless they are large."""
        count = taken = 0
        for event in self._events:
            if taken >= TAKEN_BYTES:
                break
            count += 1
            taken += len(event) + EVENT_BYTES
        events = self._events[:count]
        del self._events[:count]
        self._waiting_bytes -= taken
        return events

    def more(self) -> asyncio.Future[None]:
        """Done when there is something to take, or the stream has ended."""
        self._more = asyncio.get_running_loop().create_future()
        if self._events or self.ended:
            self._more.set_result(None)
        return self._more

    def _notify(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    def _finish(self, reply: Reply | None, error: BaseException | None, text: str = "") -> None:
        """The last word: resolve whoever still waits."""
        if self.ended:
            return
        self.ended, self.error = True, text
        self._tell(reply, error)
        self._notify()

    def _tell(self, reply: Reply | None, error: BaseException | None) -> None:
        on_reply, self.on_reply = self.on_reply, None
        if on_reply is not None and not self.abandoned:
            on_reply(reply, error)


class WorkerConnection(asyncio.Protocol):
    """A replica as the gateway holds it: a connection that is made again whenever it breaks, and its requests."""

    def __init__(
        self,
        route: ReplicaRoute,
        on_change: Callable[[], None],
        on_death: Callable[[WorkerConnection, list[InFlight]], None] | None = None,
    ) -> None:
        """`on_change` is called when the connection becomes usable, loses its worker, or a place on it becomes free.

        `on_death` is called before that when the worker went away by itself, with what it may have died of.
        """
        self.route = route
        self.concurrency = route.concurrency
        self.revision = b"%d" % route.revision
        self.listed = True
        """The route table names it; an unlisted connection finishes what it has and takes nothing more."""
        self.asleep = route.tier == ASLEEP
        """As the worker says; until it has said so, as the route table says."""
        self.born = ""
        """How its process came to be: `zygote` or `spawn`."""
        self.closed = False
        """`run` has ended; this connection will not connect again."""
        self.is_reserved = False
        """It is one suspect's: nobody else is given a place."""
        self._on_change, self._on_death = on_change, on_death
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport | None = None
        self._decoder = protocol.Decoder()
        self._exchanges: dict[int, InFlight] = {}
        self._unsent: list[bytes] = []
        self._cancelled: OrderedDict[int, Any] = OrderedDict()
        self._writable = asyncio.Event()  # the worker reads as fast as long bodies are written
        self._writable.set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._call_s = 1.0  # how long a call took lately; an unknown app counts as slow
        self._hello = False
        self._greeted = False
        self._draining = False
        self._stalled: asyncio.TimerHandle | None = None
        self._next_id = 0
        self._gone = asyncio.Event()

    @property
    def replica_id(self) -> str:
        """The replica's name."""
        return self.route.id

    @property
    def usable(self) -> bool:
        """Listed, connected, and the worker has said that it is ready."""
        return self.listed and self._hello and not self._draining and self._stalled is None

    @property
    def places(self) -> int:
        """Requests that may be out at a time: as many as the worker runs, and a few more when they are short."""
        if self.is_reserved:
            return 0
        if self.asleep:
            return self.concurrency
        for below_s, ahead in AHEAD:
            if self._call_s < below_s:
                return self.concurrency + ahead
        return self.concurrency

    @property
    def calls(self) -> list[Any]:
        """The calls that it has; None for one that nobody waits for and that is not known."""
        return [exchange.call for exchange in self._exchanges.values()]

    @property
    def survived(self) -> int:
        """Requests that came here and are over."""
        return self._next_id - len(self._exchanges)

    @property
    def outstanding(self) -> int:
        """Requests that hold a place, those of vanished clients included."""
        return len(self._exchanges)

    async def run(self) -> None:
        """Stay connected while listed or while requests are out; returns when neither is so."""
        failures = 0
        while self.listed or self._exchanges:
            try:
                loop = asyncio.get_running_loop()
                self._gone.clear()
                await loop.create_unix_connection(lambda: self, self.route.socket)
            except OSError:
                await asyncio.sleep(RECONNECT_S[min(failures, len(RECONNECT_S) - 1)])
                failures += 1
                continue
            await self._gone.wait()
            # A worker that accepts and hangs up without a HELLO must not be dialled in a busy loop.
            failures = 0 if self._greeted else failures + 1
            await asyncio.sleep(RECONNECT_S[min(failures, len(RECONNECT_S) - 1)])
        self.closed = True

    def listed_as(self, route: ReplicaRoute) -> None:
        """The table names it, with these particulars."""
        self.route, self.listed, self.concurrency = route, True, route.concurrency
        if not self._hello:
            self.asleep = route.tier == ASLEEP

    def retire(self) -> None:
        """The table no longer names it: close once nothing is out."""
        self.listed = False
        self._close_if_idle()

    def close(self) -> None:
        """Hang up now; what is out is lost."""
        self.listed = False
        self._hang_up()
        self._gone.set()

    # -- requests -------------------------------------------------------------------------------------------------

    def send(self, head: dict[str, Any], body: Body, on_reply: OnReply) -> InFlight:
        """Send a request over a usable connection; `head` as protocol.REQUEST describes it."""
        self._next_id += 1
        exchange = InFlight(self._next_id, on_reply, self._loop.time(), len(self._exchanges) + 1)
        exchange.found_asleep, exchange.is_alone = self.asleep, "alone_s" in head
        self._exchanges[exchange.request_id] = exchange
        if isinstance(body, bytes):
            self._write(_request(exchange.request_id, head, body))
        else:
            exchange.is_sent = False
            pump = self._loop.create_task(self._pump(exchange, head, body))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)
        return exchange

    async def _pump(self, exchange: InFlight, head: dict[str, Any], body: Spooled) -> None:
        """Send a body from the disk, piece by piece, each when the worker has read those before."""
        offset = 0
        try:
            while not exchange.is_sent:
                piece = await body.read(offset)
                await self._writable.wait()
                if exchange.ended or exchange.abandoned:
                    return
                offset += len(piece)
                if offset < body.size:
                    self._write(protocol.encode(protocol.BODY, exchange.request_id, piece))
                else:
                    self._write(_request(exchange.request_id, head, piece))
                    exchange.is_sent = True
        except (OSError, MachineError) as error:
            self._write(protocol.encode(protocol.CANCEL, exchange.request_id))
            known = error if isinstance(error, MachineError) else MachineError(f"a body was not to be read: {error}")
            exchange._finish(None, known)
            self._forget(exchange)

    def abandon(self, exchange: InFlight) -> None:
        """The client went away or ran out of time: tell the worker; the place stays taken while `infer` runs."""
        if exchange.ended or exchange.abandoned:
            return
        exchange.abandoned = True
        self._write(protocol.encode(protocol.CANCEL, exchange.request_id))
        if not exchange.started:
            self._cancelled[exchange.request_id] = exchange.call
            if len(self._cancelled) > CANCELLED:
                self._cancelled.popitem(last=False)
            self._forget(exchange)  # should STARTED be on its way already, it takes the place back

    def stall(self) -> None:
        """It let a request's time pass without beginning: it is given nothing more before it begins or ends another."""
        if self._stalled is None:
            self._stalled = self._loop.call_later(STALLED_S, self._moves)

    def _moves(self) -> None:
        """It does something again, or might."""
        if self._forgive():
            self._on_change()

    def _forgive(self) -> bool:
        """It is not stalled any more; whether it was."""
        timer, self._stalled = self._stalled, None
        if timer is not None:
            timer.cancel()
        return timer is not None

    def _write(self, frame: bytes) -> None:
        """All frames of one turn of the loop go out together: under load a system call costs more than a frame."""
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(frame)

    def _flush(self) -> None:
        frames, self._unsent = self._unsent, []
        if self._transport is not None:
            self._transport.write(frames[0] if len(frames) == 1 else b"".join(frames))

    def pause_writing(self) -> None:
        """The worker reads more slowly than we write."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._writable.set()

    # -- what the worker says ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected; the worker's HELLO makes the connection usable."""
        # A cast: uvloop's transports do not inherit from asyncio's.
        self._transport = cast(asyncio.WriteTransport, transport)
        self._decoder, self._greeted = protocol.Decoder(), False

    def data_received(self, data: bytes) -> None:
        """Frames, or pieces of them."""
        try:
            for kind, request_id, payload in self._decoder.feed(data):
                if request_id:
                    self._about_request(kind, request_id, payload)
                else:
                    self._about_worker(kind, payload)
        except (protocol.ProtocolError, struct.error, ValueError):
            self._hang_up()

    def connection_lost(self, exc: Exception | None) -> None:
        """The worker died or hung up: unbegun requests may go elsewhere, begun streams end here."""
        exchanges = list(self._exchanges.values())
        # A worker begins with calls in the order in which they came: of the first it may have died untold.
        untold = {e for e in exchanges[: self.concurrency] if e.is_sent and not e.is_alone}
        begun = dict.fromkeys(e for e in exchanges if e.started or e in untold)
        self._writable.set()
        self._transport, self._hello, self._draining = None, False, False
        self._forgive()
        if begun and self.listed and self._on_death is not None:
            self._on_death(self, list(begun))
        self._exchanges = {}
        for exchange in exchanges:
            exchange._finish(None, Lost(exchange in begun), "the replica died after its reply had begun")
            exchange.call = None
        self._gone.set()
        self._on_change()

    def _about_worker(self, kind: int, payload: bytes) -> None:
        if kind in (protocol.HELLO, protocol.READY):
            said = orjson.loads(payload)
            if said.get("state", "ready") == "ready" or kind == protocol.READY:
                self._hello = self._greeted = True
                self.born = str(said.get("born") or "")
                self.asleep = said.get("tier", self.route.tier) == ASLEEP
                self._on_change()
        elif kind in (protocol.ASLEEP, protocol.AWAKE):
            self.asleep = kind == protocol.ASLEEP
            if self.asleep:  # what was on its way meanwhile finds it so
                for exchange in self._exchanges.values():
                    exchange.found_asleep = exchange.found_asleep or not exchange.started
            self._on_change()

    def _about_request(self, kind: int, request_id: int, payload: bytes) -> None:
        exchange = self._exchanges.get(request_id)
        if kind == protocol.STARTED:
            if exchange is None:
                exchange = self._exchanges[request_id] = InFlight(request_id, None, self._loop.time(), abandoned=True)
                exchange.call = self._cancelled.pop(request_id, None)
            exchange.started, exchange.found_asleep = True, bool(payload)
            if self._stalled is not None:  # asked for each request: the call costs more
                self._moves()
            if payload:
                self._woken(exchange, float(orjson.loads(payload).get("wake_ms", 0.0)) / 1000)
        elif exchange is None:
            return
        elif kind == protocol.REPLY:
            self._reply(exchange, Reply(*protocol.decode_reply(payload)))
        elif kind == protocol.BINARY_REPLY:
            self._reply(exchange, Reply(*protocol.decode_binary_reply(payload)))
        elif kind == protocol.BEGIN:
            exchange._tell(None, None)
        elif kind == protocol.CHUNK:
            self._chunk(exchange, payload)
        elif kind == protocol.END:
            told = orjson.loads(payload or b"{}")
            exchange.tokens = int(told.get("tokens") or 0)
            exchange._finish(None, None, str(told.get("error") or ""))
            self._forget(exchange)
            self._moves()

    def _woken(self, exchange: InFlight, wake_s: float) -> None:
        exchange.wake_s, exchange.woke = wake_s, self._loop.time()
        if exchange.on_woken is not None and not exchange.abandoned:
            exchange.on_woken()

    def _reply(self, exchange: InFlight, reply: Reply) -> None:
        if reply.status == 503 and not exchange.started:
            self._draining = True
            self._loop.call_later(REFUSED_PAUSE_S, self._rested)
            exchange._finish(None, Refused())
        elif reply.status == 504 and not exchange.started:
            exchange._finish(None, Unbegun())
        else:
            if not exchange.found_asleep:
                took_s = self._loop.time() - exchange.sent
                took_s *= self.concurrency / max(exchange.place, self.concurrency)  # it queued behind the others
                self._call_s += AHEAD_WEIGHT * (took_s - self._call_s)
            exchange._finish(reply, None)
        if reply.status == 504 and exchange.started:
            exchange.abandoned = True  # the worker says END, or ends itself, when `infer` is over
        else:
            self._forget(exchange)

    def _rested(self) -> None:
        self._draining = False
        self._on_change()

    def _chunk(self, exchange: InFlight, payload: bytes) -> None:
        if exchange.abandoned:
            return
        if exchange._events and exchange._waiting_bytes + len(payload) > MAX_BUFFERED_BYTES:
            self.abandon(exchange)
            exchange._events.clear()
            exchange._finish(None, None, "the client reads too slowly")
            return
        exchange._events.append(payload)
        exchange._waiting_bytes += len(payload) + EVENT_BYTES
        exchange._notify()

    def _forget(self, exchange: InFlight) -> None:
        if self._exchanges.pop(exchange.request_id, None) is not None:
            exchange.call = None
            self._close_if_idle()
            self._on_change()

    def _close_if_idle(self) -> None:
        if not self.listed and self.outstanding == 0:
            self._hang_up()
            self._gone.set()

    def _hang_up(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _request(request_id: int, head: dict[str, Any], body: bytes) -> bytes:
    """A REQUEST's frame; the body is copied once, here."""
    said = orjson.dumps(head)
    length = 9 + len(said) + 1 + len(body)
    return b"".join((protocol.HEADER.pack(length, protocol.REQUEST, request_id), said, b"\n", body))
