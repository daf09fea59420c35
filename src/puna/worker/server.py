"""The worker's Unix socket: connections, frames in, frames out, and the states starting, ready, draining."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
import threading
import time
from typing import Any, Dict, List, NoReturn, Optional

from puna.process import renewal
from puna.process.renewal import Listener
from puna.worker import process, protocol
from puna.worker.app import answers, calllog, concurrency, faults
from puna.worker.app.runner import App
from puna.worker.call_table import CallTable, WorkerCall
from puna.worker.engines import engine
from puna.worker.send_buffer import BRIEF_S, Flusher
from puna.worker.tiers import ASLEEP, AWAKE, REQUEST_CAME, SleepCycle

DEFAULT_DEADLINE_S = 180.0  # the platform's inference_time, for a request whose head names none
SEND_TIMEOUT_S = 30  # a gateway that does not read for so long is dead
EXIT_FAILED, EXIT_OVERRUN, EXIT_ENGINE, EXIT_CLOSED = 1, 70, 71, 72
CLOSED = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK)  # the listening socket's number is nobody's, or another file's


class GatewayConnection:
    """One client, most often a gateway; frames are sent whole, from any thread."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.number = sock, id(self)
        self.bodies: Dict[int, List[bytes]] = {}  # what came of long ones, whose REQUEST is still to come
        self._lock = threading.Lock()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT_S, 0))

    def send(self, data: bytes) -> None:
        """Send, or close: the thread that reads notices the end of the connection."""
        with self._lock:
            try:
                self.sock.sendall(data)
            except OSError:
                with contextlib.suppress(OSError):
                    self.sock.shutdown(socket.SHUT_RDWR)


class Server:
    """Owns the socket and the table of calls; `run` is the life of a worker."""

    def __init__(self, app: App, path: str, asked: int) -> None:
        """`asked` is the concurrency, 0 when nobody asked for one: then the app decides, once it is initialized."""
        self.app, self.path, self.concurrency, self.threads = app, path, asked, max(1, asked)
        self.state, self.timings = "starting", {}  # type: str, Dict[str, float]
        self.born, self.asked = "spawn", 0.0  # or "zygote"; when the start was asked for, on the monotonic clock
        self.verdict = concurrency.Verdict(self.threads)
        self.calls = CallTable(self.threads, self._late, self._poisoned, self._refused)
        self.flusher = Flusher()
        self._failed_to_sleep = False
        self.sleep_cycle = SleepCycle(app, lambda: self.calls.is_idle, self._tier_changed)
        self._connections: List[GatewayConnection] = []
        self._workers: List[threading.Thread] = []
        self._is_open = False
        self._lock = threading.Lock()
        self._someone_came = threading.Event()

    # -- life

    def say_busy_on(self, page: process.Until) -> None:
        """Write on this page, from now on, until when calls and changes of tier may take."""
        self.calls.until = self.sleep_cycle.until = page

    def listen(self) -> None:
        """Open the socket, readable by this user only, and answer HELLO from now on."""
        listener = Listener(self.path, process.BACKLOG, renewal.EVERY_S)
        if self.asked:
            self.timings["start_s"] = round(time.monotonic() - self.asked, 4)
        self._thread(self._accept, listener)
        self._thread(self.calls.watch)
        self._thread(self.flusher.run)

    def start_app(self) -> bool:
        """Read the schema, import, initialize; tell everyone how it went."""
        try:
            for name, step in (
                ("schema", self.app.read_schema),
                ("import", self.app.load),
                ("initialize", self.app.initialize),
                ("warm_up", engine.warm_up),
            ):
                begun = time.monotonic()
                step()
                self.timings[name + "_s"] = round(time.monotonic() - begun, 4)
        except BaseException as error:  # noqa: BLE001 - those who wait for READY see FAILED
            self._fail(name, error)
            return False
        self.verdict = concurrency.verdict(self.app, self.concurrency)
        self.threads = self.calls.threads = self.verdict.limit
        engine.on_death(self._engine_died)
        with self._lock:
            self.state = "ready"
            self._broadcast(protocol.READY, self.hello())
        return True

    def run(self) -> None:
        """Run calls until the worker is to stop; one of the threads is this one, which ran initialize."""
        self._is_open = True
        self._start_workers(self.threads)
        self._work()
        while self._workers:
            self._workers.pop().join()
        try:
            self.app.finalize()
        except BaseException as error:  # noqa: BLE001 - the platform ignores it too; the log has it
            calllog.note("finalize raised:\n" + faults.whole(error))
        with contextlib.suppress(OSError):
            os.unlink(self.path)

    def shut_down(self) -> None:
        """Take no more requests; when the last is answered, `run` goes on to finalize."""
        self.state = "draining"
        self.calls.drain("the replica is shutting down", self.calls.stop)

    def hello(self) -> Dict[str, Any]:
        """The content of HELLO and READY."""
        return {
            "state": self.state, "concurrency": self.threads, "schema": self.app.schema.as_json(), "pid": os.getpid(),
            "tier": self.sleep_cycle.tier, "can_sleep": self._can_sleep, "born": self.born, "timings": self.timings,
            "streaming": self.app.passes_handler, "engine": engine.described(),
            "verdict": self.verdict.as_json(),
        }  # fmt: skip

    # -- connections

    def _accept(self, listener: Listener) -> None:
        while True:
            try:
                sock, _ = listener.socket.accept()
            except socket.timeout:
                listener = self._renewed(listener)
                continue
            except OSError as error:
                calllog.note("accept failed: %s" % error)  # out of file descriptors, most likely
                if error.errno in CLOSED:
                    why = "the app has closed this worker's descriptors; it ends so that a fresh one takes over"
                    self._die(why, EXIT_CLOSED)
                time.sleep(0.1)
                continue
            connection = GatewayConnection(sock)
            with self._lock:
                connection.send(protocol.encode(protocol.HELLO, 0, self.hello()))
                self._connections.append(connection)
            self._someone_came.set()
            self._thread(self._read, connection)

    @staticmethod
    def _renewed(listener: Listener) -> Listener:
        """The listener, or another at its path when that is not its own any more; logs that were deleted, too."""
        try:
            renewal.renew_logs()
            if not listener.is_lost:
                return listener
            found = Listener(listener.path, process.BACKLOG, renewal.EVERY_S)
        except OSError:
            return listener  # a full disk, no descriptors: the next look may have more luck
        listener.socket.close()
        calllog.note("this worker's socket was deleted; it listens at the same place again")
        return found

    def _read(self, connection: GatewayConnection) -> None:
        decoder = protocol.Decoder()
        try:
            while True:
                data = connection.sock.recv(1 << 18)
                if not data:
                    break
                for kind, request_id, payload in decoder.feed(data):
                    self._frame(connection, kind, request_id, payload)
        except (OSError, ValueError, protocol.ProtocolError) as error:
            calllog.note("a connection ended: %s" % error)
        with self._lock:
            self._connections.remove(connection)
        self.calls.cancel_connection(connection.number)
        connection.sock.close()

    def _frame(self, connection: GatewayConnection, kind: int, request_id: int, payload: bytes) -> None:
        if kind == protocol.REQUEST:
            self._request(connection, request_id, payload)
        elif kind == protocol.BODY:
            connection.bodies.setdefault(request_id, []).append(payload)
        elif kind == protocol.CANCEL:
            connection.bodies.pop(request_id, None)
            self.calls.cancel((connection.number, request_id))
        elif kind == protocol.DRAIN:
            self.state = "draining"
            drained = protocol.encode(protocol.DRAINED, request_id)
            self.calls.drain("the replica is draining", lambda: connection.send(drained))
        elif kind == protocol.SHUTDOWN:
            self.shut_down()
        elif kind == protocol.PING:
            connection.send(protocol.encode(protocol.PONG, request_id, payload))
        elif kind == protocol.SLEEP:
            self._thread(self._sleep, connection)
        elif kind == protocol.WAKE:
            self._thread(self._ensure_awake)

    def _request(self, connection: GatewayConnection, request_id: int, payload: bytes) -> None:
        head, body = protocol.decode_request(payload)
        before = connection.bodies.pop(request_id, None)
        if before is not None:
            body = b"".join([*before, body])
        deadline = time.monotonic() + float(head.get("deadline_s", DEFAULT_DEADLINE_S))
        call = WorkerCall((connection.number, request_id), head, body, deadline, connection.send)
        refusal = self.calls.add(call)
        if refusal:
            connection.send(answers.failure(call, 503, refusal))
        elif len(self._workers) + 1 < self.threads:
            self._start_workers(1)

    # -- calls

    def _start_workers(self, most: int) -> None:
        """Start threads for calls that wait. One for each call that comes: a thread just born does not yet wait."""
        with self._lock:
            for _ in range(min(most, self.calls.lacking(), self.threads - 1 - len(self._workers))):
                if self._is_open:
                    self._workers.append(self._thread(self._work, name="puna-infer-%d" % (len(self._workers) + 1)))

    def _work(self) -> None:
        buffer, is_brief = self.flusher.buffer(self.calls.sent), False

        def emit(call: WorkerCall, data: bytes) -> None:
            buffer.flush()  # STARTED comes first
            if not call.is_answered:
                call.send(data)

        while True:
            call = self.calls.take()
            if call is None:
                return
            started = protocol.encode(protocol.STARTED, call.request_id, self._woken_for(call))
            if call.alone_s:
                buffer.flush()  # it may end this process
                self.calls.begins_alone(call)
            buffer.hold(call.send, started) if is_brief and not call.alone_s else call.send(started)
            begun = time.monotonic()
            data = answers.answer(self.app, call, emit)
            is_brief = time.monotonic() - begun < BRIEF_S
            over = protocol.encode(protocol.END, call.request_id, b"{}")
            buffer.hold(call.send, self.calls.close(call, data, over), 1)
            if not (is_brief and self.calls.has_more):
                buffer.flush()

    def _late(self, call: WorkerCall) -> None:
        what = "infer did not end" if call.is_running else "infer did not begin"
        calllog.note(what + " within the request's time", call.trace)
        call.send(answers.failure(call, 504, what + " within the request's time (inference_time)"))

    def _refused(self, call: WorkerCall) -> None:
        call.send(answers.failure(call, 503, self.calls.refusal))

    def _poisoned(self, call: WorkerCall) -> None:
        """A call goes on long after its time: its thread cannot be ended, so the process is, and gets replaced."""
        late_s = self.calls.overrun_grace_s
        why = "infer still runs %g s after its time; this worker ends so that a fresh one takes over" % late_s
        self._die(why, EXIT_OVERRUN, call.trace)

    def _engine_died(self, why: str) -> None:
        calllog.note("%s; this worker ends so that a fresh one takes over" % why)

        def end() -> None:
            process.kill_descendants()
            os._exit(EXIT_ENGINE)

        self.calls.give_up("the replica restarts: " + why, end)

    # -- tiers

    @property
    def _can_sleep(self) -> bool:
        return self.app.can_sleep and not self._failed_to_sleep

    def _sleep(self, connection: GatewayConnection) -> None:
        reason = "" if self._can_sleep else "this replica cannot sleep"
        if self.state != "ready":
            reason = "the replica is %s" % self.state
        if reason:
            connection.send(protocol.encode(protocol.AWAKE, 0, self._tier_report(AWAKE, 0.0, reason)))
        else:
            self.sleep_cycle.fall_asleep()

    def _woken_for(self, call: WorkerCall) -> Any:
        """The content of STARTED for a call that found the replica asleep; no bytes for all others."""
        if self.sleep_cycle.state == AWAKE:
            return b""
        self.calls.hold_deadline(call)
        woke_s = self._ensure_awake()
        self.calls.restart_deadline(call, float(call.head.get("deadline_s", DEFAULT_DEADLINE_S)))
        return {"tier": ASLEEP, "wake_ms": round(woke_s * 1000, 1)}

    def _ensure_awake(self) -> float:
        try:
            return self.sleep_cycle.ensure_awake()
        except BaseException as error:  # noqa: BLE001 - the log has it; the gateway tries the calls elsewhere
            self._die("this worker cannot wake up and ends, so that a fresh one takes over:\n" + faults.whole(error))

    def _tier_changed(self, tier: str, seconds: float, reason: str) -> None:
        if reason and reason != REQUEST_CAME:
            calllog.note("this replica stays awake: %s" % reason)
            self._failed_to_sleep = True
        with self._lock:
            kind = protocol.ASLEEP if tier == ASLEEP else protocol.AWAKE
            self._broadcast(kind, self._tier_report(tier, seconds, reason))

    def _tier_report(self, tier: str, seconds: float, reason: str) -> Dict[str, Any]:
        return {"tier": tier, "seconds": round(seconds, 4), "reason": reason, "can_sleep": self._can_sleep}

    # -- the rest

    def _fail(self, phase: str, error: BaseException) -> None:
        self.state = "failed"
        fault = faults.describe(error, self.app.folder)
        calllog.note("%s failed:\n%s" % (phase, faults.whole(error)))
        self._someone_came.wait(1.0)  # the guard connects within milliseconds; let it get the reason
        with self._lock:
            message = "%s failed: %s" % (phase, fault["error"]) + (" (%s)" % fault["line"] if fault["line"] else "")
            self._broadcast(protocol.FAILED, {"message": message, "traceback": fault["traceback"], "phase": phase})

    @staticmethod
    def _die(why: str, status: int = EXIT_ENGINE, trace: str = "") -> NoReturn:
        calllog.note(why, trace)
        process.kill_descendants()
        os._exit(status)

    def _broadcast(self, kind: int, value: Dict[str, Any]) -> None:
        data = protocol.encode(kind, 0, json.loads(json.dumps(value, default=str)))  # examples may be of any type
        for connection in self._connections:
            connection.send(data)

    @staticmethod
    def _thread(target: Any, *arguments: Any, name: Optional[str] = None) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)
        thread.start()
        return thread
