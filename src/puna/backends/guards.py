"""Guards as their owner has them: start one, ask it something, and know the files that it leaves when it is killed."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.backends.base import Launch
from puna.errors import MachineError
from puna.process import descriptors, guard, tree

# -S: no site-packages, so a guard starts in 30 ms and nothing of Puna's environment can break it.
COMMAND = (sys.executable, "-I", "-S", guard.__file__)
START_S = 30.0
STATUS_TIMEOUT_S, SILENT_TIMEOUT_S, SILENT_AGAIN_S = 1.0, 0.05, 1.0
"""A guard that has not answered is asked again after a second, and then waited for only a moment."""
SILENT_S, MOST_OF_A_TURN_S = 12.0, 2.0
"""One that has been silent for so long is ended. Between two askings no more than that counts: who asks may be late."""
SILENT = f"its guard did not answer for {SILENT_S:g} s (stopped or deadlocked) and was ended"
ASK_TIMEOUT_S = 5.0  # a guard that kills a tree whose processes hang in a driver answers late


def worker_command(launch: Launch, worker: Path, mode: str, *options: str) -> list[str]:
    """The command line of the worker in the folder `worker`; `mode` is `serve`, `validate` or `zygote`."""
    return [str(launch.python), "-I", str(worker), mode, "--app", str(launch.app), *options]


def config(launch: Launch, mode: str, argv: list[str], owner_fd: int) -> dict[str, Any]:
    """The configuration of a guard; `mode` is `serve`, `run` or `zygote`."""
    return {
        "mode": mode,
        "replica_id": launch.replica_id,
        "argv": argv,
        "cwd": str(launch.app),
        "env": dict(launch.env),
        "log": str(launch.log),
        "socket": str(launch.socket),
        "owner_fd": owner_fd,
        "startup_timeout_s": launch.startup_timeout_s,
        "inference_time_s": launch.inference_time_s,
    }


def begin(config: dict[str, Any], *, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
    """A guard that has its config; the caller waits for it."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(COMMAND, stdin=pipe, stdout=pipe, stderr=pipe, pass_fds=pass_fds)
    with contextlib.suppress(OSError):  # as below
        descriptors.give_back(process.pid)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died at once: its exit status says so
        process.stdin.write(json.dumps(config).encode() + b"\n")
        process.stdin.flush()
    return process


def start(config: dict[str, Any]) -> None:
    """Start a guard that goes on by itself; returns when it listens (some 30 ms).

    Raises:
        MachineError: it could not be started.
    """
    Path(config["log"]).parent.mkdir(parents=True, exist_ok=True)
    with begin(config, pass_fds=(config["owner_fd"],)) as process:
        _, complaint = process.communicate(timeout=START_S)
    if process.returncode != 0:
        raise MachineError(f"no guard for {config['replica_id']}", "see the detail", complaint.decode(errors="replace"))


def ask(path: Path, command: dict[str, object], timeout_s: float = ASK_TIMEOUT_S) -> dict[str, Any] | None:
    """Ask the guard that listens at `path`; None when there is no living guard.

    Raises:
        TimeoutError: it is there, and too busy to answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout_s)
        try:
            client.connect(str(path))
            client.sendall(json.dumps(command).encode() + b"\n")
            answer = bytearray()
            while not answer.endswith(b"\n"):
                piece = client.recv(1 << 20)
                if not piece:
                    return None
                answer += piece
        except (FileNotFoundError, ConnectionError):
            return None
        except BlockingIOError:
            raise TimeoutError(f"{path}: too many wait for an answer") from None
    status: dict[str, Any] = json.loads(answer)
    return status


@dataclass
class _Silent:
    """A guard that does not answer."""

    asked: float
    silent_s: float = 0.0


class Guards:
    """Asks guards, and ends those that stay silent: what they guard ends with them and is started anew."""

    def __init__(self) -> None:
        """All of them answer."""
        self._silent: dict[Path, _Silent] = {}
        self.ended: set[Path] = set()
        """Those that were ended here."""

    @property
    def silent(self) -> list[Path]:
        """The sockets of those that do not answer."""
        return list(self._silent)

    def ask(self, path: Path, command: dict[str, object]) -> dict[str, Any] | None:
        """As `ask`, and never for long while the guard is known to be silent.

        Raises:
            TimeoutError: it is there, and did not answer.
        """
        began, silent = time.monotonic(), self._silent.get(path)
        if silent is not None and began - silent.asked < SILENT_AGAIN_S:
            raise TimeoutError(f"{path} does not answer")
        timeout_s = STATUS_TIMEOUT_S if command["command"] == "status" else ASK_TIMEOUT_S
        try:
            reply = ask(path, command, timeout_s if silent is None else SILENT_TIMEOUT_S)
        except TimeoutError:
            self._note(path, began)
            raise
        self._silent.pop(path, None)
        if reply is not None:
            self.ended.discard(path)
        return reply

    def _note(self, path: Path, began: float) -> None:
        now, silent = time.monotonic(), self._silent.setdefault(path, _Silent(began))
        silent.silent_s += min(now - silent.asked, MOST_OF_A_TURN_S)
        silent.asked = now
        if silent.silent_s < SILENT_S:
            return
        try:
            record = json.loads(Path(files(path)["record"]).read_text())
            pid, began_ticks = int(record["guard_pid"]), record["guard_start"]
        except (OSError, ValueError, KeyError):
            return
        if tree.kill(tree.Process(pid, began_ticks)):
            self.ended.add(path)


def files(path: Path) -> dict[str, str]:
    """The files beside the guard's socket at `path`, by their key in its config."""
    suffix = path.suffix
    return {
        "guard_socket": str(path),
        "record": str(path.with_suffix(f"{suffix}-record")),
        "lock": str(path.with_suffix(f"{suffix}-lock")),
    }
