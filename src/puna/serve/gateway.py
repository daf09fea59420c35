"""The gateway: one raw ASGI application that answers inference itself and passes the rest to the control plane."""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import orjson

from puna import __version__
from puna.control import wire
from puna.control.wire import EndpointLoad, KeyRoute, LoadReport, Memories, RouteTable
from puna.errors import (
    ForbiddenError,
    MethodError,
    NotFoundError,
    PunaError,
    ReplicaDiedError,
    UnauthorizedError,
    UsageError,
)
from puna.serve.admission import Admission
from puna.serve.counts import CONTENT_TYPE, RequestCounts
from puna.serve.dispatch.call import REVISION, Call
from puna.serve.dispatch.dispatcher import Dispatcher
from puna.serve.dispatch.endpoint_pool import EndpointPool
from puna.serve.dispatch.pending_queue import STARTUP_ALLOWANCE_S
from puna.serve.dispatch.worker_connection import Reply
from puna.serve.http import asgi, delivery
from puna.serve.http.asgi import CLIENT_GONE, ClientGone, Receive, Scope, Send
from puna.serve.http.body import MOST_FILES, Spool
from puna.serve.http.connection import Request
from puna.serve.http.forward import MOST_OPEN, ControlPlane, Follower
from puna.serve.http.health import PATHS as PROBES
from puna.serve.http.health import HealthCheck
from puna.serve.limits import KeyLimiter
from puna.serve.openai import PREFIX as OPENAI
from puna.serve.openai import OpenAI

OWN = ("/v2", OPENAI)
METRICS = "/metrics"
LIVE_VERSION = "1"
"""What the platform's addresses say of every version: the one that serves."""
MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(?:/(infer|generate_stream|ready))?/?")
TRACE = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
MAX_BODY_BYTES = 100 * 1024 * 1024
REPORT_EVERY_S = 0.5
LAST_WORD_S = 2.0
FIRST_TABLE_S = 20.0
"""Longer than it takes to replace a control plane that hangs; other gateways serve meanwhile, with their own table."""


@dataclass(frozen=True)
class GatewaySettings:
    """Settings of one gateway process."""

    control_socket: Path
    id: str = ""
    max_body_bytes: int = MAX_BODY_BYTES
    startup_allowance_s: float = STARTUP_ALLOWANCE_S
    spool: Path | None = None
    """The folder for large bodies while their requests wait; None: where temporary files are."""
    most_spooled: int = MOST_FILES
    """So many of them at a time."""
    most_forwarded: int = MOST_OPEN
    """So many requests to the control plane at a time."""
    memories: Memories = wire.NONE
    """Where the gateways of this port keep their figures; this one's is at `index`."""
    index: int = 0
    limits_fd: int = -1
    """Where they count what keys with limits ask for; -1: this is the only one."""
    cors_origins: tuple[str, ...] = ()
    """Sites whose pages may call inference; `*` is all of them."""


class Gateway:
    """An ASGI application; its lifespan starts and stops what it does in the background."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.id = settings.id or uuid.uuid4().hex[:8]
        self.spool = Spool(settings.spool or Path(tempfile.gettempdir()), settings.most_spooled)
        self.counts = RequestCounts(settings.memories, settings.index)
        self.control = ControlPlane(settings.control_socket, self._knows, settings.most_forwarded)
        self.has_cors = bool(settings.cors_origins)
        self._inference = asgi.allowing(self._own, settings.cors_origins)
        self._report_now = asyncio.Event()
        self.pool = EndpointPool(self._report_now.set, settings.startup_allowance_s)
        self.limits = KeyLimiter(settings.limits_fd, settings.index)
        self.admission = Admission(self.pool, self.limits, self.counts)
        self.openai = OpenAI(self.admission, self.spool, settings.max_body_bytes)
        self._follower = Follower(self.control.fetch, self._use, self.id)
        self.health = HealthCheck(self.control.health, self.pool, self._follower)
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._numbers = 0
        self._trace_prefix = uuid.uuid4().hex[:10]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's event, as ASGI has it."""
        if scope["type"] == "http":
            path = scope["path"]
            if path.startswith(OWN):
                await self._inference(scope, receive, send)
            elif path in PROBES or path == METRICS:
                await self._answer(scope, receive, send)
            else:
                await self.control.forward(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _own(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Inference, and what is asked about it: what pages of other sites may call, where that was allowed."""
        if scope["path"].startswith(OPENAI):
            await self.openai.answer(scope, receive, send, self._trace(asgi.header(scope, b"x-request-id")))
        else:
            await self._answer(scope, receive, send)

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Follow the route table and report the load, from now on; returns once there is a table, or soon after."""
        loop = self._loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._follower.run()), loop.create_task(self._report())]
        try:
            # The listening socket queues connections meanwhile: a restarted gateway refuses nobody.
            await asyncio.wait_for(self._follower.first.wait(), FIRST_TABLE_S)
        except TimeoutError:
            return

    def wind_down(self) -> None:
        """The process was told to stop: end what would go on for ever. From a signal handler."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.control.wind_down)

    async def stop(self) -> None:
        """End what `start` began."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(OSError, TimeoutError):  # the control plane is gone as well: nobody takes the rest
            await asyncio.wait_for(self._tell(self.pool.load(), at_once=True), LAST_WORD_S)
        for dispatcher in self.pool:
            for connection in dispatcher.connections.values():
                connection.close()
        await self.control.close()
        self.spool.close()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self.start()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _use(self, table: RouteTable) -> None:
        self.admission.access.use({key.id: key for key in table.keys})
        self.pool.update(table)
        self.counts.replicas(table)

    async def _report(self) -> None:
        """Tell the control plane the load twice a second, and at once when somebody waits for a replica to start."""
        loop = asyncio.get_running_loop()
        while True:
            self.pool.sweep(loop.time())
            self.health.look(loop.time())
            loads = self.pool.load()
            self.counts.loads(loads)
            self.counts.flush()
            self._report_now.clear()
            try:
                await self._tell(loads)
            except OSError:
                # The control plane is down; its successor gets the next report.
                await asyncio.sleep(REPORT_EVERY_S / 5)
                continue
            try:
                await asyncio.wait_for(self._report_now.wait(), REPORT_EVERY_S)
            except TimeoutError:
                continue

    async def _tell(self, loads: Mapping[str, EndpointLoad], *, at_once: bool = False) -> None:
        now = time.time()
        usage = self.counts.usage(now, at_once=at_once)
        report = LoadReport(self.id, time.monotonic(), loads, usage)
        await self.control.fetch("POST", "/internal/load", wire.encode(report))
        if usage is not None:
            self.counts.usage_arrived()

    # -- requests ----------------------------------------------------------------------------------------------------

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        match = MODEL.fullmatch(scope["path"])
        name, version, verb = match.groups() if match else ("", None, None)
        is_call = verb in ("infer", "generate_stream")
        call = Call(name, verb or "", b"", self._trace(asgi.header(scope, b"x-request-id")), version or LIVE_VERSION)
        try:
            if is_call and scope["method"] == "POST":
                status = await self._infer(scope, receive, send, call)
            else:
                status = await self._about(scope, send, call)
        except PunaError as error:
            status = error.http_status
            await asgi.refuse(send, error, delivery.headers(call))
        except ClientGone:
            status = CLIENT_GONE
        finally:
            self.admission.leave(call)
        if is_call and scope["method"] == "POST":
            self.admission.count(call, status, began)

    def infer(self, request: Request) -> Callable[[], None]:
        """One inference request that has arrived whole, without a task of its own; what `_infer` is for the others."""
        began = time.perf_counter()
        call = Call(request.name, "infer", request.body, self._trace(request.trace))

        def on_done(reply: Reply | None, error: BaseException | None) -> None:
            self.admission.leave(call)
            if reply is not None:
                status = reply.status
                request.reply(status, delivery.reply_headers(call, reply), reply.body)
            elif isinstance(error, ClientGone):
                status = CLIENT_GONE
            else:
                known = error if isinstance(error, PunaError) else ReplicaDiedError(f"{call.endpoint}: {error}")
                status, headers, body = asgi.refusal(known)
                request.reply(status, [*headers, *delivery.headers(call)], body)
            self.admission.count(call, status, began)

        try:
            key = self.admission.access.check(request.authorization, time.time(), call.endpoint)
            if len(call.body) > self.settings.max_body_bytes:
                raise asgi.too_large(self.settings.max_body_bytes)
            dispatcher = self.admission.dispatcher(call, request.header(REVISION))
            self.admission.enter(call, key)
            dispatcher.begin(call, on_done)
        except PunaError as error:
            on_done(None, error)
        return partial(call.abort, ClientGone())

    def _trace(self, given: str) -> str:
        self._numbers += 1
        return given if given and TRACE.fullmatch(given) else f"{self._trace_prefix}-{self._numbers:x}"

    def _permit(self, scope: Scope, endpoint: str) -> KeyRoute:
        """The request's key, which may use `endpoint`; empty: all of them."""
        return self.admission.access.check(asgi.header(scope, b"authorization"), time.time(), endpoint)

    async def _infer(self, scope: Scope, receive: Receive, send: Send, call: Call) -> int:
        """One inference request from its first byte to its last; returns the status."""
        key = self._permit(scope, call.endpoint)
        self._version(self.pool.find(call.endpoint), call)  # refused before its body is read
        self.admission.enter(call, key)
        call.path = "stream" if call.path == "generate_stream" else "infer"
        async with self.spool.body(scope, receive, self.settings.max_body_bytes) as call.body:
            return await self._pass_on(scope, receive, send, call)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, call: Call) -> int:
        """An inference request that has arrived, to its endpoint; returns the status."""
        call.json_bytes = _json_bytes(scope, call)
        asked = asgi.header(scope, REVISION) or ("" if call.version == LIVE_VERSION else call.version)
        dispatcher = self.admission.dispatcher(call, asked)
        with delivery.watched(receive, call):
            if call.path == "stream":
                return await delivery.streamed(send, call, dispatcher, _failed)
            reply = await dispatcher.serve(call)
            assert reply is not None, "only a stream begins without its reply"
            return await delivery.whole(send, call, reply)

    @staticmethod
    def _version(dispatcher: Dispatcher, call: Call) -> None:
        """Refuse a version that does not serve; `1` is whichever does, as in the platform's addresses."""
        served = _versions(dispatcher)
        if call.version != LIVE_VERSION and call.version not in served:
            message = f"{call.endpoint} has no version {call.version} that serves"
            raise NotFoundError(message, f"leave /versions/{call.version} out, or ask for {' or '.join(served) or 1}")

    def _knows(self, authorization: str) -> bool:
        """True if this is a key, whatever it may do."""
        try:
            self.admission.access.check(authorization, time.time())
        except ForbiddenError:
            return True
        except UnauthorizedError:
            return False
        return True

    # -- about -------------------------------------------------------------------------------------------------------

    async def _about(self, scope: Scope, send: Send, call: Call) -> int:
        """Health, metadata and metrics: everything here that is not inference."""
        path, method, name, verb = scope["path"].rstrip("/"), scope["method"], call.endpoint, call.path
        takes = asgi.CALL if verb in ("infer", "generate_stream") else asgi.READ
        if not (name or path in PROBES or path in ("/v2", METRICS)):
            raise NotFoundError(f"{path} is not known here", "POST /v2/models/<name>/infer")
        if method == "OPTIONS":
            return await asgi.options(send, takes)
        if method not in takes:
            raise MethodError(f"{path} takes no {method}", f"send {takes[0]}", allow=takes)
        if path in PROBES:
            return await _say(send, *await self.health.answer(path))
        if path == "/v2":
            extensions = ["generate_stream", "binary_tensor_data"]
            return await _say(send, 200, {"name": "puna", "version": __version__, "extensions": extensions})
        if path == METRICS:
            self._permit(scope, "")
            self.counts.flush()
            text = await asyncio.to_thread(self.counts.text)
            await asgi.reply(send, 200, text, [(b"content-type", CONTENT_TYPE.encode())])
            return 200
        self._permit(scope, name)
        dispatcher = self.pool.find(name)
        self._version(dispatcher, call)
        if verb == "ready":
            ready = any(one.ready for one in dispatcher.both)
            return await _say(send, 200 if ready else 503, {"ready": ready, "state": dispatcher.route.state})
        return await _say(send, 200, _metadata(dispatcher))


def _json_bytes(scope: Scope, call: Call) -> int:
    """Bytes of the body that are JSON, when tensors' bytes follow it; 0: all of it.

    Raises:
        UsageError: the header says more than there is.
    """
    told = asgi.header(scope, asgi.JSON_BYTES)
    if not told:
        return 0
    if not told.isdigit() or not 0 < int(told) <= len(call.body):
        raise UsageError(f"inference-header-content-length is {told[:40]!r}, of a body of {len(call.body)} bytes")
    return int(told)


def _failed(error: str) -> bytes:
    return orjson.dumps({"error": error})


async def _say(send: Send, status: int, body: dict[str, object]) -> int:
    await asgi.reply(send, status, orjson.dumps(body))
    return status


def _metadata(dispatcher: Dispatcher) -> dict[str, object]:
    """KServe v2's model metadata; shapes and types as the app's input_schema.py states them."""
    schema = dispatcher.route.schema or {}
    inputs, outputs = _tensors(schema.get("inputs")), _tensors(schema.get("outputs"))
    told = {"name": dispatcher.route.name, "versions": _versions(dispatcher), "platform": "puna"}
    return {**told, "inputs": inputs, "outputs": outputs}


def _versions(dispatcher: Dispatcher) -> list[str]:
    """The revisions that serve."""
    return [str(one.route.revision) for one in dispatcher.both if one.route.revision]


def _tensors(items: Sequence[Mapping[str, object]] | None) -> list[dict[str, object]]:
    """Names, types and shapes; the platform's STRING is BYTES on the wire."""
    return [
        {"name": i.get("name"), "datatype": str(i.get("datatype")).replace("STRING", "BYTES"), "shape": i.get("shape")}
        for i in items or []
    ]
