"""uvicorn's HTTP protocol, with the head and the body of a reply sent in one write: half the system calls."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LARGE_BYTES = 1 << 18
"""More is written as it comes: another copy would cost more than the system call."""


class Corked:
    """A transport that keeps what is written until the end of the loop's turn; all else is the transport's own."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send soon, together with what else is written in this turn."""
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(data)

    def write_now(self, data: bytes) -> None:
        """Send what is whole already, after what waits."""
        if self._parts:
            self._parts.append(data)
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Send now."""
        parts, self._parts = self._parts, []
        if parts and not self._transport.is_closing():
            if sum(map(len, parts)) <= LARGE_BYTES:
                parts = [b"".join(parts)]
            for part in parts:
                self._transport.write(part)

    def close(self) -> None:
        """Send what is left, then close."""
        self.flush()
        self._transport.close()


class CorkedProtocol(HttpToolsProtocol):  # type: ignore[misc]
    """As uvicorn's, on a corked transport."""

    def connection_made(self, transport: Any) -> None:
        """A client has connected."""
        super().connection_made(Corked(transport, self.loop))
