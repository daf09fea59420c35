"""The process that owns the others: binds the port once, keeps its children running, and takes all of them along.

Light on purpose: the standard library only, so that it starts at once and has little to die of. Children get the
listening socket and the read end of a pipe as file descriptors; the write end is here alone, so the kernel tells
every child when this process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import json
import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from puna.artifacts import write_json
from puna.errors import ConflictError, MachineError, UsageError
from puna.home import Home
from puna.progress import Progress

BACKLOG = 2048
FIRST_RESTART_S, LAST_RESTART_S = 0.05, 5.0
SETTLED_S = 2.0
"""A child that has run so long starts its back-off anew when it dies."""
BOOT_FAILURES = 3
"""Deaths of one child before everything is up, after which `puna up` gives up."""
LOG_LINES = 20
KILL_WAIT_S = 2.0


@dataclass(frozen=True)
class Spec:
    """A child to keep running."""

    name: str
    command: tuple[str, ...]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    fds: tuple[int, ...] = ()
    grace_s: float = 10.0
    """How long it may take to end after SIGTERM."""


@dataclass
class Child:
    """A spec and its process, dead or alive."""

    spec: Spec
    process: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    started: float = 0.0
    failures: int = 0
    restart_at: float = 0.0


def listen(host: str, port: int, *, tls: bool, insecure: bool) -> socket.socket:
    """The listening socket of `puna up`.

    Raises:
        UsageError: the address is none of this machine, or open to others without TLS or `insecure`.
        MachineError: the port is in use, or not ours to take.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UsageError(f"{host}: {error.strerror or error}", "puna up --host 127.0.0.1") from None
    if not ipaddress.ip_address(str(address[0]).split("%")[0]).is_loopback and not (tls or insecure):
        raise UsageError(
            f"{host} can be reached by others, and keys would travel unencrypted",
            "give --tls-cert and --tls-key, put a TLS proxy before 127.0.0.1, or say --insecure",
        )
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise UsageError(f"{host} is no address of this machine", "puna up --host 127.0.0.1") from None
        what = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be taken: {error.strerror}"
        raise MachineError(f"port {port} on {host} {what}", f"puna up --port {port + 1}") from None
    return bound


@contextlib.contextmanager
def sole(home: Home) -> Iterator[None]:
    """Be the only `puna up` of this home; the kernel forgets the lock with the process.

    Raises:
        ConflictError: another one runs; its process id is named.
    """
    with home.lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            pid = file.read().strip() or "unknown"
            raise ConflictError(
                f"`puna up` runs in {home.root} already, as process {pid}", f"use it, or end it: kill {pid}"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


class Supervisor:
    """Starts children, starts them again when they die, and ends them in reverse order."""

    def __init__(self, specs: list[Spec], progress: Progress) -> None:
        self.children = [Child(spec) for spec in specs]
        self.is_up = False
        """Set by the owner once everything answers; before that, a child that keeps dying is fatal."""
        self._progress = progress
        self._selector = selectors.DefaultSelector()
        self._signals = 0

    def run(self, tick: Callable[[], None], on_stop: Callable[[], None]) -> None:
        """Keep the children running until SIGTERM or SIGINT; `on_stop` is called before they are ended.

        `tick` is called at every turn, 10 times a second.

        Raises:
            MachineError: a child cannot be brought up; with the last lines of its log.
        """
        with self._wakened_by_signals():
            try:
                while not self._signals:
                    self._start_due(time.monotonic())
                    self._reap(self._selector.select(0.1))
                    tick()
                on_stop()
                self._progress.note("stopping: requests in flight may finish")
                self._end_all()
            finally:
                self._kill_all()

    # -- keep running ------------------------------------------------------------------------------------------------

    def _start_due(self, now: float) -> None:
        for child in self.children:
            if child.process is None and child.restart_at <= now:
                self._start(child, now)

    def _start(self, child: Child, now: float) -> None:
        spec = child.spec
        with spec.log.open("ab") as log:
            # A session of its own: Ctrl-C reaches this process only, which then ends the others in order.
            child.process = subprocess.Popen(
                spec.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(spec.env),
                pass_fds=spec.fds,
                start_new_session=True,
            )
        child.started = now
        child.pidfd = os.pidfd_open(child.process.pid)
        self._selector.register(child.pidfd, selectors.EVENT_READ, child)

    def _reap(self, ready: list[tuple[selectors.SelectorKey, int]]) -> None:
        for key, _ in ready:
            if isinstance(key.data, Child):
                self._died(key.data, time.monotonic())

    def _died(self, child: Child, now: float) -> None:
        status = self._collect(child)
        if self._signals:
            return
        child.failures = 1 if now - child.started > SETTLED_S else child.failures + 1
        delay_s = min(FIRST_RESTART_S * 2 ** (child.failures - 1), LAST_RESTART_S)
        child.restart_at = now + delay_s
        if not self.is_up and child.failures >= BOOT_FAILURES:
            lines = child.spec.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            message = f"the {child.spec.name} does not start (exit {status})"
            raise MachineError(message, f"see {child.spec.log}", "\n".join(lines))
        self._progress.note(f"the {child.spec.name} ended ({status}); it starts again in {delay_s:g} s")

    def _collect(self, child: Child) -> str:
        assert child.process is not None
        code = child.process.wait()
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        child.process = None
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"

    # -- end ---------------------------------------------------------------------------------------------------------

    def _end_all(self) -> None:
        """Last spec first, so that what others lean on goes last; a second signal cuts the waiting short."""
        names = list(dict.fromkeys(child.spec.name.split()[0] for child in reversed(self.children)))
        for name in names:
            group = [c for c in self.children if c.spec.name.split()[0] == name and c.process is not None]
            for child in group:
                assert child.process is not None
                child.process.terminate()
            deadline = time.monotonic() + max((c.spec.grace_s for c in group), default=0.0)
            while any(c.process for c in group) and time.monotonic() < deadline and self._signals < 2:
                self._reap(self._selector.select(0.1))

    def _kill_all(self) -> None:
        for child in self.children:
            if child.process is not None:
                child.process.kill()
                self._collect(child)
        self._selector.close()

    @contextlib.contextmanager
    def _wakened_by_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT are counted, and end a `select` at once."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)

        def count(_number: int, _frame: object) -> None:
            self._signals += 1

        before = {number: signal.signal(number, count) for number in (signal.SIGTERM, signal.SIGINT)}
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._selector.register(reader, selectors.EVENT_READ, None)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            reader.close()
            writer.close()


def write_state(home: Home, url: str) -> None:
    """Tell this user's clients where we are."""
    write_json(home.state, {"url": url, "pid": os.getpid(), "control_socket": str(home.control_socket)})


def read_state(home: Home) -> dict[str, object]:
    """What `write_state` wrote, or an empty dict."""
    try:
        found = json.loads(home.state.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
