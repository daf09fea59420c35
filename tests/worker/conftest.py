"""Apps on disk, a worker process over them, and a client that speaks frames."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from puna.backends.local import worker_folder
from puna.worker import protocol
from worker import wire

MINORS = ("3.8", "3.12", "3.13")

PROMPT_SCHEMA = """
    INPUT_SCHEMA = {"prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["What is AI?"]}}
"""
ECHO = """
    class InferlessPythonModel:
        def initialize(self):
            self.greeting = "you said "
        def infer(self, inputs):
            print("asked", inputs["prompt"])
            return {"text": self.greeting + inputs["prompt"]}
        def finalize(self):
            print("bye")
"""


def find_python(minor: str) -> str:
    """A CPython of that minor version: PUNA_TEST_PYTHONS (a path list), PATH, pyenv, uv's; empty when there is none."""
    named = [p for p in os.environ.get("PUNA_TEST_PYTHONS", "").split(os.pathsep) if f"{minor}" in p]
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{minor}.*/bin/python"))
    uvs = sorted(Path.home().glob(f".local/share/uv/python/cpython-{minor}.*/bin/python{minor}"))
    for candidate in (*named, shutil.which(f"python{minor}"), *map(str, pyenv), *map(str, uvs)):
        if candidate and subprocess.run([candidate, "-c", "pass"], capture_output=True).returncode == 0:
            return candidate
    return ""


@pytest.fixture(scope="session", params=["running", *MINORS])
def python(request: pytest.FixtureRequest) -> str:
    """The running Python, then others; those that the machine lacks are skipped."""
    if request.param == "running":
        return sys.executable
    found = find_python(request.param)
    if not found:
        pytest.skip(f"no CPython {request.param} here; PUNA_TEST_PYTHONS may name one")
    return found


@pytest.fixture(scope="session")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The worker as replicas run it: unpacked, so that each Python compiles it once and not at every start."""
    return worker_folder(tmp_path_factory.mktemp("pyz"))


@pytest.fixture
def app(tmp_path: Path) -> Callable[..., Path]:
    """`app("app.py source", **{"other_py": ...})` -> the app's folder; input_schema.py is the tutorial's."""

    def write(source: str | None = ECHO, schema: str | None = PROMPT_SCHEMA, **files: str) -> Path:
        folder = tmp_path / "app"
        folder.mkdir(exist_ok=True)
        every = {"app_py": source, "input_schema_py": schema, **files}
        for name, text in every.items():
            if text is not None:
                stem, _, suffix = name.rpartition("_")
                (folder / f"{stem}.{suffix}").write_text(textwrap.dedent(text))
        return folder

    return write


class Client:
    """A blocking connection to a worker."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        try:
            self.socket.connect(path)
        except OSError:
            self.socket.close()
            raise
        self.decoder = protocol.Decoder()
        self.frames: list[tuple[int, int, bytes]] = []

    def next(self, *skip: int) -> tuple[int, int, bytes]:
        """The next frame whose kind is not in `skip`; (0, 0, b"") at the end of the connection."""
        while True:
            while self.frames:
                frame = self.frames.pop(0)
                if frame[0] not in skip:
                    return frame
            data = self.socket.recv(65536)
            if not data:
                return 0, 0, b""
            self.frames += self.decoder.feed(data)

    def until(self, kind: int) -> Any:
        """The JSON of the next frame of that kind."""
        while True:
            got, _, payload = self.next()
            assert got, f"the connection ended before {wire.NAMES[kind]}"
            if got == kind:
                return json.loads(payload) if payload else None

    def send(self, request_id: int, inputs: Any, **head: Any) -> None:
        """A REQUEST; `inputs` is a dict of scalars, or the whole body as bytes."""
        self.socket.sendall(self.request(request_id, inputs, **head))

    @staticmethod
    def request(request_id: int, inputs: Any, **head: Any) -> bytes:
        """The bytes of a REQUEST."""
        body = inputs
        if not isinstance(inputs, bytes):
            tensors = [{"name": k, "shape": [1], "data": [v]} for k, v in inputs.items()]
            body = json.dumps({"inputs": tensors}).encode()
        head = {"path": "infer", "deadline_s": 10.0, "trace": f"t{request_id}", "model_name": "m"} | head
        return wire.request(request_id, head, body)

    def reply(self) -> tuple[int, int, Any]:
        """`(request id, status, body)` of the next REPLY."""
        kind, request_id, payload = self.next(protocol.STARTED, protocol.READY, protocol.HELLO, protocol.END)
        assert kind == protocol.REPLY, wire.NAMES.get(kind, kind)
        status, body = protocol.decode_reply(payload)
        return request_id, status, json.loads(body)

    def call(self, inputs: Any, **head: Any) -> tuple[int, Any]:
        self.send(1, inputs, **head)
        return self.reply()[1:]


class Worker:
    """A worker process without a guard."""

    def __init__(self, python: str, pyz: Path, folder: Path, path: str, *options: str) -> None:
        self.path, self.log = path, folder.parent / "worker.log"
        read, self.lifeline = os.pipe()
        self.clients: list[Client] = []
        argv = [python, "-I", str(pyz), "serve", "--socket", path, "--app", str(folder), "--parent-fd", str(read)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*argv, *options], stdout=log, stderr=log, pass_fds=(read,))
        os.close(read)

    def client(self) -> Client:
        """A connection; its HELLO is still to be read."""
        end = time.monotonic() + 10
        while True:
            try:
                self.clients.append(Client(self.path))
                return self.clients[-1]
            except OSError:
                assert time.monotonic() < end, self.log.read_text()
                time.sleep(0.01)

    def ready(self) -> Client:
        """A connection to a worker that is ready."""
        client = self.client()
        if client.until(protocol.HELLO)["state"] != "ready":
            client.until(protocol.READY)
        return client

    def text(self) -> str:
        return self.log.read_text()

    def end(self) -> None:
        for client in self.clients:
            client.socket.close()
        with contextlib.suppress(OSError):
            os.close(self.lifeline)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


@pytest.fixture
def start(pyz: Path) -> Iterator[Callable[..., Worker]]:
    """`start(folder, *options, python=...)` -> a Worker, ended with the test."""
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory(prefix="puna") as sockets:  # tmp_path may be too long for a socket

        def begin(folder: Path, *options: str, python: str = sys.executable) -> Worker:
            workers.append(Worker(python, pyz, folder, f"{sockets}/{len(workers)}.sock", *options))
            return workers[-1]

        yield begin
        for worker in workers:
            worker.end()


@pytest.fixture
def validated(pyz: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`validated(folder, python=...)` -> the report."""

    def run(folder: Path, python: str = sys.executable) -> dict[str, Any]:
        report = tmp_path / "report.json"
        argv = [python, "-I", str(pyz), "validate", "--app", str(folder), "--report", str(report)]
        process = subprocess.run(argv, capture_output=True, text=True, timeout=30)
        told: dict[str, Any] = json.loads(report.read_text())
        assert process.returncode == (0 if told["ok"] else 1), process.stderr
        return told | {"log": process.stdout + process.stderr}

    return run
