"""The process between owner and worker, a script of its own (`python -I -S`): if either dies, nothing is left.

The owner holds the write end of a pipe (`owner_fd`): its end is the end of everything here. The guard holds the
write end of another (`--parent-fd` of the worker): when the guard is killed, the worker kills its descendants and
itself. When the worker dies, the guard kills what is left of it and goes on telling how it ended until `forget`.
As a sub-reaper it stays the ancestor of all of them, whatever sessions they make.

It answers newline-JSON on a Unix socket: `status`, `stop` {"grace_s"}, `end` {"why"}, `sleep`, `wake`, `lease` {"s"},
`forget`. A tree that has more host memory than `memory_bytes` is ended.
With `"mode": "run"` it has no socket: it runs the command to its end, or until `timeout_s` or the end of stdin.
With `"mode": "zygote"` the worker is a zygote, whose descendants have guards of their own (worker/zygote): they live
on when it ends. Such a fork execs this file with `"adopted"`: the worker is its child already and waits for its word.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import select
import signal
import socket
import struct
import sys
import time
from typing import Any

if __name__ == "__main__":  # -I -S leaves no path to Puna; behind the standard library, so that nothing is hidden by it
    sys.path.append(__file__.rpartition("/puna/")[0])
from puna.process import locks, renewal
from puna.process.liveness import CLOSED, EXIT_CLOSED, PING_EVERY_S, BusyPage, Liveness, make_page
from puna.process.renewal import Listener
from puna.process.tree import MemoryLimit, become_subreaper, is_ending, kill_tree, oom_kills, start_ticks

# puna.worker.protocol has these too; a test compares them. The guard imports no more than it must: 1 ms each.
HEADER = struct.Struct(">IBQ")
SHUTDOWN, PING, SLEEP, WAKE = 4, 5, 6, 7
HELLO, READY, FAILED, PONG, ASLEEP, AWAKE, FORKED = 65, 66, 71, 73, 74, 75, 77
EXIT_OVERRUN = 70
PR_SET_PDEATHSIG = 1
FAILED_EXIT_S = 5.0  # a worker that has said FAILED ends by itself; not much later than this it is made to
CONNECT_EVERY_S = 0.005
BACKLOG = 16
LAST_LINES, LAST_BYTES = 20, 16384
STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) (stdout|stderr) F ")
"""How each line begins that a worker which serves writes."""
STAMP_BYTES = 37
WHAT = {"run": "it", "serve": "initialize", "zygote": "its imports"}
OUT_OF_MEMORY = ("CUDA out of memory", "OutOfMemoryError", "MemoryError", "CUDA error: out of memory")


class Guard:
    """One worker and what is known of it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config, self.is_run, self.is_zygote = config, config["mode"] == "run", config["mode"] == "zygote"
        self.phase, self.reason, self.failure = "starting", "", ""
        self.exit_code: int | None = None
        self.ready_s: float | None = None
        self.hello: dict[str, Any] = {}
        self.last_lines: list[str] = []
        self.begun = time.monotonic()
        self.kill_at: dict[str, float] = {}  # why -> when
        self.poll = select.poll()
        self.clients: dict[int, tuple[socket.socket, bytearray]] = {}
        self.listener: Listener | None = None
        self.next_look = self.begun + renewal.EVERY_S
        self.connection: socket.socket | None = None
        self.received = bytearray()
        self.oom_kills, self.memory_limit = oom_kills(), MemoryLimit(config.get("memory_bytes", 0))
        self.liveness: Liveness | None = None
        """There once the worker is ready, until it is told to end."""
        self.page: BusyPage | None = None

    # -- life

    def run(self) -> None:
        """Start the worker and watch until there is nothing to watch."""
        limit = self.config.get("timeout_s" if self.is_run else "startup_timeout_s")
        if limit:
            self.kill_at[f"{WHAT[self.config['mode']]} did not end within {limit:g} s"] = self.begun + limit
        self.wake, self.waker = socket.socketpair()
        self.waker.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.waker.fileno(), warn_on_full_buffer=False)
        for fd in (self.wake.fileno(), self.config["owner_fd"]):
            if fd >= 0:
                self.poll.register(fd, select.POLLIN)
        if self.listener is not None:
            self.poll.register(self.listener.socket, select.POLLIN)
        if "adopted" in self.config:
            self._adopt()
        else:
            self._spawn()
        while not (self.is_run and self.phase == "exited"):
            self._turn()

    def _turn(self) -> None:
        for fd, _ in self.poll.poll(self._timeout_ms()):
            if fd == self.wake.fileno():
                self.wake.recv(4096)
            elif fd == self.config["owner_fd"]:
                if not os.read(fd, 4096):
                    self.end()
            elif self.listener is not None and fd == self.listener.socket.fileno():
                self._accept()
            elif self.connection is not None and fd == self.connection.fileno():
                self._read_connection()
            elif fd in self.clients:
                self._read_client(fd)
        self._reap()
        now = time.monotonic()
        for why, at in sorted(self.kill_at.items(), key=lambda item: item[1]):
            if now >= at:
                self._end_worker(why)
        self._end_worker(self.memory_limit.excess(now))
        self._check_pulse(now)
        if now >= self.next_look:
            self.next_look = now + renewal.EVERY_S
            self._renew()
        if self.phase == "starting" and self.connection is None and not self.is_run:
            self._connect()

    def _timeout_ms(self) -> float | None:
        if self.phase == "starting" and self.connection is None and not self.is_run:
            return CONNECT_EVERY_S * 1000
        looks = () if self.is_run else (self.next_look,)
        more = () if self.phase == "exited" else (*self.kill_at.values(), self.memory_limit.next_look)
        at = min((*looks, *more), default=float("inf"))
        if self.liveness is not None:
            at = min(at, self.liveness.next_ping)
        return None if at == float("inf") else max(0.0, at - time.monotonic()) * 1000 + 1

    def _check_pulse(self, now: float) -> None:
        """Ask a worker that is ready whether it lives, and end one that is sick."""
        if self.liveness is None:
            return
        if now >= self.liveness.next_ping:
            self.liveness.next_ping = now + PING_EVERY_S
            self._send(PING)
        sick = self.liveness.turn(now, *(self.page.read() if self.page else (0.0, 0.0)))
        if sick and not is_ending(self.worker_pid):
            self._end_worker(sick)

    def _renew(self) -> None:
        """Get back what somebody has deleted: without its files a guard cannot be found, nor told to end."""
        if self.listener is None:
            return
        try:
            renewal.renew_logs()
            if not self.listener.is_lost:
                return
            if self.is_zygote:  # nobody asks it for forks any more, and what lies there is its successor's
                self._kill_all()
                os._exit(0)
            found = Listener(self.config["guard_socket"], BACKLOG)
        except OSError:
            return  # a full disk, no descriptors: the next look may have more luck
        self.poll.unregister(self.listener.socket)
        self.listener.socket.close()
        self.listener = found
        self.poll.register(found.socket, select.POLLIN)
        with contextlib.suppress(OSError):
            locks.acquire(self.config["lock"], timeout_s=0)
            self._write_record()

    def end(self) -> None:
        """Kill everything, leave no file, exit."""
        self._kill_all()
        self._remove_files()
        os._exit(0)

    def _kill_all(self) -> None:
        if self._spares() and self.phase != "exited":
            os.kill(self.worker_pid, signal.SIGKILL)
        elif not self._spares():
            kill_tree()

    def _remove_files(self) -> None:
        for key in () if self.is_run else ("socket", "guard_socket", "record", "lock"):
            with contextlib.suppress(OSError):
                os.unlink(self.config[key])

    # -- the worker

    def _adopt(self) -> None:
        """The worker is there, a fork of a zygote: tell it to go on."""
        self.log_start = log_size(self.config["log"])
        adopted = self.config["adopted"]
        self.worker_pid, self.parent_write = adopted["worker_pid"], adopted["parent_write"]
        self._keep_page(adopted["busy_fd"])
        os.set_inheritable(self.parent_write, False)
        self._write_record()
        os.write(self.parent_write, b"\n")

    def _spawn(self) -> None:
        config = self.config
        parent_read, self.parent_write = os.pipe()
        error_read, error_write = os.pipe()
        argv = [*config["argv"], "--parent-fd", str(parent_read)]
        busy_fd = make_page() if config["mode"] == "serve" else -1
        argv += ["--busy-fd", str(busy_fd)] if busy_fd >= 0 else []
        self.log_start = log_size(config["log"])
        self.worker_pid = os.fork()
        if self.worker_pid == 0:
            try:
                os.setsid()
                signal.set_wakeup_fd(-1)
                for number in (signal.SIGCHLD, signal.SIGPIPE):
                    signal.signal(number, signal.SIG_DFL)
                log = os.open(config["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(log, 1)
                os.dup2(log, 2)
                for fd in (parent_read, busy_fd):
                    if fd >= 0:
                        os.set_inheritable(fd, True)
                if self.is_zygote:  # it cannot watch the pipe while it imports
                    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                os.chdir(config["cwd"])
                os.execve(argv[0], argv, config["env"])
            except BaseException as error:  # noqa: BLE001 - the guard reads it from the pipe and tells the owner
                os.write(error_write, str(error).encode())
                os._exit(127)
        os.close(parent_read)
        os.close(error_write)
        if busy_fd >= 0:
            self._keep_page(busy_fd)
        self.failure = os.read(error_read, 4096).decode()  # empty once exec has closed the other end
        os.close(error_read)
        config["env"] = {}  # secrets have no business here any more
        if not self.is_run:
            self._write_record()

    def _keep_page(self, busy_fd: int) -> None:
        self.page = BusyPage(busy_fd)
        os.close(busy_fd)

    def _write_record(self) -> None:
        record = {key: self.config[key] for key in ("log", "socket", "replica_id")}
        record.update(worker_pid=self.worker_pid, worker_start=start_ticks(self.worker_pid))
        record.update(guard_pid=os.getpid(), guard_start=start_ticks(os.getpid()))
        with contextlib.suppress(OSError), open(self.config["record"], "w", encoding="utf-8") as file:
            json.dump(record, file)  # a full disk: one that is killed then leaves less to be found again

    def _connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(self.config["socket"])
        except OSError:
            connection.close()
            return
        connection.setblocking(False)
        self.connection = connection
        self.poll.register(connection, select.POLLIN)

    def _read_connection(self) -> None:
        assert self.connection is not None
        try:
            data = self.connection.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.poll.unregister(self.connection)  # the worker is ending, and SIGCHLD tells the rest; else it is sick
            self.connection.close()
            if self.liveness is not None:
                self.liveness.hung_up()
            return
        self.received += data
        while len(buffer := self.received) >= HEADER.size:
            length, kind, _ = HEADER.unpack_from(buffer)
            if len(buffer) < 4 + length:
                break
            payload = bytes(buffer[HEADER.size : 4 + length])
            del buffer[: 4 + length]
            self._handle(kind, payload)

    def _handle(self, kind: int, payload: bytes) -> None:
        if kind == FAILED:
            self.failure = json.loads(payload)["message"]
            self.kill_at[self.failure] = time.monotonic() + FAILED_EXIT_S
        elif kind in (HELLO, READY):
            self.hello = json.loads(payload)
            if self.hello.get("state") == "ready" and self.phase == "starting":
                self.phase, self.ready_s = "ready", time.monotonic() - self.begun
                self.kill_at = {why: at for why, at in self.kill_at.items() if "did not end within" not in why}
                self.liveness = Liveness(time.monotonic(), self.config.get("inference_time_s", 0.0))
        elif kind == PONG and self.liveness is not None:
            self.liveness.answered()
        elif kind in (ASLEEP, AWAKE):
            change = json.loads(payload)
            self.hello.update((key, change[key]) for key in ("tier", "can_sleep") if key in change)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self.worker_pid and self.phase != "exited":
                    self._worker_died(ended[1])

    def _end_worker(self, why: str) -> None:
        if why and self.phase != "exited":
            self.reason = self.reason or why
            self._kill_worker()

    def _kill_worker(self) -> None:
        """Kill the tree; the worker's own death is then seen like any other."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.worker_pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            self._worker_died(os.waitpid(self.worker_pid, 0)[1])

    def _spares(self) -> bool:
        """The worker's descendants have guards of their own."""
        return self.is_zygote and self.ready_s is not None

    def _worker_died(self, status: int) -> None:
        if not self._spares():
            kill_tree()
        self.exit_code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        self.last_lines = tail(self.config["log"], self.log_start)
        self.reason = self.reason or self._why(self.exit_code)
        self.phase, self.kill_at, self.liveness = "exited", {}, None
        os.close(self.parent_write)
        if not self.is_run:
            with contextlib.suppress(OSError):
                os.unlink(self.config["socket"])

    def _why(self, code: int) -> str:
        if self.failure:
            return self.failure
        text = "\n".join(self.last_lines)
        memory = next((f": {m}" for m in OUT_OF_MEMORY if m in text), "")
        if code == -signal.SIGKILL:
            if oom_kills() > self.oom_kills:
                return "killed by the kernel: the machine or its memory limit ran out of memory"
            return "killed by SIGKILL (the kernel does that when memory runs out)" + memory
        if code < 0:
            return f"killed by {signal.Signals(-code).name}" + memory
        if code == EXIT_OVERRUN:
            return "infer overran its time and could not be stopped"
        if code == EXIT_CLOSED:
            return CLOSED
        return f"ended with exit code {code}" + memory

    # -- the owner's commands

    def _accept(self) -> None:
        assert self.listener is not None
        client, _ = self.listener.socket.accept()
        client.settimeout(1.0)
        self.clients[client.fileno()] = (client, bytearray())
        self.poll.register(client, select.POLLIN)

    def _read_client(self, fd: int) -> None:
        client, buffer = self.clients[fd]
        try:
            data = client.recv(65536)
            buffer += data
            while b"\n" in buffer:
                line, _, rest = bytes(buffer).partition(b"\n")
                buffer[:] = rest
                self._command(client, json.loads(line))
        except (OSError, ValueError, KeyError):
            data = b""
        if not data:
            self.poll.unregister(fd)
            del self.clients[fd]
            client.close()

    def _command(self, client: socket.socket, command: dict[str, Any]) -> None:
        now, name = time.monotonic(), command["command"]
        if name == "stop":
            self._stop(now, float(command["grace_s"]))
        elif name == "lease":
            self.kill_at["lease lapsed: the owner no longer renews it"] = now + float(command["s"])
        elif name == "end":
            self._end_worker(command["why"])
        elif name in ("sleep", "wake"):
            self._send(SLEEP if name == "sleep" else WAKE)
        if forgotten := name == "forget" and self.phase == "exited":
            self._remove_files()  # before the answer: the caller may look for them at once
        client.sendall(json.dumps(self._status()).encode() + b"\n")
        if forgotten:
            self.end()

    def _stop(self, now: float, grace_s: float) -> None:
        if self.phase == "exited":
            return
        why = "stopped; killed because it had not ended within its grace"
        self.kill_at[why] = min(now + grace_s, self.kill_at.get(why, float("inf")))
        self.failure = self.failure or "stopped"
        self.liveness = None  # its grace bounds what comes now
        if self.is_zygote:
            self._kill_worker()  # it has nothing to bring to an end
            return
        if not self._send(SHUTDOWN):
            os.kill(self.worker_pid, signal.SIGTERM)

    def _send(self, kind: int) -> bool:
        """Send a frame without payload to a worker that is ready; False when there is none to hear it."""
        if self.phase == "ready" and self.connection is not None:
            with contextlib.suppress(OSError):
                self.connection.sendall(HEADER.pack(9, kind, 0))
                return True
        return False

    def _status(self) -> dict[str, Any]:
        return {
            "replica_id": self.config["replica_id"], "phase": self.phase, "pid": os.getpid(),
            "worker_pid": self.worker_pid, "exit_code": self.exit_code, "reason": self.reason,
            "ready_s": self.ready_s, "schema": self.hello, "last_lines": self.last_lines,
            "share": self.config.get("share"),
        }  # fmt: skip


def tail(path: str, start: int = 0) -> list[str]:
    """The last lines of a log from byte `start` on, without their stamps."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - LAST_BYTES))
            lines = file.read().splitlines()[-LAST_LINES:]
            return [(line[STAMP_BYTES:] if STAMP.match(line) else line).decode(errors="replace") for line in lines]
    except OSError:
        return []


def log_size(path: str) -> int:
    """Bytes that earlier runs have written."""
    return os.path.getsize(path) if os.path.exists(path) else 0


def claim(config: dict[str, Any]) -> Listener | None:
    """Listen on the guard's socket; None when a living guard of this replica has it."""
    try:
        locks.acquire(config["lock"], timeout_s=0)  # held by this process until its end
    except locks.HeldError:
        return None
    os.umask(0o077)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(config["socket"])
    return Listener(config["guard_socket"], BACKLOG)


def main() -> None:
    """Read the config from stdin; detach (serve) or stay (run)."""
    line = bytearray()
    while not line.endswith(b"\n"):
        line += os.read(0, 65536) or sys.exit("no config on stdin")
    config = json.loads(line)
    del line  # it holds the app's secrets
    if config["owner_fd"] >= 0:
        os.set_inheritable(config["owner_fd"], False)
    listener = None
    if config["mode"] != "run":
        listener = claim(config)
        if "adopted" in config:
            reply = json.dumps({"error": ""}).encode()  # taken is as good: the same id twice starts one
            with contextlib.suppress(OSError):  # who asked was killed meanwhile: its successor finds this replica
                os.write(1, HEADER.pack(len(reply) + 9, FORKED, 0) + reply)
        if listener is None:
            return
        if "adopted" not in config and os.fork():
            os._exit(0)  # leave the owner's direct children: what kills those must not kill the guard
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for fd in (1, 2):
            os.dup2(os.open(config["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), fd)
    if os.getpid() != os.getsid(0):
        os.setsid()
    become_subreaper()
    guard = Guard(config)
    guard.listener = listener
    guard.run()
    result = {"exit_code": guard.exit_code, "reason": guard.reason, "last_lines": guard.last_lines}
    os.write(1, json.dumps(result).encode())


if __name__ == "__main__":
    sys.exit(main())  # type: ignore[func-returns-value]
