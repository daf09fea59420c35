"""The load: wrk over HTTP, and one caller that speaks the worker's own frames on its Unix socket."""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.worker import protocol

LUA = Path(__file__).with_name("post.lua")
BODY_BYTES = 400
EXPECTED = '"ok"'
"""In every right answer."""


def body() -> bytes:
    """A request of 400 bytes, as KServe v2 has it; every server gets the same."""

    def filled(size: int) -> bytes:
        tensor = {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["x" * size]}
        return json.dumps({"inputs": [tensor]}).encode()

    return filled(BODY_BYTES - len(filled(0)))


@dataclass(frozen=True)
class Target:
    """Where a server takes the request."""

    url: str
    key: str = ""


def need_wrk() -> None:
    """End with 2 when the load generator is missing."""
    if shutil.which("wrk") is None:
        print("wrk, the load generator, is missing: apt-get install wrk", file=sys.stderr)
        raise SystemExit(2)


def wrk(target: Target, connections: int, seconds: float) -> dict[str, Any]:
    """One run of wrk: requests/s, latencies in ms, errors.

    Raises:
        RuntimeError: wrk did not run, or answers were wrong.
    """
    command = ["wrk", "-t", "1", "-c", str(connections), "-d", f"{max(round(seconds), 1)}s", "--timeout", "10s"]
    env = os.environ | {"BENCH_BODY": body().decode(), "BENCH_KEY": target.key, "BENCH_EXPECT": EXPECTED}
    done = subprocess.run([*command, "-s", str(LUA), target.url], env=env, capture_output=True, text=True, check=False)
    line = next((line for line in done.stdout.splitlines() if line.startswith("JSON ")), "")
    if done.returncode or not line:
        raise RuntimeError(f"wrk: exit {done.returncode}\n{done.stdout}{done.stderr}")
    found: dict[str, Any] = json.loads(line.removeprefix("JSON "))
    if found["errors"] or found["wrong"]:
        raise RuntimeError(f"{target.url}: {found['errors']} errors, {found['wrong']} wrong answers of those looked at")
    return found | {"requests_per_s": found["requests"] / found["seconds"]}


def bare_worker(path: str, seconds: float) -> dict[str, Any]:
    """One caller on the worker's own socket, without the gateway: a plain blocking socket, the least there can be."""
    head = {"path": "infer", "deadline_s": 60.0, "trace": "bench", "model_name": "noop", "model_version": "1"}
    payload, took_s, number = json.dumps(head).encode() + b"\n" + body(), [], 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        bound.connect(path)
        decoder, end = protocol.Decoder(), time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            number += 1
            bound.sendall(protocol.encode(protocol.REQUEST, number, payload))
            answered = False
            while not answered:
                for kind, request_id, data in decoder.feed(bound.recv(1 << 16)):
                    if kind == protocol.REPLY and request_id == number:
                        answered = True
                        if EXPECTED.encode() not in data:
                            raise RuntimeError(f"the worker answered {data[:200]!r}")
            took_s.append(time.perf_counter() - began)
    took_s.sort()
    return {
        "requests": len(took_s),
        "requests_per_s": len(took_s) / seconds,
        "p50_ms": statistics.median(took_s) * 1000,
        "p99_ms": took_s[int(len(took_s) * 0.99)] * 1000,
    }
