"""A `puna up` that is another process: started, found, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from puna.cli import output
from puna.errors import MachineError
from puna.home import Home
from puna.instance import pid_of, url_of
from puna.process import tree
from puna.process.tree import Process

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0


@contextlib.contextmanager
def running(home: Home) -> Iterator[str]:
    """A `puna up` of this home's own on a free port, for as long as the block lasts; yields its address."""
    process = start(home, ["--port", "0"])
    try:
        yield url_of(home)
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ensure_up(home: Home) -> str:
    """The address of the running `puna up`; one is started in the background when there is none."""
    if pid_of(home) is None:
        start(home, [])
        output.note(f"puna was not up: it is now, at {url_of(home)}; stop it with: puna down")
    return url_of(home)


def start(home: Home, words: list[str]) -> subprocess.Popen[bytes]:
    """`puna up` with these options in the background, once it is up.

    Raises:
        MachineError: it did not start; with the end of its log.
    """
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
        if pid_of(home) == process.pid:
            return process
        if process.poll() is not None:
            last = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
            raise MachineError("puna up did not start", f"see {log}", last)
        time.sleep(0.02)
    process.terminate()
    raise MachineError(f"puna up was not ready within {START_TIMEOUT_S:g} s", f"see {log}")


def stop(owner: Process) -> None:
    """End it, as Ctrl-C would; `owner` is what `owner_of` gave.

    Raises:
        MachineError: it did not end.
    """
    tree.kill(owner, signal.SIGTERM)
    tree.kill(owner, signal.SIGCONT)  # one that somebody has stopped would never hear of it
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while tree.is_alive(owner):
        if time.monotonic() > deadline:
            what = f"`puna up` (process {owner.pid}) did not end within {STOP_TIMEOUT_S:g} s"
            raise MachineError(what, "puna down (told twice, it no longer waits for requests in flight)")
        time.sleep(0.05)
