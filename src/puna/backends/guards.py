"""Guards as their owner has them: start one, ask it something, and know the files that it leaves when it is killed."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from puna import descriptors
from puna.backends import guard
from puna.errors import MachineError

# -S: no site-packages, so a guard starts in 30 ms and nothing of Puna's environment can break it.
COMMAND = (sys.executable, "-I", "-S", guard.__file__)
START_S = 30.0
ASK_TIMEOUT_S = 5.0  # a guard that kills a tree whose processes hang in a driver answers late


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


def ask(path: Path, command: dict[str, object]) -> dict[str, Any] | None:
    """What the guard that listens at `path` answers; None when there is no living guard.

    Raises:
        TimeoutError: it is there, and too busy to answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(ASK_TIMEOUT_S)
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
    told: dict[str, Any] = json.loads(answer)
    return told


def files(path: Path) -> dict[str, str]:
    """The files beside the guard's socket at `path`, by their key in its config."""
    suffix = path.suffix
    return {
        "guard_socket": str(path),
        "record": str(path.with_suffix(f"{suffix}-record")),
        "lock": str(path.with_suffix(f"{suffix}-lock")),
    }
