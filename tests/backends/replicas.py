"""Apps to run, the pipe that owns them, and ways to see what is left of a process tree."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from puna.backends.base import Launch, Observed, Phase
from puna.backends.local import LocalBackend
from puna.process import tree
from puna.worker import protocol
from worker import wire

ECHO = """
    class InferlessPythonModel:
        def initialize(self):
            print("up")
        def infer(self, inputs):
            return {"text": "you said " + inputs["prompt"]}
        def finalize(self):
            print("down")
"""
# A tree as engines make them: a plain child, one in a session of its own, and an orphan in a session of its own.
FAMILY = """
    import subprocess, sys
    class InferlessPythonModel:
        def initialize(self):
            subprocess.Popen(["sleep", MARK])
            subprocess.Popen(["setsid", "sleep", MARK])
            code = "import subprocess; subprocess.Popen(['setsid', 'sleep', '%s'])" % MARK
            subprocess.run([sys.executable, "-c", code])
        def infer(self, inputs):
            return {"text": "x"}
"""
SCHEMA = "INPUT_SCHEMA = {'prompt': {'datatype': 'STRING', 'shape': [1], 'example': ['hi']}}\n"


class Owner:
    """The write end of the pipe whose end is the end of all replicas."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe()

    def die(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.write)


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def wait_until(is_so: Callable[[], object], limit_s: float, what: str) -> float:
    """Seconds until `is_so()`; fails after `limit_s`."""
    begun = time.monotonic()
    while not is_so():
        assert time.monotonic() - begun < limit_s, what
        time.sleep(0.01)
    return time.monotonic() - begun


def wait_for(backend: LocalBackend, phase: Phase, replica_id: str = "r1", limit_s: float = 10) -> Observed:
    """The replica once it is in `phase`."""
    seen: list[Observed] = []

    def is_there() -> bool:
        seen[:] = [one for one in backend.list() if one.replica_id == replica_id]
        return bool(seen) and seen[0].phase in (phase, Phase.EXITED)

    wait_until(is_there, limit_s, f"{replica_id} never became {phase}: {seen}")
    assert seen[0].phase == phase, seen[0]
    return seen[0]


def processes_with(mark: str) -> list[int]:
    """Living processes that have `mark` as an argument."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def is_alive(pid: int) -> bool:
    """Also while its main thread alone has ended: its sockets still take what comes then, and cut it."""
    found = tree.stat(pid)
    return found is not None and not found.has_ended


def call(launch: Launch, prompt: str, timeout_s: float = 10) -> str:
    """What a replica's output is for a prompt; `infer` must not fail."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(timeout_s)
        client.connect(str(launch.socket))
        tensors = {"inputs": [{"name": "prompt", "shape": [1], "data": [prompt]}]}
        head = {"path": "infer", "deadline_s": timeout_s, "trace": "t", "model_name": "m"}
        client.sendall(wire.request(1, head, json.dumps(tensors).encode()))
        decoder = protocol.Decoder()
        while True:
            for kind, _, payload in decoder.feed(client.recv(65536)):
                if kind == protocol.REPLY:
                    status, body = protocol.decode_reply(payload)
                    assert status == 200, body
                    return str(json.loads(body)["outputs"][0]["data"][0])
