"""Zygotes on this machine, a guard each: begun, found again, asked for forks, ended (worker/zygote)."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from pathlib import Path
from typing import Any

from puna.backends import guards, workspace
from puna.backends.base import Launch, Phase, Zygote
from puna.home import Home
from puna.process import liveness, tree
from puna.worker import protocol

LOG = logging.getLogger("puna.zygotes")
FORK_TIMEOUT_S = 2.0  # a fork and its guard take 0.05 s; one that comes later finds its place taken by a fresh start
EXIT_REFUSED = 3
# All of Puna's own environment that a fork's guard gets: it passes through a process of the app's.
GUARD_ENV = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PUNA_HOME")


class Zygotes:
    """Remembers nothing that the guards do not know."""

    def __init__(self, home: Home, owner_fd: int, asked: guards.Guards) -> None:
        self._home, self._owner_fd, self._guards = home, owner_fd, asked

    def begin(self, launch: Launch, worker: Path) -> None:
        """Start guard and zygote; it is ready when its imports are done. The same name twice starts one.

        Raises:
            MachineError: the guard could not be started.
        """
        path = self._home.zygote_socket(launch.warm)
        argv = guards.worker_command(launch, worker, "zygote", "--socket", str(path), "--log", "cri")
        config = guards.config(launch, "zygote", workspace.with_volumes(launch.mounts, argv), self._owner_fd)
        config |= {"replica_id": launch.warm, "socket": str(path)}
        config["inference_time_s"] = FORK_TIMEOUT_S  # who asks it for something waits no longer
        guards.start(config | guards.files(self._home.zygote_guard_socket(launch.warm)))

    def list(self) -> tuple[Zygote, ...]:
        """Every zygote whose guard has left a trace."""
        return tuple(self._observe(path) for path in sorted(self._home.sockets.glob("*.zygote-guard")))

    def end(self, name: str) -> None:
        """End a zygote and drop what is remembered of it; what was forked from it goes on. An unknown name is fine."""
        path = self._home.zygote_guard_socket(name)
        with contextlib.suppress(TimeoutError):  # its guard is busy killing it
            if self._guards.ask(path, {"command": "stop", "grace_s": 0}) is not None:
                self._guards.ask(path, {"command": "forget"})
        for file in (*guards.files(path).values(), str(self._home.zygote_socket(name))):
            Path(file).unlink(missing_ok=True)

    def fork(self, name: str, config: dict[str, Any]) -> bool:
        """Let the zygote of that name fork guard and worker; False when there is none, or it does not."""
        path = self._home.zygote_guard_socket(name)
        if not path.exists() or self._observe(path).phase is not Phase.READY:
            return False
        env = {key: os.environ[key] for key in GUARD_ENV if key in os.environ}
        asked = protocol.encode(protocol.FORK, 0, config | {"guard": list(guards.COMMAND), "guard_env": env})
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(FORK_TIMEOUT_S)
            try:
                client.connect(str(self._home.zygote_socket(name)))
                busy_fd = liveness.make_page()
                try:
                    sent = socket.send_fds(client, [asked], [self._owner_fd, busy_fd])
                finally:
                    os.close(busy_fd)
                client.sendall(asked[sent:])
                error = _answer(client)
            except (OSError, ValueError, protocol.ProtocolError) as failure:
                error = f"{type(failure).__name__}: {failure}"
        if error:
            LOG.warning("no fork from zygote %s, %s starts afresh: %s", name, config["replica_id"], error)
        return not error

    def _observe(self, path: Path) -> Zygote:
        name = path.stem
        try:
            status = self._guards.ask(path, {"command": "status"})
        except TimeoutError:
            return Zygote(name, Phase.STARTING)
        if status is None and not path.exists():  # it was deleted since its name was read: it will be there again
            return Zygote(name, Phase.STARTING)
        if status is None:
            return Zygote(name, Phase.EXITED, reason="its guard was killed")
        phase = Phase(status["phase"])
        memory = tree.own_bytes(status["worker_pid"]) if phase is not Phase.EXITED else 0
        is_refusal = status["exit_code"] == EXIT_REFUSED
        return Zygote(name, phase, status["worker_pid"], status["reason"], is_refusal, memory)


def _answer(client: socket.socket) -> str:
    """The error in the FORKED that zygote or guard sends; empty when there is none."""
    decoder = protocol.Decoder()
    while data := client.recv(65536):
        for kind, _, payload in decoder.feed(data):
            if kind == protocol.FORKED:
                return str(json.loads(payload)["error"])
    return "it hung up"
