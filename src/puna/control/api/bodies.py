"""What requests bring: bodies, read whole up to a limit, and numbers that the database knows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated

from annotated_types import Ge, Le
from fastapi import Request

from puna.errors import DeadlineError, TooLargeError, UnavailableError

Number = Annotated[int, Ge(1), Le(2**31 - 1)]
"""The number of a revision, a version or a delivery."""


async def read(request: Request, limit_bytes: int, what: str, hint: str) -> bytes:
    """All of it; `what` is named in the error.

    Raises:
        TooLargeError: it is over `limit_bytes`; no more of it is read.
    """
    parts, size = [], 0
    async for chunk in request.stream():
        parts.append(chunk)
        size += len(chunk)
        if size > limit_bytes:
            raise TooLargeError(f"the {what} is over {limit_bytes >> 20} MiB", hint)
    return b"".join(parts)


class BodyBudget:
    """What bodies of requests that nobody has vouched for may take together, from their first byte to their answer."""

    def __init__(self, most_bytes: int, limit_s: float) -> None:
        """Each has `limit_s` to arrive in."""
        self.most_bytes, self.limit_s = most_bytes, limit_s
        self.bytes = 0

    @contextlib.asynccontextmanager
    async def body(self, request: Request, limit_bytes: int, what: str, hint: str) -> AsyncIterator[bytes]:
        """As `read`, until the end of the block.

        Raises:
            TooLargeError: it is over `limit_bytes`.
            UnavailableError: too much is here already.
            DeadlineError: it took too long.
        """
        stated = request.headers.get("content-length", "")
        size = min(int(stated), limit_bytes) if stated.isdigit() else limit_bytes
        if self.bytes + size > self.most_bytes:
            raise UnavailableError(f"too many bodies like this {what} are here at one time", "try again in a second")
        self.bytes += size
        try:
            try:
                body = await asyncio.wait_for(read(request, limit_bytes, what, hint), self.limit_s)
            except TimeoutError:
                late = f"the {what} took longer than {self.limit_s:g} s to arrive"
                raise DeadlineError(late, "send it again") from None
            yield body
        finally:
            self.bytes -= size
