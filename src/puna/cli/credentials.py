"""An endpoint as this user calls it: URL, a curl line, and the key, kept so that `puna call` needs none (mode 0600)."""

from __future__ import annotations

import json as jsons
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from puna.artifacts import write_text
from puna.cli import output
from puna.config import schema
from puna.home import Home

if TYPE_CHECKING:
    from puna.client import Client


def held_keys(home: Home) -> dict[str, str]:
    """Endpoint -> key."""
    try:
        found = jsons.loads(home.credentials.read_text())
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
    write_text(client.home.credentials, jsons.dumps(known | {endpoint: made["key"]}, indent=2) + "\n", mode=0o600)
    return str(made["key"])


def forget_key(home: Home, endpoint: str) -> None:
    """Drop the key of an endpoint that is gone."""
    known = held_keys(home)
    if known.pop(endpoint, None):
        write_text(home.credentials, jsons.dumps(known, indent=2) + "\n", mode=0o600)


def show_endpoint(client: Client, done: Mapping[str, Any], json: bool) -> None:
    """Print an endpoint's address, key and a curl line that works as it is."""
    name = str(done.get("name") or done["endpoint"])
    if "url" not in done:
        output.data(done) if json else output.line(f"revision {done['revision']} of {name} is being built: puna ps")
        return
    key = key_for(client, name)
    if json:
        output.data({**done, "key": key})
        return
    shares = [f"revision {one['revision']} {one['percent']} %" for one in done["traffic"]]
    both = f"{name}: {', '.join(shares)}"
    output.line(both if len(shares) > 1 else f"{name} revision {done['revision']} serves")
    output.line(f"url:  {done['url']}")
    output.line(f"key:  {key}")
    output.line(f"try:  {curl_line(done, key)}")
    output.line(
        f"or:   puna call {name} " + " ".join(f"{i['name']}=..." for i in (done.get("schema") or {}).get("inputs", []))
    )


def curl_line(endpoint: Mapping[str, Any], key: str) -> str:
    """A curl command that calls the endpoint with its schema's examples."""
    body = schema.from_json(endpoint["schema"]).example_request() if endpoint.get("schema") else {"inputs": []}
    address = str(endpoint["url"])
    return (
        f"curl -s {shlex.quote(address)} -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' "
        f"-d {shlex.quote(jsons.dumps(body))}"
    )
