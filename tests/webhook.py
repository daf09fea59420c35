"""A push as GitHub tells of it: a body, and the headers that sign it."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any


def push(url: str, commit: str, **changes: Any) -> bytes:
    """The body that says `main` of the repository at `url` ends at `commit` now."""
    repository = {"clone_url": url, "default_branch": "main"}
    return json.dumps({"ref": "refs/heads/main", "after": commit, "repository": repository} | changes).encode()


def signed(body: bytes, secret: str, key: str = "d-1", event: str = "push") -> dict[str, str]:
    """The headers of a sender who knows the secret."""
    signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {"x-hub-signature-256": f"sha256={signature}", "x-github-event": event, "x-github-delivery": key}
