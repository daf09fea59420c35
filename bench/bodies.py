"""Large bodies at once through one gateway: its memory, and how long another endpoint's small calls take meanwhile.

    .venv/bin/python bench/bodies.py --count 50 --mib 100

A `puna up` of its own in a temporary home with two apps: `sink` takes the bodies, one at a time, `small` answers. Two
processes of clients, so that what is measured is not the measuring: the large ones send all their bodies at once, the
small one calls over a connection that it keeps, for as long as those take, and before them.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from puna.client import Client
from puna.home import Home

APP = """
class InferlessPythonModel:
    def initialize(self):
        pass
    def infer(self, inputs):
        return {"length": len(inputs["prompt"])}
    def finalize(self):
        pass
"""
SCHEMA = 'INPUT_SCHEMA = {"prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["hi"]}}\n'
START, END = b'{"inputs":[{"name":"prompt","shape":[1],"datatype":"BYTES","data":["', b'"]}]}'
PIECE = b"x" * (256 << 10)


def write_app(folder: Path) -> Path:
    """An app that says how long its input was."""
    folder.mkdir()
    (folder / "app.py").write_text(APP)
    (folder / "input_schema.py").write_text(SCHEMA)
    (folder / "inferless-runtime-config.yaml").write_text("build:\n  python_packages: []\n")
    return folder


def send_large(url: str, key: str, size: int) -> int:
    """One request with a body of so many bytes; the status, 0 when the connection broke."""
    at = urlsplit(url)
    head = f"POST /v2/models/sink/infer HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {key}\r\n"
    head += f"content-length: {size}\r\n\r\n"
    with socket.create_connection((str(at.hostname), at.port), timeout=3600) as client:
        try:
            client.sendall(head.encode() + START)
            left = size - len(START) - len(END)
            while left:
                piece = PIECE[: min(left, len(PIECE))]
                client.sendall(piece)
                left -= len(piece)
            client.sendall(END)
            return int(client.recv(65536).split(b" ")[1])
        except (OSError, IndexError, ValueError):
            return 0


def senders(url: str, key: str, count: int, size: int) -> None:
    """The child process: all at once; prints the statuses."""
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(send_large(url, key, size))) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(statuses))


class Small:
    """Calls the other endpoint again and again over one connection."""

    def __init__(self, url: str, key: str) -> None:
        at = urlsplit(url)
        self._client = http.client.HTTPConnection(str(at.hostname), at.port, timeout=60)
        self._headers = {"authorization": f"Bearer {key}"}

    def ask(self) -> float:
        """One call; how many milliseconds it took."""
        began = time.perf_counter()
        self._client.request("POST", "/v2/models/small/infer", START + b"hi" + END, self._headers)
        reply = self._client.getresponse()
        reply.read()
        assert reply.status == 200, reply.status
        return (time.perf_counter() - began) * 1000

    def ask_while(self, going: Any, least: int = 200) -> list[float]:
        """Calls, some 100 a second, for as long as `going()`, and `least` of them."""
        took = []
        while going() or len(took) < least:
            took.append(self.ask())
            time.sleep(0.01)
        return took


def resident_mib(pid: int) -> float:
    """The memory that a process has now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def gateway_of(owner: int) -> int:
    """The gateway that `puna up` started."""
    for child in Path(f"/proc/{owner}/task/{owner}/children").read_text().split():
        if b"gateway" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    raise SystemExit("no gateway")


def measure(count: int, size: int) -> dict[str, Any]:
    """Run it."""
    with tempfile.TemporaryDirectory(prefix="puna-bodies-") as root:
        env = {**os.environ, "PUNA_HOME": f"{root}/home"}
        up = subprocess.Popen([sys.executable, "-m", "puna", "up", "--port", "0"], env=env, stdout=subprocess.DEVNULL)
        try:
            home = Home(Path(root) / "home")
            while not home.state.exists():
                assert up.poll() is None, "puna up did not start"
                time.sleep(0.05)
            return _measure(Client(home=home), Path(root), gateway_of(up.pid), count, size)
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait(60)


def _measure(client: Client, root: Path, gateway: int, count: int, size: int) -> dict[str, Any]:
    settings = {"gpu_type": "cpu", "inference_time_s": 600, "max_replica": 1, "max_queue": count}
    for name in ("sink", "small"):
        deployed = client.deploy(write_app(root / name), name, settings={**settings, "min_replica": 1})
        client.wait_for_build(deployed["build_id"], 300)
        client.wait_for_endpoint(name, deployed["revision"], 120)
    url, key = str(client.health()["url"]), str(client.create_key(["infer"])["key"])
    small = Small(url, key)
    small.ask_while(lambda: False, 50)
    before, resident = small.ask_while(lambda: False, 500), resident_mib(gateway)
    peak = resident
    command = [sys.executable, __file__, "--senders", url, key, str(count), str(size)]
    sending = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    began = time.monotonic()

    def going() -> bool:
        nonlocal peak
        peak = max(peak, resident_mib(gateway))
        return sending.poll() is None

    meanwhile = small.ask_while(going)
    assert sending.stdout is not None
    return {
        "bodies": count,
        "body_mib": size >> 20,
        "seconds": round(time.monotonic() - began, 1),
        "statuses": sorted(json.loads(sending.stdout.read())),
        "gateway_mib_before": round(resident, 1),
        "gateway_mib_peak": round(peak, 1),
        "small_ms_before": _spread(before),
        "small_ms_meanwhile": _spread(meanwhile),
    }


def _spread(took_ms: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(took_ms, n=100)
    spread = {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": max(took_ms)}
    return {"calls": len(took_ms), **{name: round(value, 2) for name, value in spread.items()}}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--mib", type=int, default=100)
    parser.add_argument("--senders", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.senders:
        url, key, count, size = options.senders
        senders(url, key, int(count), int(size))
    else:
        print(json.dumps(measure(options.count, options.mib << 20), indent=2))


if __name__ == "__main__":
    main()
