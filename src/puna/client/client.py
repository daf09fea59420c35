"""The client of a running Puna: the JSON API one to one, and a few calls that wait; no server code is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import httpx

from puna.client.endpoints import EndpointCalls
from puna.client.resources import ResourceCalls
from puna.client.transport import Json, part, read_json, unreachable


class Client(EndpointCalls, ResourceCalls):
    """Talks to the control plane: over its Unix socket on this machine, or by HTTP with a key.

    What it can be asked stands in `endpoints.py` and `resources.py`. Use it as a context manager, or `close` it.
    """

    def infer(self, name: str, inputs: Sequence[Json], key: str | None = None, timeout_s: float = 7200) -> Json:
        """Call an endpoint through the gateway with KServe v2 inputs; the reply as JSON.

        Raises:
            PunaError: the kind that stands for the reply's status.
        """
        return self.infer_with_headers(name, inputs, key, timeout_s)[0]

    def infer_with_headers(
        self, name: str, inputs: Sequence[Json], key: str | None = None, timeout_s: float = 7200
    ) -> tuple[Json, Mapping[str, str]]:
        """As `infer`, with the reply's headers: `x-puna-queue-ms` and the like say what it waited for.

        Raises:
            PunaError: the kind that stands for the reply's status.
        """
        bearer = key or self.key
        headers = {"authorization": f"Bearer {bearer}"} if bearer else {}
        url = f"{(self.url or self.health()['url']).rstrip('/')}/v2/models/{part(name)}/infer"
        try:
            reply = httpx.post(url, json={"inputs": list(inputs)}, headers=headers, timeout=timeout_s)
        except httpx.TransportError as error:
            raise unreachable(url, error) from None
        return read_json(reply), reply.headers
