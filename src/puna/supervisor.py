"""The process that owns the others: binds the port once, keeps its children running, and takes all of them along.

Light on purpose: the standard library only, so that it starts at once and has little to die of. Children get the
listening socket and the read end of a pipe as file descriptors; the write end is here alone, so the kernel tells
every child when this process ends, however it ends. Each child has a heartbeat (process/liveness.py); one that is
silent is ended and started again like one that died. What the machine refuses (descriptors, processes, space) is a
start that failed, and is tried again.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from puna.errors import MachineError, UsageError
from puna.process import guard, tree
from puna.process.liveness import HeartbeatMonitor, ProcessorTime
from puna.progress import Progress

BACKLOG = 2048
FIRST_RESTART_S, LAST_RESTART_S = 0.05, 5.0
SETTLED_S = 2.0
"""A child that has run so long starts its back-off anew when it dies."""
BOOT_FAILURES = 3
"""Deaths of one child before everything is up, after which `puna up` gives up."""
KILL_WAIT_S = 2.0
SWEEP_EVERY_S = 1.0


@dataclass(frozen=True)
class Spec:
    """A child to keep running."""

    name: str
    command: tuple[str, ...]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    fds: tuple[int, ...] = ()
    grace_s: float = 10.0
    """The time that it may take to end after SIGTERM."""
    beats: bool = False
    """It is given `--beat-fd` and has to beat over it."""


@dataclass
class Child:
    """A spec and its process, dead or alive."""

    spec: Spec
    process: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    """Readable when the process has ended; -1 where there is none, which costs a tenth of a second."""
    beat_fd: int = -1
    heartbeat: HeartbeatMonitor | None = None
    share: ProcessorTime = field(default_factory=ProcessorTime)
    started: float = 0.0
    failures: int = 0
    restart_at: float = 0.0
    ending: str = ""
    """The reason why it is being ended."""
    refused: str = ""
    """The reason why it could not be started, when it could not."""


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


class Supervisor:
    """Starts children, starts them again when they die, and ends them in reverse order."""

    def __init__(self, specs: list[Spec], progress: Progress) -> None:
        self.children = [Child(spec) for spec in specs]
        self.is_up = False
        """Set by the owner once everything answers; before that, a child that keeps dying is fatal."""
        self._progress = progress
        self._selector = selectors.DefaultSelector()
        self._signals = 0
        self._sweep_at = 0.0

    def run(self, tick: Callable[[], None], on_stop: Callable[[], None]) -> None:
        """Keep the children running until SIGTERM or SIGINT; `on_stop` is called before they are ended.

        `tick` is called at every turn, 10 times a second.

        Raises:
            MachineError: a child cannot be brought up; with the last lines of its log.
        """
        tree.become_subreaper()
        with self._wakened_by_signals():
            try:
                while not self._signals:
                    self._start_due(time.monotonic())
                    self._turn()
                    with contextlib.suppress(OSError):  # the disk is full, or away: the next turn tries again
                        tick()
                on_stop()
                self._note("stopping: requests in flight may finish")
                self._end_all()
            finally:
                self._kill_all()

    # -- keep running ------------------------------------------------------------------------------------------------

    def _start_due(self, now: float) -> None:
        for child in self.children:
            if child.process is None and child.restart_at <= now:
                self._start(child, now)

    def _start(self, child: Child, now: float) -> None:
        try:
            self._launch(child, now)
        except OSError as error:  # no descriptors, no processes, no memory: it may be otherwise in a moment
            self._release(child)
            child.failures += 1
            before, child.refused = child.refused, f"could not be started: {error.strerror or error}"
            self._try_again(child, now, child.refused, say=child.refused != before)
        else:
            child.ending = child.refused = ""

    def _launch(self, child: Child, now: float) -> None:
        spec, command, fds = child.spec, list(child.spec.command), list(child.spec.fds)
        with contextlib.ExitStack() as stack:
            log = _open_log(spec.log)
            stack.callback(os.close, log)
            if spec.beats:
                child.beat_fd, writer = os.pipe()
                stack.callback(os.close, writer)
                os.set_blocking(child.beat_fd, False)
                command += ["--beat-fd", str(writer)]
                fds.append(writer)
            # A session of its own: Ctrl-C reaches this process only, which then ends the others in order.
            child.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(spec.env),
                pass_fds=fds,
                start_new_session=True,
            )
        child.started = now
        if spec.beats:
            child.heartbeat, child.share = HeartbeatMonitor(now), ProcessorTime()
            self._selector.register(child.beat_fd, selectors.EVENT_READ, child)
        with contextlib.suppress(OSError):
            child.pidfd = os.pidfd_open(child.process.pid)
            self._selector.register(child.pidfd, selectors.EVENT_READ, child)

    def _turn(self) -> None:
        """Wait for a moment: hear who beats, see who has ended, end who is silent."""
        for key, _ in self._selector.select(0.1):
            child = key.data
            if isinstance(child, socket.socket):
                child.recv(64)  # the bytes of signals: left there, they would end every wait until all have ended
            elif isinstance(child, Child) and key.fd == child.beat_fd and child.heartbeat is not None:
                self._read_heartbeat(child, child.heartbeat)
        now = time.monotonic()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_EVERY_S
            sweep({child.process.pid for child in self.children if child.process is not None})
        for child in self.children:
            if child.process is not None and child.process.poll() is not None:
                self._died(child, now)
            elif child.process is not None and child.heartbeat is not None and not self._signals:
                starved = child.heartbeat.suspicious and child.share.starved(child.process.pid, now)
                why = child.heartbeat.turn(now, starved)
                if why and not child.ending:
                    child.ending = f"was ended: {why}"
                    child.process.kill()

    def _read_heartbeat(self, child: Child, heartbeat: HeartbeatMonitor) -> None:
        try:
            data = os.read(child.beat_fd, 4096)
        except OSError:
            data = b""
        heartbeat.receive(data)
        if not data:
            self._selector.unregister(child.beat_fd)

    def _died(self, child: Child, now: float) -> None:
        status = self._collect(child)
        if self._signals:
            return
        child.failures = 1 if now - child.started > SETTLED_S else child.failures + 1
        self._try_again(child, now, child.ending or f"ended ({status})")

    def _try_again(self, child: Child, now: float, what: str, say: bool = True) -> None:
        """Start it again after a moment that grows; before everything is up, one that keeps failing is fatal."""
        delay_s = min(FIRST_RESTART_S * 2 ** min(child.failures - 1, 20), LAST_RESTART_S)
        child.restart_at = now + delay_s
        name, log = child.spec.name, child.spec.log
        if not self.is_up and child.failures >= BOOT_FAILURES:
            message = f"the {name} does not start: it {what}"
            raise MachineError(message, f"see {log}", "\n".join(guard.tail(str(log))))
        if say:
            self._note(f"the {name} {what}; it starts again in {delay_s:g} s")

    def _collect(self, child: Child) -> str:
        assert child.process is not None
        code = child.process.wait()
        child.process = None
        self._release(child)
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"

    def _release(self, child: Child) -> None:
        """Close what was ours of a process that is no more, or never was."""
        for fd in (child.pidfd, child.beat_fd):
            if fd >= 0:
                with contextlib.suppress(KeyError):
                    self._selector.unregister(fd)
                os.close(fd)
        child.pidfd = child.beat_fd = -1
        child.heartbeat = None

    def _note(self, text: str) -> None:
        with contextlib.suppress(OSError):  # its log is full, or its terminal was closed: that ends nobody
            self._progress.note(text)

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
                self._turn()

    def _kill_all(self) -> None:
        for child in self.children:
            if child.process is not None:
                child.process.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):  # the kernel holds it: it ends when it can
                    child.process.wait(KILL_WAIT_S)
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
        self._selector.register(reader, selectors.EVENT_READ, reader)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            reader.close()
            writer.close()


def _open_log(path: Path) -> int:
    """The log of a child, to be appended to; nowhere when it cannot be had, because a log is no reason not to serve."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def sweep(known: set[int]) -> None:
    """Kill and reap this process's children that are neither `known` nor guards, and all below them.

    Every guard, worker and child of an app descends from here. Where guard and worker are killed at once, what the app
    had started becomes a child of this process, the sub-reaper; guards look after themselves.
    """
    for pid in tree.children(os.getpid()):
        if pid in known:
            continue
        with contextlib.suppress(OSError):
            if os.waitpid(pid, os.WNOHANG)[0]:
                continue  # it had ended, and was waiting for somebody to ask
        if guard.__file__ not in tree.command_line(pid) and (begun := tree.start_ticks(pid)):
            tree.end(tree.Process(pid, begun))
