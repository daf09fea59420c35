"""What requests bring: bodies, read whole up to a limit, and numbers that the database knows."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le
from fastapi import Request

from puna.errors import TooLargeError

Number = Annotated[int, Ge(1), Le(2**31 - 1)]
"""The number of a revision, a version or a delivery."""


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
