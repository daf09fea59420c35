"""Calls about keys, secrets, and the console's way in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from puna.client.transport import Json, Transport, part


class AccessCalls(Transport):
    """Keys and secrets."""

    def create_key(
        self,
        scope: Sequence[str],
        name: str = "",
        endpoints: Sequence[str] | None = None,
        expires_s: float | None = None,
        limits: Mapping[str, str | int | None] | None = None,
    ) -> Json:
        """Make an API key; its text is in the reply's `key`, and nowhere else.

        `limits` are what it may ask for: `{"rate": "10/s", "tokens": "100k/min", "concurrency": 8}`, or some of them.
        """
        allowed = None if endpoints is None else list(endpoints)
        body = {"name": name, "scope": list(scope), "endpoints": allowed, "expires_s": expires_s, **(limits or {})}
        return self._call("POST", "/keys", json=body)

    def console_link(self) -> Json:
        """A link that opens the console once: `{"url", "expires_s"}`; over the control socket only."""
        return self._call("POST", "/console/links")

    def keys(self) -> list[Json]:
        """Every key, without its text."""
        return self._items("/keys")

    def delete_key(self, key_id: str) -> Json:
        """Revoke a key."""
        return self._call("DELETE", f"/keys/{part(key_id)}")

    def set_secret(self, name: str, values: Mapping[str, str]) -> Json:
        """Keep a set of secret values."""
        return self._call("POST", "/secrets", json={"name": name, "values": dict(values)})

    def secrets(self) -> list[Json]:
        """Names of the secret sets and of the values in them."""
        return self._items("/secrets")

    def delete_secret(self, name: str) -> Json:
        """Forget a set of secret values."""
        return self._call("DELETE", f"/secrets/{part(name)}")

    def whoami(self) -> Json:
        """What the key of this client opens."""
        return self._call("GET", "/whoami")

    def open_session(self, token: str) -> Json:
        """Turn the token of a console link into an administrator's key of twelve hours; it is in the reply's `key`."""
        return self._call("POST", "/console/sessions", json={"token": token})
