"""A process of the app's environment that has its imports done and forks a replica, guard and worker, on demand.

    zygote ── fork ── (becomes the guard: it execs Puna's own guard.py) ── fork ── the worker

The guard is thus the worker's parent as ever, and nothing of the replica needs the zygote again. One thread only, here
as in the two forks, until the worker begins to serve. What imports ahead may not do stands in preload.py.
"""

from __future__ import annotations

import array
import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import time
import warnings
from typing import Any, Callable, Dict, List, Set, Tuple

from puna.process import renewal, tree
from puna.worker import process, protocol
from puna.worker.app import calllog
from puna.worker.zygote.preload import Preload

EXIT_REFUSED = 3
WAIT_FOR_GUARD_S = 2.0
OWN_FDS = (0, 1, 2)

Serve = Callable[[List[str], int, int], None]
"""`serve(arguments of the worker's command line, parent_fd, busy_fd)`: be the worker; never returns."""
COMMAND = 3  # python -I worker: what stands before a worker's own arguments


class ForkClient:
    """One connection: the zygote's guard, or somebody who wants a fork."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.decoder = sock, protocol.Decoder()
        self.fds: List[int] = []

    def read(self) -> List[Tuple[int, int, bytes]]:
        """The frames that are whole; EOFError at the end of the connection."""
        data, ancillary, _, _ = self.sock.recvmsg(1 << 18, socket.CMSG_LEN(16))
        for level, kind, value in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array.array("i")
                numbers.frombytes(value[: len(value) - len(value) % numbers.itemsize])
                self.fds += numbers
        if not data:
            raise EOFError
        return self.decoder.feed(data)

    def send(self, kind: int, payload: Dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the client has disconnected
            self.sock.sendall(protocol.encode(kind, 0, payload))

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []
        self.sock.close()


class ForkServer:
    """`run` is its life."""

    def __init__(self, path: str, folder: str, parent_fd: int, serve: Serve) -> None:
        self.path, self.parent_fd, self.serve = path, parent_fd, serve
        self.preload = Preload(folder)
        self.clients: Dict[int, ForkClient] = {}
        self.guards: Set[int] = set()
        """Children that look after themselves."""
        self.said: Dict[str, Any] = {}

    def run(self) -> None:
        """Import, then fork whenever asked; ends with its guard, or at once when it may not fork."""
        # Before the imports, so that the guard needs to connect only once; it is accepted after them.
        self.listener = renewal.Listener(self.path, process.BACKLOG).socket
        begun = time.monotonic()
        self.preload.run()
        why_not = self.preload.why_not()
        if why_not:
            self._refuse(why_not)
        gc.collect()
        gc.freeze()  # a collection in a fork would otherwise write to, and thereby copy, every page
        taken = round(time.monotonic() - begun, 3)
        self.said = {"state": "ready", "pid": os.getpid(), "imports_s": taken, "imports": self.preload.seconds}
        calllog.note("zygote: ready after %.1f s of imports" % taken)
        self._loop()

    def _refuse(self, why: str) -> None:
        calllog.note("zygote: no forks, each start imports for itself: " + why)
        self.listener.settimeout(WAIT_FOR_GUARD_S)
        with contextlib.suppress(OSError):  # no guard: the log has it
            ForkClient(self.listener.accept()[0]).send(protocol.FAILED, {"message": why, "phase": "import"})
        process.kill_descendants()
        os._exit(EXIT_REFUSED)

    def _loop(self) -> None:
        self.wake, self.waker = socket.socketpair()
        self.waker.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.waker.fileno(), warn_on_full_buffer=False)
        self.poll = select.poll()
        for fd in (self.parent_fd, self.wake.fileno(), self.listener.fileno()):
            self.poll.register(fd, select.POLLIN)
        while True:
            for fd, _ in self.poll.poll():
                if fd == self.parent_fd:
                    os._exit(128 + signal.SIGKILL)  # its guard is dead; what was forked has guards of its own
                elif fd == self.wake.fileno():
                    self.wake.recv(4096)
                    self._reap()
                elif fd == self.listener.fileno():
                    self._accept()
                elif fd in self.clients:
                    self._read(self.clients[fd])

    def _accept(self) -> None:
        client = ForkClient(self.listener.accept()[0])
        client.sock.settimeout(1.0)
        self.clients[client.sock.fileno()] = client
        self.poll.register(client.sock, select.POLLIN)
        client.send(protocol.READY, self.said)

    def _read(self, client: ForkClient) -> None:
        try:
            for kind, _, payload in client.read():
                if kind == protocol.FORK and len(client.fds) > 1:
                    self._fork(client, json.loads(payload))
                elif kind == protocol.PING:
                    client.send(protocol.PONG, {})
        except (OSError, EOFError, ValueError, KeyError, protocol.ProtocolError):
            self._forget(client)

    def _forget(self, client: ForkClient) -> None:
        fd = client.sock.fileno()
        if self.clients.pop(fd, None) is not None:
            self.poll.unregister(fd)
            client.close()

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self.guards.discard(ended[0])
        # A guard that was killed leaves its worker, and a worker what it has started, to this process: nobody else
        # would end them.
        for stray in tree.by_parent().get(os.getpid(), []):
            if stray.pid not in self.guards:
                tree.end(stray)

    # -- the fork

    def _fork(self, client: ForkClient, config: Dict[str, Any]) -> None:
        try:
            pid = fork()
        except OSError as error:
            client.send(protocol.FORKED, {"error": "the fork failed: %s" % error})
            return
        if pid:
            self.guards.add(pid)
            self._forget(client)
            return
        try:
            signal.set_wakeup_fd(-1)
            self._become_guard(client, config)
        except BaseException as error:  # noqa: BLE001 - the log has it, and who asked sees the connection end
            calllog.note("zygote: the fork came to nothing: %s: %s" % (type(error).__name__, error))
        finally:
            os._exit(127)

    def _become_guard(self, client: ForkClient, config: Dict[str, Any]) -> None:
        """Fork the worker, then be the guard that it is a child of. `config["guard"]` is the guard's command."""
        owner_fd, busy_fd = client.fds[:2]
        parent_read, parent_write = os.pipe()
        worker = fork()
        if worker == 0:
            os.close(parent_write)
            self._become_worker(config, parent_read, os.dup(busy_fd))
        command = config.pop("guard")
        config.pop("env")  # it holds the app's secrets; the worker has it
        config["owner_fd"], config["adopted"] = owner_fd, {
            "worker_pid": worker, "parent_write": parent_write, "busy_fd": busy_fd
        }  # fmt: skip
        config_read, config_write = os.pipe()
        os.write(config_write, json.dumps(config).encode() + b"\n")  # a few hundred bytes: a pipe takes 64 KiB
        os.setsid()
        os.dup2(config_read, 0)
        os.dup2(client.sock.fileno(), 1)
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd not in (*OWN_FDS, owner_fd, parent_write, busy_fd):
                with contextlib.suppress(OSError):  # the listing's own
                    os.close(fd)
        for fd in (owner_fd, parent_write, busy_fd):
            os.set_inheritable(fd, True)
        os.execve(command[0], command, config["guard_env"])

    def _become_worker(self, config: Dict[str, Any], parent_read: int, busy_fd: int) -> None:
        """From a fork of the zygote to what a fresh worker is when it begins to serve."""
        try:
            os.setsid()
            for number in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            for sock in (self.listener, self.wake, self.waker):
                sock.close()
            for other in self.clients.values():
                other.close()
            os.close(self.parent_fd)
            if not os.read(parent_read, 1):
                os._exit(0)  # the guard found the replica's place taken
            log = os.open(config["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            null = os.open(os.devnull, os.O_RDONLY)
            for origin, target in ((null, 0), (log, 1), (log, 2)):
                os.dup2(origin, target)
            os.close(log)
            os.close(null)
            tree.become_subreaper()
            os.environ.clear()
            os.environ.update(config["env"])
            os.chdir(config["cwd"])
            draw_anew()
            self.serve(config["argv"][COMMAND:], parent_read, busy_fd)
        except BaseException as error:  # noqa: BLE001 - the log has it, and the guard sees the exit status
            calllog.note("the fork of a zygote failed: %s: %s" % (type(error).__name__, error))
        finally:
            os._exit(1)


def fork() -> int:
    """os.fork, without Python's warning about threads: preload.py has looked at each of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def draw_anew() -> None:
    """Random numbers of this process's own. `random` sees to itself; torch begins with one seed in every process."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and "numpy.random" in sys.modules:
        numpy.random.seed()
