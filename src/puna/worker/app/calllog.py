"""The app's stdout and stderr, line by line, with the request's id before each line written during a request.

Of a worker that serves, each line begins as in Kubernetes' container logs: `2026-11-25T12:00:00.000000Z stdout F `.
What is not written through sys.stdout and sys.stderr, by code in C or by child processes, has neither.
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import os
import sys
import time
from typing import Any, Dict, List, Optional, Tuple

LONGEST_LINE = 8192  # characters; a longer line is written in parts, so that a lost newline costs no memory


class LogScope:
    """The request that writes, and its unfinished line in each stream."""

    __slots__ = ("parts", "trace")

    def __init__(self, trace: str) -> None:
        self.trace = trace
        self.parts: Dict[int, str] = {}


# A context variable and not a thread-local: asyncio tasks made by a request inherit it.
_current: contextvars.ContextVar[Optional[LogScope]] = contextvars.ContextVar("_current", default=None)


class CallLog(io.TextIOBase):
    """A text stream over a file descriptor. No lock: a line is one write, and a fork can come at any time."""

    def __init__(self, fd: int, original: Any) -> None:
        self._fd = fd
        self._is_at_start = True
        self.buffer = getattr(original, "buffer", original)
        self.mode = "w"
        self.name = getattr(original, "name", "")

    encoding = "utf-8"
    errors = "backslashreplace"

    def write(self, text: str) -> int:
        scope = _current.get()
        if scope is None:
            self._out(self._begun(text) if _is_stamping else text)
            return len(text)
        parts = scope.parts
        pending = parts.get(self._fd, "") + text
        *lines, rest = pending.split("\n")
        if len(rest) > LONGEST_LINE:
            lines.append(rest)
            rest = ""
        parts[self._fd] = rest
        if lines:
            begin = stamp(self._fd) + "[%s] " % scope.trace
            self._out("".join(begin + (line.rpartition("\r")[2] or line) + "\n" for line in lines))
        return len(text)

    def _begun(self, text: str) -> str:
        """Text of no request with a stamp where a line begins; lines may come in parts."""
        begin = stamp(self._fd)
        *lines, rest = text.split("\n")
        parts: List[str] = []
        for line in lines:
            parts += (begin if self._is_at_start else "", line, "\n")
            self._is_at_start = True
        if rest:
            parts += (begin if self._is_at_start else "", rest)
            self._is_at_start = False
        return "".join(parts)

    def end(self, scope: LogScope) -> None:
        """Write what a request left without a newline."""
        rest = scope.parts.pop(self._fd, "")
        if rest:
            self._out(stamp(self._fd) + "[%s] %s\n" % (scope.trace, rest.rstrip("\r").rpartition("\r")[2]))

    def _out(self, text: str) -> None:
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        with contextlib.suppress(OSError):  # a full disk takes no more lines: no reason for `print` to fail a request
            while data:
                data = data[os.write(self._fd, data) :]

    def flush(self) -> None:
        """Nothing waits: whole lines are out, and a part of a line waits for its end."""

    def fileno(self) -> int:
        return self._fd

    def writable(self) -> bool:
        return True

    def reconfigure(self, **_options: Any) -> None:
        """Accepted and ignored: always UTF-8, always by line."""


_streams: Dict[int, CallLog] = {}
_is_stamping = False
_second: Tuple[int, str] = (0, "")  # a second, and how it is written


def stamp(fd: int) -> str:
    """The beginning of a line that is written now: its time and stream."""
    global _second
    if not _is_stamping:
        return ""
    now = time.time()
    whole, written = _second
    if int(now) != whole:
        whole = int(now)
        written = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
        _second = (whole, written)
    return "%s.%06dZ %s F " % (written, (now - whole) * 1e6, "stdout" if fd == 1 else "stderr")


def install(is_stamping: bool = False) -> None:
    """Put a CallLog in place of sys.stdout and sys.stderr."""
    global _is_stamping
    _is_stamping = is_stamping
    sys.stdout.flush()
    sys.stderr.flush()
    _streams[1] = CallLog(1, sys.stdout)
    _streams[2] = CallLog(2, sys.stderr)
    sys.stdout, sys.stderr = _streams[1], _streams[2]


class during:  # reads as a function; a generator would cost each request a microsecond more
    """Lines written in this context (this thread, and tasks it makes) carry `trace`."""

    __slots__ = ("_token", "_scope")

    def __init__(self, trace: str) -> None:
        self._scope = LogScope(trace)

    def __enter__(self) -> None:
        self._token = _current.set(self._scope)

    def __exit__(self, *_: Any) -> None:
        _current.reset(self._token)
        if self._scope.parts:
            for stream in _streams.values():
                stream.end(self._scope)


def note(text: str, trace: str = "") -> None:
    """Lines of the worker's own, to stderr; `trace` is the request that they are about."""
    begin, about = stamp(2), "[%s] " % trace if trace else ""
    first, *more = text.rstrip("\n").split("\n")
    lines = [begin + "puna: " + about + first, *(begin + about + line for line in more)]
    with contextlib.suppress(OSError):
        os.write(2, ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))
