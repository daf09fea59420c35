"""`puna up` and `puna down`: run the control plane and the gateway, in the foreground or not."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from puna.cli import output
from puna.cli.options import AsJson
from puna.errors import MachineError, NotFoundError, UsageError
from puna.home import Home

PORT = 8000  # server.DEFAULT_PORT; a test holds the two together, since server is not loaded for --help
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0


def up(
    host: Annotated[str, typer.Option(help="Address to listen on; others than 127.0.0.1 need TLS or --insecure.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = PORT,
    gateways: Annotated[int, typer.Option(help="Gateway processes on the port.")] = 1,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Run in the background; `puna down` ends it.")] = False,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen on any address without TLS.")] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate, PEM.", show_default=False)] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.", show_default=False)] = None,
) -> None:
    """Run the control plane, the gateway and all replicas until Ctrl-C."""
    from puna import server

    if (tls_cert is None) != (tls_key is None):
        raise UsageError("TLS needs a certificate and its key", "give both --tls-cert and --tls-key")
    home = Home.default()
    if detach:
        words = ["--host", host, "--port", str(port), "--gateways", str(gateways)]
        words += ["--insecure"] if insecure else []
        words += ["--tls-cert", str(tls_cert), "--tls-key", str(tls_key)] if tls_cert else []
        _start(home, words)
        output.line(f"puna is up at {_url(home)}; stop it with: puna down")
        return
    tls = server.Tls(tls_cert, tls_key) if tls_cert and tls_key else None
    server.run_up(home, host, port, gateways, insecure=insecure, tls=tls, progress=output.Watch())


def down(json: AsJson = False) -> None:
    """Stop what `puna up` runs: requests in flight finish, replicas end, nothing is left."""
    home = Home.default()
    pid = _pid(home)
    if pid is None:
        if not json:
            output.line("puna is not up: nothing to stop")
        else:
            output.data({"stopped": False})
        return
    _stop(pid)
    output.data({"stopped": True, "pid": pid}) if json else output.line("puna is down")


@contextlib.contextmanager
def running(home: Home) -> Iterator[str]:
    """A `puna up` of this home's own on a free port, for as long as the block lasts; yields its address."""
    process = _start(home, ["--port", "0"])
    try:
        yield _url(home)
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ensure_up(home: Home) -> str:
    """The address of the running `puna up`; one is started in the background when there is none."""
    if _pid(home) is None:
        _start(home, [])
        output.note(f"puna was not up: it is now, at {_url(home)}; stop it with: puna down")
    return _url(home)


def _start(home: Home, words: list[str]) -> subprocess.Popen[bytes]:
    log = home.logs / "up.log"
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "puna", "up", *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, "PUNA_HOME": str(home.root)},
            start_new_session=True,
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if _pid(home) == process.pid:
            return process
        if process.poll() is not None:
            last = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
            raise MachineError("puna up did not start", f"see {log}", last)
        time.sleep(0.02)
    process.terminate()
    raise MachineError(f"puna up was not ready within {START_TIMEOUT_S:g} s", f"see {log}")


def _stop(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while Path("/proc", str(pid)).exists():
        if time.monotonic() > deadline:
            raise MachineError(f"process {pid} did not end within {STOP_TIMEOUT_S:g} s", f"kill -9 {pid}")
        time.sleep(0.05)


def _pid(home: Home) -> int | None:
    from puna.supervisor import read_state

    pid = read_state(home).get("pid")
    alive = isinstance(pid, int) and Path("/proc", str(pid)).exists()
    return pid if alive and isinstance(pid, int) else None


def _url(home: Home) -> str:
    from puna.supervisor import read_state

    url = read_state(home).get("url")
    if not url:
        raise NotFoundError("puna is not up", "puna up")
    return str(url)
