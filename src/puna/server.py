"""The composition root of `puna up`: the supervisor's own part, the control-plane process and the gateway process.

Nobody else builds a store, a backend or a reconciler. `run_up` is light; what is heavy is imported in the child that
needs it: `python -m puna.server control` and `python -m puna.server gateway`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import faulthandler
import gc
import http.client
import json
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.control import wire
from puna.control.wire import Memories
from puna.errors import PunaError
from puna.front import Front, Tls
from puna.home import Home
from puna.instance import sole, write_state
from puna.process import descriptors
from puna.process.liveness import BEAT_EVERY_S, HeartbeatSender
from puna.process.renewal import Listener, renew_logs
from puna.progress import Progress, Silent
from puna.supervisor import Spec, Supervisor, listen

if TYPE_CHECKING:
    from types import FrameType

    from puna.serve.http.acceptor import ClientCounts

GATEWAY_GRACE_S = 30.0
"""Requests in flight when `puna up` is asked to stop have so long."""
REPLICA_GRACE_S = 10.0
"""Then replicas have so long for `finalize`."""
STATE_EVERY_S = 1.0
"""The interval at which up.json is looked for."""
BACKLOG = 256
LOG = logging.getLogger("puna.server")
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def run_up(home: Home, front: Front | None = None, gateways: int = 1, *, progress: Progress | None = None) -> None:
    """Run everything until SIGTERM or SIGINT; `progress.note` is given the address once all is up.

    Raises:
        UsageError: the address cannot be listened on, or not safely; a limit of builds is no number.
        MachineError: the port is in use, or a process does not start.
        ConflictError: another `puna up` runs in this home.
    """
    from puna.packaging import command

    command.slots()
    command.BuildLimits.of_environment()
    progress, gateways, front = progress or Silent(), max(gateways, 1), front or Front()
    front.check()
    public, host, tls = front.public_url, front.host, front.tls
    with sole(home), listen(host, front.port, tls=tls is not None, insecure=front.insecure) as listener:
        reader, writer = os.pipe()
        number = listener.getsockname()[1]
        url = front.address(number)
        shared = _shared(listener.fileno(), gateways)
        options = {"owner_fd": reader, "url": public or url, "memories": shared.memories}
        specs = [_spec(home, "control plane", options, (reader, *shared.memories), REPLICA_GRACE_S + 5)]
        specs += [_gateway_spec(home, reader, shared, index, front) for index in range(gateways)]
        supervisor = Supervisor(specs, progress)
        if descriptors.hard() < descriptors.FEW:
            progress.note(_few_files())
        up = threading.Event()
        threading.Thread(target=_wait_until_up, args=(host, number, tls is not None, up), daemon=True).start()

        home.state.unlink(missing_ok=True)  # of one that was killed
        state_at = 0.0

        def tick() -> None:
            nonlocal state_at
            if not up.is_set() or time.monotonic() < state_at:
                return
            state_at = time.monotonic() + STATE_EVERY_S
            if not home.state.exists():
                write_state(home, url)
            if not supervisor.is_up:
                supervisor.is_up = True
                progress.note(f"puna is up at {url}{f', called {public}' if public else ''}")
                with contextlib.suppress(PunaError):  # the control plane has just died: `puna console`, then
                    if sys.stdout.isatty() and host in ("127.0.0.1", "localhost", "::1"):
                        progress.note(f"console: {_console_link(home)} (works once; `puna console` prints another)")

        try:
            supervisor.run(tick, listener.close)
        finally:
            # The end of this pipe is what every child, guards included, takes as the end.
            for fd in (writer, reader, shared.counts_fd, shared.limits_fd, *shared.memories):
                os.close(fd)
            with contextlib.suppress(OSError):  # a disk that is away: the next `puna up` clears up
                home.state.unlink(missing_ok=True)
                home.control_socket.unlink(missing_ok=True)
                home.drop_sockets()


def _few_files() -> str:
    most = descriptors.hard()
    return (
        f"a process may open {most} files here: a gateway takes {descriptors.for_clients(most)} connections; "
        f"for more raise the hard limit first: ulimit -Hn 65536 as root, LimitNOFILE=65536 in a systemd unit"
    )


def _console_link(home: Home) -> str:
    """A one-time link; asked for over the socket whatever PUNA_URL says."""
    import httpx

    from puna.client import Client

    transport = httpx.HTTPTransport(uds=str(home.control_socket), verify=False)
    with Client(home=home, http=httpx.Client(transport=transport, base_url="http://localhost", timeout=10)) as client:
        return str(client.console_link()["url"])


@dataclasses.dataclass(frozen=True)
class SharedDescriptors:
    """The descriptors that all gateways have."""

    listen_fd: int
    counts_fd: int
    """Numbers of clients of each (serve/http/acceptor.py)."""
    limits_fd: int
    """Use of keys with limits, by gateway (serve/limits.py)."""
    memories: Memories
    """Counters of each (control/wire.py)."""

    @property
    def fds(self) -> tuple[int, ...]:
        """All of them."""
        return (self.listen_fd, self.counts_fd, self.limits_fd, *self.memories)


def _spec(home: Home, name: str, options: dict[str, Any], fds: tuple[int, ...], grace_s: float) -> Spec:
    """A child that runs `main` with these options; the first word of its name is its role."""
    command = (sys.executable, "-m", "puna.server", name.split()[0], json.dumps(options, default=str))
    log = home.logs / f"{name.removesuffix(' plane').replace(' ', '-')}.log"
    env = {**os.environ, "PUNA_HOME": str(home.root), "PYTHONUNBUFFERED": "1"}
    return Spec(name, command, log, env, fds, grace_s, beats=True)


def _shared(listen_fd: int, gateways: int) -> SharedDescriptors:
    from puna.serve.limits import size_bytes

    clients, limits = os.memfd_create("puna-clients"), os.memfd_create("puna-limits")
    os.ftruncate(clients, 4 * gateways)
    os.ftruncate(limits, size_bytes(gateways))
    return SharedDescriptors(listen_fd, clients, limits, wire.make(gateways))


def _gateway_spec(home: Home, owner_fd: int, shared: SharedDescriptors, index: int, front: Front) -> Spec:
    front = dataclasses.replace(front, cors_origins=front.origins)
    both = {"shared": dataclasses.asdict(shared), "front": dataclasses.asdict(front)}
    options = {"owner_fd": owner_fd, "index": index, **both}
    return _spec(home, f"gateway {index}", options, (owner_fd, *shared.fds), GATEWAY_GRACE_S + 2)


def _wait_until_up(host: str, port: int, tls: bool, up: threading.Event) -> None:
    """Ask a gateway, over the public port, until it has a route table: then the control plane is up as well."""
    host = LOOPBACK.get(host, host)
    while True:
        try:
            if tls:
                context = ssl._create_unverified_context()  # only our own readiness is asked for
                client: http.client.HTTPConnection = http.client.HTTPSConnection(host, port, timeout=5, context=context)
            else:
                client = http.client.HTTPConnection(host, port, timeout=5)
            client.request("GET", "/v2/health/ready", headers={"connection": "close"})
            status = client.getresponse().status
            client.close()
            if status == 200:
                up.set()
                return
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.05)


# -- children -----------------------------------------------------------------------------------------------------


def watch_owner(fd: int) -> None:
    """End this process at once when the supervisor has ended: its end of the pipe closes."""

    def wait() -> None:
        while os.read(fd, 1):
            pass
        os._exit(0)

    threading.Thread(target=wait, name="owner", daemon=True).start()


def control(home: Home, owner_fd: int, url: str, memories: Memories, heartbeat: HeartbeatSender) -> None:
    """The control-plane process: the API on the control socket, and the loops beside it."""
    from puna.control_plane import ControlPlane

    plane = ControlPlane(home, owner_fd, url, memories)
    plane.start()
    try:
        _serve(plane.app, KeptNames(home), Front(), partial(plane.beat, heartbeat), grace_s=1, on_stop=_hush)
    finally:
        plane.stop(REPLICA_GRACE_S)


def _hush() -> None:
    """Silence uvicorn: what it cuts off from here on are long polls of gateways that have ended."""
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)


class KeptNames:
    """Names that a process of `puna up` holds: its log, and the control plane its socket too."""

    def __init__(self, home: Home | None = None, bound: socket.socket | None = None) -> None:
        """Listens on the control socket of `home`, or on `bound`, which has no name.

        Bound here, not by uvicorn, which would open it to everybody (0666).
        """
        self._home, self._bound, self._has_warned = home, bound, False
        self._listener = None if home is None else Listener(str(home.control_socket), BACKLOG)

    @property
    def sockets(self) -> list[socket.socket]:
        """Sockets that are listened on to begin with."""
        return [one for one in (self._bound, self._listener.socket if self._listener else None) if one]

    def renewed(self) -> socket.socket | None:
        """Get back what somebody has deleted; the control socket when it is another now."""
        try:
            for path in renew_logs():
                LOG.warning("%s was deleted; this process writes to a new one", path)
            if self._home is None or self._listener is None or not self._listener.is_lost:
                return None
            path = str(self._home.control_socket)
            self._listener = Listener(path, BACKLOG)
        except (OSError, PunaError) as error:
            if not self._has_warned:
                LOG.error("what was deleted cannot be made again, and is tried every second: %s", error)
            self._has_warned = True
            return None
        LOG.warning("%s was deleted; the control plane listens there again", path)
        self._has_warned = False
        return self._listener.socket


def gateway(home: Home, shared: SharedDescriptors, index: int, front: Front, heartbeat: HeartbeatSender) -> None:
    """One gateway process on the inherited socket."""
    from puna.serve.gateway import Gateway, GatewaySettings
    from puna.serve.http.acceptor import ClientCounts

    settings = GatewaySettings(
        home.control_socket,
        f"g{index}",
        spool=home.spool,
        most_spooled=descriptors.for_bodies(descriptors.raise_limit()),
        most_forwarded=descriptors.for_forwarding(descriptors.hard()),
        memories=shared.memories,
        index=index,
        limits_fd=shared.limits_fd,
        cors_origins=front.cors_origins,
    )
    app = Gateway(settings)
    # What is here now stays, and requests leave no cycles behind: the collector need not look at either all the time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    counts = ClientCounts(shared.counts_fd, index)
    bound = socket.socket(fileno=shared.listen_fd)
    _serve(
        app,
        KeptNames(bound=bound),
        front,
        heartbeat.beat,
        grace_s=GATEWAY_GRACE_S,
        on_stop=app.wind_down,
        counts=counts,
    )


def _serve(
    app: object,
    kept: KeptNames,
    front: Front,
    beat: Callable[[], None],
    *,
    grace_s: float,
    on_stop: Callable[[], None],
    counts: ClientCounts | None = None,
) -> None:
    """uvicorn on the socket that is kept, until SIGTERM; then what is in flight has `grace_s`.

    `beat` is called every second from the first one on in which clients are let in.
    """
    import uvicorn

    from puna.serve.http.acceptor import AcceptingServer
    from puna.serve.http.client_limits import ClientLimits
    from puna.serve.http.connection import ClientConnection

    # uvicorn raises the signal that ended it once more when it is done; our own end comes after it.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=ClientConnection,
        ws="none",
        access_log=False,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        date_header=counts is not None,  # the gateway's replies have it; what it passes back would have it twice
        timeout_keep_alive=front.keep_alive_s,
        timeout_graceful_shutdown=int(grace_s),
        ssl_certfile=str(front.tls.certificate) if front.tls else None,
        ssl_keyfile=str(front.tls.key) if front.tls else None,
    )

    class Beating(AcceptingServer):
        async def startup(self, sockets: Sequence[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            self._beat_on()

        def _beat_on(self) -> None:
            beat()
            asyncio.get_running_loop().call_later(BEAT_EVERY_S, self._beat_on)

    most = descriptors.for_clients(descriptors.raise_limit())
    server = Beating(config, counts, ClientLimits(most, front.per_address), kept.renewed)
    uvicorns_own = server.handle_exit

    def handle_exit(number: int, frame: FrameType | None) -> None:
        on_stop()
        uvicorns_own(number, frame)

    server.handle_exit = handle_exit
    server.run(sockets=kept.sockets)


def main(arguments: list[str]) -> None:
    """`control` or `gateway`, as `run_up` starts them; not for people."""
    parser = argparse.ArgumentParser(prog="python -m puna.server")
    parser.add_argument("role", choices=["control", "gateway"])
    parser.add_argument("options", type=json.loads)
    parser.add_argument("--beat-fd", type=int, default=-1)
    given = parser.parse_args(arguments)
    options = given.options
    sys.modules["httpx._main"] = None  # type: ignore[assignment]  # its command line: a quarter of a gateway's start
    faulthandler.register(signal.SIGUSR1)  # one that hangs says where, in its log
    watch_owner(options["owner_fd"])
    heartbeat = HeartbeatSender(given.beat_fd)
    if given.role == "control":
        memories = Memories(tuple(options["memories"]))
        control(Home.default(), options["owner_fd"], options["url"], memories, heartbeat)
    else:
        front, shared, tls = options["front"], options["shared"], options["front"]["tls"]
        front["tls"] = Tls(Path(tls["certificate"]), Path(tls["key"])) if tls else None
        front["cors_origins"] = tuple(front["cors_origins"])
        shared["memories"] = Memories(tuple(shared["memories"]))
        gateway(Home.default(), SharedDescriptors(**shared), options["index"], Front(**front), heartbeat)


if __name__ == "__main__":
    main(sys.argv[1:])
