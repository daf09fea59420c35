"""One command of a build: its lines streamed, its environment clean, its descendants ended when it ends."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from puna.config.repository import CREDENTIALS
from puna.errors import BuildError
from puna.process import supervise

_POLL_S = 0.2
_GRACE_S = 1.0  # between being asked to end and being made to
_DRAIN_S = 1.0  # after the command's end: what may not be killed may hold the pipe open for ever
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class BuildCancelledError(BuildError):
    """Somebody asked for the build to stop; nothing of it is left."""


def masked(line: str) -> str:
    """`line` without the credentials of addresses in it and without terminal colours."""
    return CREDENTIALS.sub("***", _ANSI.sub("", line))


def run(
    argv: Sequence[str],
    env: Mapping[str, str],
    folder: Path,
    *,
    log: Callable[[str], None],
    cancelled: Callable[[], bool],
) -> tuple[int, list[str]]:
    """Run `argv` in `folder`, each line of its output given to `log`; `(exit status, lines)`.

    What `cancelled` raises ends the command as well.

    Raises:
        BuildCancelledError: `cancelled()` became true; the command and its descendants are gone.
    """
    lines: list[str] = []
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", supervise.__file__, *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(env),
        cwd=folder,
        start_new_session=True,
    )
    assert process.stdout is not None
    pieces: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read, args=(process.stdout, pieces), daemon=True)
    reader.start()
    try:
        _follow(process, pieces, lines, log, cancelled)
    finally:
        supervise.end(process)
        reader.join(_DRAIN_S)
        if not reader.is_alive():  # closing what another thread reads would wait for that thread
            process.stdout.close()
    return process.returncode, lines


def _follow(
    process: subprocess.Popen[bytes],
    pieces: queue.Queue[str | None],
    lines: list[str],
    log: Callable[[str], None],
    cancelled: Callable[[], bool],
) -> None:
    ended: float | None = None
    while True:
        try:
            line = pieces.get(timeout=_POLL_S)
        except queue.Empty:
            if ended is not None and time.monotonic() - ended > _DRAIN_S:
                return
        else:
            if line is None:
                process.wait()
                return
            lines.append(line)
            log(line)
        if ended is None and process.poll() is not None:
            ended = time.monotonic()
        if ended is None and cancelled():
            _stop(process)
            raise BuildCancelledError("the build was cancelled", "nothing of it is left; start it again when ready")


def _stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=_GRACE_S)


def _read(stream: IO[bytes], pieces: queue.Queue[str | None]) -> None:
    # Carriage returns are how progress bars rewrite a line: what follows the last one is what a person would see.
    with contextlib.suppress(OSError, ValueError):
        for raw in stream:
            line = raw.decode(errors="replace").rstrip("\n\r").rsplit("\r", 1)[-1]
            pieces.put(masked(line))
    pieces.put(None)
