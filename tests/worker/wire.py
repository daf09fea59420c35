"""What the gateway sends a worker, as frames: for tests that speak to one themselves."""

from __future__ import annotations

import json
from typing import Any

from puna.worker import protocol
from puna.worker.protocol import REQUEST, encode

NAMES = {value: name for name, value in vars(protocol).items() if isinstance(value, int) and value < 256}
"""Of the kinds of frames."""


def request(request_id: int, head: dict[str, Any], body: bytes) -> bytes:
    """A REQUEST frame: a JSON line, then the client's body untouched."""
    return encode(REQUEST, request_id, json.dumps(head, separators=(",", ":")).encode() + b"\n" + body)
