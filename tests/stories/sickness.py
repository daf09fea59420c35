"""Ways to make each process of a `puna up` sick without killing it, under callers, and to time how it gets well.

Gateways and control plane are reached through a `sitecustomize` of the test's own: on SIGUSR2 they run what stands in a
file. Replicas have an app that does what its input says.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from load import load_factor
from puna.errors import PunaError
from stories.conftest import SCHEMA, Callers, Up

KINDS = {
    "stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
    "held in C": "ctypes.PyDLL(None).sleep(10**6)",
    "descriptors closed": "os.closerange(3, 1000)",
    "deadlocked": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
}
INFERENCE_TIME_S = 3.0
WITHIN_S = {"worker": INFERENCE_TIME_S + 10, "gateway": 15.0, "control": 15.0}
SITE = """
import signal
def _sicken(*_):
    import ctypes, os, re, threading
    exec(open(os.environ["PUNA_SICKEN"]).read(), {**globals(), **locals()})
signal.signal(signal.SIGUSR2, _sicken)
"""
APP = """
import ctypes, os, re, signal, threading, time
class InferlessPythonModel:
    def infer(self, inputs):
        if inputs["prompt"].startswith("do "):
            _, once, code = inputs["prompt"].split(" ", 2)
            try:
                open(once, "x").close()
            except FileExistsError:
                return {"out": "done elsewhere"}
            exec(code, globals())
            time.sleep(600)
        time.sleep(0.02)
        return {"out": ":" + inputs["prompt"]}
"""


@dataclass
class Recovery:
    """What one sickness cost."""

    role: str
    kind: str
    recovered_s: float
    failed: list[tuple[int, str]]
    """Replies to the eight callers that were not the right ones; the call that made a replica sick is none of them."""
    broken: int
    """Their connections that ended before a reply."""
    answered: int


def limit_s(role: str) -> float:
    """How long a recovery may take, here and now: starting Python takes longer where others use the machine too."""
    return WITHIN_S[role] * load_factor()


@contextlib.contextmanager
def standing(root: Path) -> Iterator[Up]:
    """A `puna up` with two gateways and an app on two replicas, each of which can be made sick; killed at the end."""
    for name in ("site", "app", "home"):
        (root / name).mkdir()
    up = Up(root / "home", gateways=2, env=sickening(root / "site"))
    try:
        app = write_sick_app(root / "app")
        up.deploy(app, min_replica=2, max_replica=2, inference_time_s=INFERENCE_TIME_S)
        up.until(lambda: len(up.worker_pids()) == 2, 60, "two replicas")
        yield up
    finally:
        up.client.close()
        up.process.kill()
        up.process.wait()


def sickening(root: Path) -> dict[str, str]:
    """What the environment of `puna up` needs for `sicken`."""
    (root / "sitecustomize.py").write_text(SITE)
    return {
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
        "PUNA_SICKEN": str(root / "do"),
    }


def write_sick_app(folder: Path) -> Path:
    """An app that does what `do ...` says."""
    (folder / "app.py").write_text(APP)
    (folder / "input_schema.py").write_text(SCHEMA)
    (folder / "inferless-runtime-config.yaml").write_text("build:\n  python_packages: []\n")
    return folder


def sicken(up: Up, role: str, kind: str) -> Recovery:
    """Make one process sick under eight callers; returns when it is replaced and serves."""
    with Callers(up) as callers:
        callers.more(20)
        if role == "worker":
            took_s = _sicken_worker(up, KINDS[kind])
        else:
            took_s = _sicken_process(up, role, KINDS[kind])
        callers.more(20)
    return Recovery(role, kind, took_s, callers.failed(), callers.broken, len(callers.answers))


def _sicken_worker(up: Up, code: str) -> float:
    once = up.home.root / f"once-{time.monotonic_ns()}"
    body = {"inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": [f"do {once} {code}"]}]}
    # A key of its own each time: one whose requests end six replicas is refused for a while, and callers have theirs.
    key = str(up.client.create_key(["infer"])["key"])
    with httpx.Client(base_url=up.url, headers={"authorization": f"Bearer {key}"}) as client:
        before, began = set(up.worker_pids()), time.monotonic()
        try:
            reply = client.post("/v2/models/app/infer", json=body, timeout=INFERENCE_TIME_S / 2)
            assert "done elsewhere" in reply.text, f"neither hung nor replaced: {reply.status_code} {reply.text}"
        except httpx.TransportError:
            pass  # it hangs
    up.until(lambda: len(up.worker_pids()) == len(before) and set(up.worker_pids()) != before, 60, "the new replica")
    return time.monotonic() - began


def _sicken_process(up: Up, role: str, code: str) -> float:
    before = up.pids(f"puna.server {role}")
    Path(up.env["PUNA_SICKEN"]).write_text(code)
    began = time.monotonic()
    os.kill(before[0], signal.SIGUSR2)
    _until(lambda: before[0] not in (now := up.pids(f"puna.server {role}")) and len(now) == len(before), up, role)
    if role == "control":
        _until(lambda: _is_well(up), up, role)
    else:
        _until(lambda: up.call().status_code == 200, up, role)
    return time.monotonic() - began


def _until(is_so: Callable[[], object], up: Up, role: str) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end, f"the {role} was not replaced\n{up.log.read_text()}"
        time.sleep(0.05)


def _is_well(up: Up) -> bool:
    try:
        return bool(up.client.health()["status"] == "ok")
    except PunaError:
        return False
