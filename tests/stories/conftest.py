"""A real `puna up` in a home of its own, an app of a few lines, and callers that never give up early."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from load import load_factor
from puna.client import Client
from puna.errors import ConflictError, PunaError
from puna.home import Home
from stories import commands

RUN_UP = """
import sys
from puna.front import Front
from puna.home import Home
from puna.server import run_up

class Progress:
    def stage(self, name): pass
    def advance(self, done, total, **figures): pass
    def note(self, text): print(text, flush=True)

run_up(Home.default(), Front(port=0), int(sys.argv[1]), progress=Progress())
"""

APP = """
import os, time
class InferlessPythonModel:
    def initialize(self):
        time.sleep({initialize_s})
        print("ready", flush=True)
    def infer(self, inputs):
        time.sleep({infer_s})
        return {{"out": "{version}:" + inputs["prompt"], "pid": str(os.getpid())}}
    def finalize(self):
        pass
"""
SCHEMA = """
INPUT_SCHEMA = {"prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["hi"]}}
"""


class Up:
    """One `puna up`."""

    def __init__(
        self, root: Path, gateways: int = 1, files: tuple[int, int] | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        """`files`: the soft and the hard limit of open files that it begins with."""
        self.home = Home(root)
        self.env = {**os.environ, **(env or {}), "PUNA_HOME": str(root)}
        self.log = root / "up.log"
        with self.log.open("ab") as log:
            command = [sys.executable, "-c", RUN_UP, str(gateways)]
            if files is not None:
                command = ["prlimit", f"--nofile={files[0]}:{files[1]}", *command]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self.env)
        try:
            self._wait_until_up()
        except BaseException:  # pytest says so; nobody else could end what has been started
            for pid in [self.process.pid, *family(self.home.root)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            raise
        self.client = Client(home=self.home)
        self.url = str(self.client.health()["url"])
        # A connection for each call, as from a command line; no certificates, whose reading takes 50 ms.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self.http = httpx.Client(base_url=self.url, timeout=60, limits=limits, verify=False)
        self.key = str(self.client.create_key(["infer"])["key"])

    def _wait_until_up(self) -> None:
        began = time.monotonic()
        while True:
            state = json.loads(self.home.state.read_text()) if self.home.state.exists() else {}
            if state.get("pid") == self.process.pid:
                return
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() - began < 60 * load_factor(), self.log.read_text()
            time.sleep(0.02)

    def deploy(self, folder: Path, name: str = "app", **settings: Any) -> int:
        """Deploy and wait until the revision serves; returns its number."""
        deployed = self.client.deploy(folder, name, settings={"gpu_type": "cpu", **settings})
        try:
            self.client.wait_for_build(deployed["build_id"], 120 * load_factor())
        except PunaError as error:
            error.add_note(f"{error.detail}\n{error.hint}")  # pytest shows these, and of the error its first line only
            raise
        self.client.wait_for_endpoint(name, deployed["revision"], 60 * load_factor())
        return int(deployed["revision"])

    def call(self, text: str = "hi", name: str = "app", key: str = "") -> httpx.Response:
        """One request, once."""
        body = {"inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": [text]}]}
        headers = {"authorization": f"Bearer {key or self.key}"}
        return self.http.post(f"/v2/models/{name}/infer", json=body, headers=headers)

    def puna(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of the command line, ended."""
        return commands.run(words, self.env, 120 * load_factor())

    def pids(self, role: str) -> list[int]:
        """Processes of this home whose command line has `role`: `server control`, `server gateway`, `guard`."""
        found = []
        for pid in family(self.home.root):
            with contextlib.suppress(OSError):  # it has just ended
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if role in command:
                    found.append(pid)
        return found

    def worker_pids(self, name: str = "app") -> list[int]:
        """The workers of an endpoint's ready replicas."""
        return [r["pid"] for r in self.client.endpoint(name)["replicas"] if r["state"] == "ready"]

    def replace(self, role: str) -> None:
        """Kill the one process of that role; its successor is there when this returns."""
        first = self.pids(role)[:1]  # what it forks bears its command line for a moment
        os.kill(first[0], signal.SIGKILL)
        # A killed one has no command line any more while its sockets still take connections.
        self.until(lambda: self.pids(role)[:1] not in ([], first), 60, f"a new {role}")

    def until(self, condition: Any, within_s: float = 30.0, what: str = "") -> None:
        """Wait until `condition()` holds; longer where others use the machine too."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < within_s * load_factor(), f"{what} did not happen\n{self.evidence()}"
            time.sleep(0.05)

    def evidence(self) -> str:
        """What the books say, and the last lines of every log, for a test that fails."""
        for pid in [*self.pids("puna.server control"), *self.pids("puna.server gateway")]:
            os.kill(pid, signal.SIGUSR1)  # its stacks, into its log
        time.sleep(0.5)
        logs = [self.log, *sorted(self.home.logs.rglob("*.log"))]
        try:
            books = json.dumps(self.client.endpoint("app")["replicas"], default=str)
        except PunaError as error:
            books = f"the control plane does not answer: {error}"
        texts = [f"--- {log.name}\n" + log.read_text(errors="replace")[-4000:] for log in logs]
        return "\n".join([books, *texts])

    def clear(self) -> None:
        """Delete everything that was deployed or made; keys stay."""
        for endpoint in self.client.endpoints():
            self.client.delete(endpoint["name"])
        self.until(lambda: not self.client.endpoints(), what="the end of every endpoint")
        for volume in self.client.volumes():
            self._delete(self.client.delete_volume, volume["name"])
        for name in {runtime["name"] for runtime in self.client.runtimes()}:
            self._delete(self.client.delete_runtime, name)
        for secret in self.client.secrets():
            self.client.delete_secret(secret["name"])

    def _delete(self, delete: Callable[[str], object], name: str) -> None:
        def is_deleted() -> bool:
            try:
                delete(name)
            except ConflictError:
                return False  # an endpoint that ends still uses it
            return True

        self.until(is_deleted, what=f"the end of who uses {name}")

    def down(self) -> None:
        """As `puna down`."""
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(60 * load_factor())


class Callers:
    """`count` threads that call ten times a second, and again when a connection breaks before a reply, as clients."""

    def __init__(self, up: Up, name: str = "app", count: int = 8) -> None:
        self.up, self.name = up, name
        self.answers: list[tuple[int, str]] = []
        self.broken = 0
        self.longest_s = 0.0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(count)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _call(self, number: int) -> None:
        asked = 0
        while not self._stop.wait(0.1):
            asked += 1
            text, began = f"{number}.{asked}", time.monotonic()
            while True:
                try:
                    reply = self.up.call(text, self.name)
                    break
                except httpx.TransportError:
                    with self._lock:
                        self.broken += 1
            with self._lock:
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                ok = reply.status_code == 200 and f":{text}" in reply.text
                self.answers.append((reply.status_code if ok or reply.status_code != 200 else -1, reply.text[:300]))

    def failed(self) -> list[tuple[int, str]]:
        """Every answer that was not the right one."""
        return [answer for answer in self.answers if answer[0] != 200]

    def more(self, count: int) -> None:
        """Wait for `count` more answers."""
        target = len(self.answers) + count
        self.up.until(lambda: len(self.answers) >= target, 60, f"{count} more answers")


def family(root: Path) -> list[int]:
    """Living processes whose environment or command line names this home."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            text = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
            zombie = b") Z " in (folder / "stat").read_bytes()
        except OSError:
            continue
        if os.fsencode(root) in text and not zombie:
            found.append(int(folder.name))
    return sorted(found)


def write_app(folder: Path, version: str = "v1", initialize_s: float = 0.0, infer_s: float = 0.0) -> Path:
    """An app folder without any package."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "app.py").write_text(
        textwrap.dedent(APP).format(version=version, initialize_s=initialize_s, infer_s=infer_s)
    )
    (folder / "input_schema.py").write_text(SCHEMA)
    (folder / "inferless-runtime-config.yaml").write_text("build:\n  python_packages: []\n")
    return folder


@contextlib.contextmanager
def standing() -> Iterator[Up]:
    """A `puna up` that is to stand at the end, and to leave nothing when it is told to stop."""
    with tempfile.TemporaryDirectory(prefix="puna-") as root:
        up = Up(Path(root))
        yield up
        up.down()
        assert family(Path(root)) == []


@pytest.fixture(scope="session")
def lasting_up() -> Iterator[Up]:
    """A `puna up` for all stories that leave it standing."""
    with standing() as up:
        yield up


@pytest.fixture(scope="module")
def shared_up(lasting_up: Up) -> Iterator[Up]:
    """The `puna up` that files share, with nothing deployed when a file begins."""
    yield lasting_up
    lasting_up.clear()


@pytest.fixture
def own_up() -> Iterator[Up]:
    """A `puna up` of one story's own."""
    with tempfile.TemporaryDirectory(prefix="puna-") as root:
        up = Up(Path(root))
        yield up
        if up.process.poll() is None:
            up.down()
        up.client.close()
