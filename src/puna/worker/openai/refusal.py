"""An error of the OpenAI paths: its status, its words, and the parameter that is to blame."""

from __future__ import annotations

import json
from typing import Optional


class Refusal(Exception):
    """The request cannot be answered; the text says why, `param` names what to change."""

    def __init__(
        self, message: str, param: Optional[str] = None, code: Optional[str] = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.code, self.status = message, param, code, status

    def as_json(self) -> bytes:
        """The body that OpenAI's clients read."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}, separators=(",", ":")).encode()
