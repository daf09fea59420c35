"""Commands under supervision: followed while they run, ended with all that they start, and bounded where asked."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from puna.process import supervise

POLL_S = 0.2
GRACE_S = 1.0
"""Between being asked to end and being made to."""
DRAIN_S = 1.0
"""After the command's end: what may not be killed may hold its pipes open for ever."""
KEPT_BYTES = 64 * 1024
"""Of what a bounded command says on stderr, the end."""
Receive = Callable[[bytes], None]


def run(
    argv: Sequence[str],
    env: Mapping[str, str],
    receive: Receive,
    *,
    folder: Path | None = None,
    receive_errors: Receive | None = None,
    check: Callable[[], None] = lambda: None,
) -> int:
    """Run `argv`; its exit status. Its descendants end with it, and all of them with this process.

    `receive` is given stdout piece by piece, and stderr too unless there is `receive_errors`. `check` is called five
    times a second and more. What one of them raises ends the command.
    """
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", supervise.__file__, *argv],
        stdin=pipe,
        stdout=pipe,
        stderr=subprocess.STDOUT if receive_errors is None else pipe,
        env=dict(env),
        cwd=folder,
        start_new_session=True,
    )
    assert process.stdout is not None
    receivers: dict[IO[bytes], Receive] = {process.stdout: receive}
    if receive_errors is not None:
        assert process.stderr is not None
        receivers[process.stderr] = receive_errors
    try:
        _follow(process, receivers, check)
        return process.wait()
    except BaseException:  # the caller sees it; the command may end by itself before it is made to
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(GRACE_S)
        raise
    finally:
        supervise.end(process)
        for file in receivers:
            file.close()


def _follow(
    process: subprocess.Popen[bytes], receivers: Mapping[IO[bytes], Receive], check: Callable[[], None]
) -> None:
    ended: float | None = None
    with selectors.DefaultSelector() as selector:
        for file, receive in receivers.items():
            selector.register(file, selectors.EVENT_READ, receive)
        while selector.get_map() and (ended is None or time.monotonic() - ended < DRAIN_S):
            for key, _ in selector.select(POLL_S):
                if piece := os.read(key.fd, 1 << 16):
                    key.data(piece)
                else:
                    selector.unregister(key.fileobj)
            if ended is None:
                ended = None if process.poll() is None else time.monotonic()
            if ended is None:
                check()


class OutputError(Exception):
    """It wrote too much to stdout, and was ended."""


def run_bounded(
    argv: Sequence[str], env: Mapping[str, str], *, time_s: float, memory_bytes: int, file_bytes: int, output_bytes: int
) -> tuple[int, bytes, bytes]:
    """Run `argv`; `(exit status, stdout, the end of stderr)`. Memory and files are limits of each of its processes.

    Raises:
        TimeoutError: its time is over.
        OutputError: it wrote too much.
    """
    limits = ["prlimit", f"--data={memory_bytes}", f"--fsize={file_bytes}", "--core=0"]
    until = time.monotonic() + time_s
    output, errors = bytearray(), bytearray()

    def receive(piece: bytes) -> None:
        output.extend(piece)
        if len(output) > output_bytes:
            raise OutputError

    def receive_errors(piece: bytes) -> None:
        errors.extend(piece)
        del errors[:-KEPT_BYTES]

    def check() -> None:
        if time.monotonic() > until:
            raise TimeoutError

    status = run([*limits, *argv], env, receive, receive_errors=receive_errors, check=check)
    return status, bytes(output), bytes(errors)
