"""One command that may take so much time, memory, disk and output, and leaves no process behind."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from puna.process import supervise

KEPT_BYTES = 64 * 1024
"""Of what it says on stderr, the end."""


@dataclass(frozen=True)
class Bounds:
    """What a command, with all that it starts, may take; memory and files are each process's own."""

    time_s: float
    memory_bytes: int
    file_bytes: int
    output_bytes: int


class TimeError(Exception):
    """It took too long, and was ended."""


class OutputError(Exception):
    """It wrote too much to stdout, and was ended."""


def run(argv: Sequence[str], env: Mapping[str, str], bounds: Bounds) -> tuple[int, bytes, bytes]:
    """Run `argv`; `(exit status, stdout, the end of stderr)`. Its descendants end with it, and with this process.

    Raises:
        TimeError: its time is over, though a descendant still holds its pipes.
        OutputError: it wrote too much.
    """
    limits = ["prlimit", f"--data={bounds.memory_bytes}", f"--fsize={bounds.file_bytes}", "--core=0"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", supervise.__file__, *limits, *argv],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        env=dict(env),
        start_new_session=True,
    )
    try:
        said = _read(process, bounds)
        return process.wait(), said[0], said[1]
    finally:
        supervise.end(process)
        for file in (process.stdout, process.stderr):
            assert file is not None
            file.close()


def _read(process: subprocess.Popen[bytes], bounds: Bounds) -> tuple[bytes, bytes]:
    until = time.monotonic() + bounds.time_s
    out, err = bytearray(), bytearray()
    assert process.stdout is not None and process.stderr is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, out)
        selector.register(process.stderr, selectors.EVENT_READ, err)
        while selector.get_map():
            if time.monotonic() > until:
                raise TimeError
            for key, _ in selector.select(max(0.0, until - time.monotonic())):
                piece = os.read(key.fd, 1 << 16)
                key.data.extend(piece)
                if not piece:
                    selector.unregister(key.fileobj)
            if len(out) > bounds.output_bytes:
                raise OutputError
            del err[:-KEPT_BYTES]
    return bytes(out), bytes(err)
