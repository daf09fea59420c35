"""A request's body, read whole, up to a limit."""

from __future__ import annotations

from fastapi import Request

from puna.errors import TooLargeError


async def read(request: Request, limit_bytes: int, what: str, hint: str) -> bytes:
    """All of it; `what` is named in the error.

    Raises:
        TooLargeError: it is over `limit_bytes`; no more of it is read.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise TooLargeError(f"the {what} is over {limit_bytes >> 20} MiB", hint)
    return bytes(body)
