"""Frames that wait a moment for company: while short calls queue, many replies go out in one write."""

from __future__ import annotations

import threading
import time
from typing import Any, Callable, Dict, List

TICK_S = 0.005  # what is held goes out within two of these, whatever the app does meanwhile
BRIEF_S = 0.001  # after a call that took longer nothing is held
Send = Callable[[bytes], None]


class SendBuffer:
    """The frames of one thread that runs calls; calls `sent(n)` when n replies have gone out."""

    def __init__(self, flusher: Flusher, sent: Callable[[int], None]) -> None:
        self._flusher, self._sent = flusher, sent
        self._lock = threading.Lock()
        self._held: Dict[Send, List[bytes]] = {}
        self._replies = 0

    def hold(self, send: Send, data: bytes, replies: int = 0) -> None:
        """Keep a frame for the next `flush`, which comes by itself before long."""
        with self._lock:
            self._held.setdefault(send, []).append(data)
            self._replies += replies
        self._flusher.expect()

    def flush(self) -> None:
        """Send what is held, in order."""
        with self._lock:  # also while sending: what comes after must not overtake
            if not self._held:
                return
            held, self._held = self._held, {}
            replies, self._replies = self._replies, 0
            for send, parts in held.items():
                send(b"".join(parts))
        if replies:
            self._sent(replies)


class Flusher:
    """Flushes all buffers every few milliseconds while anything is held in them, in a thread of its own.

    A call may take minutes when all before it took none: what others are waiting for must not wait for it.
    """

    def __init__(self) -> None:
        self._buffers: List[SendBuffer] = []
        self._expected = threading.Event()
        self._is_new = False

    def buffer(self, sent: Callable[[int], None]) -> SendBuffer:
        """One for a thread."""
        made = SendBuffer(self, sent)
        self._buffers.append(made)
        return made

    def expect(self) -> None:
        """Something is held. The thread sleeps only after a second without it: waking it costs more than a call."""
        self._is_new = True
        if not self._expected.is_set():
            self._expected.set()

    def run(self, *_: Any) -> None:
        """Flush, for ever."""
        quiet_since = 0.0
        while True:
            self._expected.wait()
            time.sleep(TICK_S)
            now = time.monotonic()
            if self._is_new:
                self._is_new, quiet_since = False, now
            elif now - quiet_since > 1.0:
                self._expected.clear()  # before the last look: what is held from here on sets it again
            for buffer in list(self._buffers):
                buffer.flush()
