"""The endpoint keys that this user's CLI was given, so that `puna call` needs no key by hand (mode 0600)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from puna.artifacts import write_text
from puna.home import Home

if TYPE_CHECKING:
    from puna.client import Client


def held_keys(home: Home) -> dict[str, str]:
    """Endpoint -> key."""
    try:
        found = json.loads(home.credentials.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def key_for(client: Client, endpoint: str) -> str:
    """This user's key for an endpoint; made, and kept, when there is none or it was revoked."""
    known = held_keys(client.home)
    held = known.get(endpoint, "")
    if held and any(key["id"] == held.split("_")[1] for key in client.keys()):
        return held
    made = client.create_key(["infer"], name=f"puna call {endpoint}", endpoints=[endpoint])
    write_text(client.home.credentials, json.dumps(known | {endpoint: made["key"]}, indent=2) + "\n", mode=0o600)
    return str(made["key"])


def forget_key(home: Home, endpoint: str) -> None:
    """Drop the key of an endpoint that is gone."""
    known = held_keys(home)
    if known.pop(endpoint, None):
        write_text(home.credentials, json.dumps(known, indent=2) + "\n", mode=0o600)
