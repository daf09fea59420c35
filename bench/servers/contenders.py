"""Who is measured: Puna, and its peers, each in an environment of its own that uv makes once."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from puna.client import Client
from puna.home import Home
from servers.load import Target, body

HERE = Path(__file__).parent
START_TIMEOUT_S, STOP_TIMEOUT_S = 120.0, 20.0
ENDPOINT = "noop"


@dataclass(frozen=True)
class Peer:
    """Another server: the packages of its environment, of which the first names its version."""

    name: str
    packages: tuple[str, ...]
    settle_s: float = 1.0
    """What it still does after its first answer."""


PEERS = {
    peer.name: peer
    for peer in (
        Peer("fastapi", ("fastapi==0.163.2", "uvicorn[standard]==0.54.0")),
        Peer("litserve", ("litserve==0.2.19",)),
        Peer("bentoml", ("bentoml==1.4.39",)),
        Peer("ray", ("ray[serve]==2.60.0",), 5.0),
    )
}


class Puna:
    """A real `puna up` in a temporary home with the no-op app deployed."""

    def __init__(self, home: Home, process: subprocess.Popen[bytes]) -> None:
        self.home, self.process = home, process
        self.client = Client(home=home)
        deployed = self.client.deploy(HERE / "noop", ENDPOINT, settings={"gpu_type": "cpu", "min_replica": 1})
        self.client.wait_for_build(deployed["build_id"], START_TIMEOUT_S)
        self.client.wait_for_endpoint(ENDPOINT, deployed["revision"], START_TIMEOUT_S)
        key = str(self.client.create_key(["infer"])["key"])
        self.target = Target(f"{self.client.health()['url']}/v2/models/{ENDPOINT}/infer", key)

    def worker_socket(self) -> str:
        """The Unix socket of the one replica's worker."""
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.home.control_socket), verify=False)) as control:
            table = control.get("http://control/internal/routes?since=-1&wait_s=0").json()
        return str(table["endpoints"][ENDPOINT]["replicas"][0]["socket"])

    def processes(self) -> dict[str, int]:
        """Every process of this `puna up`, by what it is; guards are nobody's children, so their home tells them."""
        found, mark = {}, os.fsencode(self.home.root)
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdigit() and mark in (folder / "environ").read_bytes():
                    words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    found[f"{_role(words)} {folder.name}"] = int(folder.name)
        return found


@contextlib.contextmanager
def puna(
    gateways: int = 1, prepare: Callable[[Home], None] | None = None, source: Path | None = None
) -> Iterator[Puna]:
    """Puna up, in a home that `prepare` has filled, and down again; `source` is a `src` folder to run instead."""
    with tempfile.TemporaryDirectory(prefix="puna-bench-") as root:
        home = Home(Path(root))
        if prepare is not None:
            prepare(home)
        env = os.environ | {"PUNA_HOME": root} | ({"PYTHONPATH": str(source)} if source else {})
        command = [sys.executable, "-m", "puna", "up", "--port", "0", "--gateways", str(gateways)]
        with (home.root / "up.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        try:
            try:
                _wait(lambda: home.state.exists() and json.loads(home.state.read_text())["pid"] == process.pid, process)
            except RuntimeError as error:
                raise RuntimeError(f"{error}\n{(home.root / 'up.log').read_text(errors='replace')[-2000:]}") from error
            running = Puna(home, process)
            wait_for_answer(running.target, process)
            yield running
            running.client.close()
        finally:
            _end(process)


@contextlib.contextmanager
def peer(kind: Peer, environments: Path) -> Iterator[Target]:
    """A peer up, and down again."""
    python = environment(kind, environments)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = HERE / "peers" / f"{kind.name}_peer.py"
    with tempfile.TemporaryDirectory(prefix="puna-bench-") as folder, (Path(folder) / "log").open("ab") as log:
        env = os.environ | {"BENTOML_DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0", "HOME": folder}
        env["PATH"] = f"{python.parent}{os.pathsep}{env['PATH']}"
        process = subprocess.Popen(
            [str(python), str(script), str(port)], stdout=log, stderr=log, env=env, cwd=folder, start_new_session=True
        )
        target = Target(f"http://127.0.0.1:{port}/infer")
        try:
            wait_for_answer(target, process)
            time.sleep(kind.settle_s)
            yield target
        except RuntimeError as error:
            log.flush()
            raise RuntimeError(f"{error}\n{(Path(folder) / 'log').read_text(errors='replace')[-2000:]}") from error
        finally:
            _end(process)


def environment(kind: Peer, environments: Path) -> Path:
    """The interpreter of the peer's own environment, made with uv when it is not there."""
    folder = environments / "-".join([kind.name, kind.packages[0].partition("==")[2]])
    python = folder / "bin" / "python"
    done = folder / "ready"
    if not done.exists():
        print(f"making the environment of {kind.name} ...", file=sys.stderr, flush=True)
        uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}") or "uv"
        subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, str(folder)], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--python", str(python), *kind.packages], check=True)
        done.touch()
    return python


def wait_for_answer(target: Target, process: subprocess.Popen[bytes]) -> None:
    """Until the right answer comes once."""
    request = urllib.request.Request(target.url, data=body(), headers={"content-type": "application/json"})
    if target.key:
        request.add_header("authorization", f"Bearer {target.key}")

    def answers() -> bool:
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                return bool(reply.status == 200 and b'"ok"' in reply.read())
        except OSError:
            return False

    _wait(answers, process)


def _wait(condition: Any, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not condition():
        if process.poll() is not None:
            raise RuntimeError(f"it ended with {process.returncode} instead of starting")
        if time.monotonic() > deadline:
            raise RuntimeError(f"it did not answer within {START_TIMEOUT_S:g} s")
        time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL for what stays: a peer's workers may outlive its first process."""
    others = _descendants(process.pid)
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    for pid in {process.pid, *others}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _descendants(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in path.read_text().split():
                found += [int(child), *_descendants(int(child))]
    return found


def _role(words: list[str]) -> str:
    for role in ("up", "control", "gateway", "guard.py", "zygote", "serve"):
        if role in {Path(word).name for word in words}:
            return {"guard.py": "guard", "serve": "worker"}.get(role, role)
    return " ".join(words)
