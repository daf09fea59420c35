"""How an endpoint is reached: URL, key, and a curl line that works as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from puna.cli import credentials, output

if TYPE_CHECKING:
    from puna.client import Client


def show_endpoint(client: Client, done: Mapping[str, Any], json: bool) -> None:
    """Print an endpoint's address, key and a curl line that works as it is."""
    name = str(done.get("name") or done["endpoint"])
    if "url" not in done:
        output.data(done) if json else output.line(f"revision {done['revision']} of {name} is being built: puna ps")
        return
    key = credentials.key_for(client, name)
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
    import json as jsons
    import shlex

    from puna.config import schema

    body = schema.from_json(endpoint["schema"]).example_request() if endpoint.get("schema") else {"inputs": []}
    address = str(endpoint["url"])
    return (
        f"curl -s {shlex.quote(address)} -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' "
        f"-d {shlex.quote(jsons.dumps(body))}"
    )
