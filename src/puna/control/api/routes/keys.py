"""Keys and secrets: values are taken in, and never given out again."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path
from pydantic import BaseModel, SecretStr
from typing_extensions import TypedDict

from puna import names
from puna.control.api.query import Listed, Paged
from puna.control.api.routing import Answer, Deleted, Right, Routes
from puna.control.domain import api_keys, records
from puna.control.domain.records import view
from puna.control.operations.context import Control

KeyId = Annotated[str, Path(json_schema_extra={"pattern": "^[0-9a-f]{8}$"})]
SecretName = Annotated[str, Path(json_schema_extra={"pattern": names.pattern("secret")})]
TOLD_S = 1.0
"""A gateway that does not answer holds nobody up for longer."""


class Key(TypedDict):
    """One key, without its text."""

    id: str
    name: str
    scope: list[str]
    endpoints: list[str] | None
    """The only endpoints it opens; null for all."""
    expires: float | None
    created: float
    rate: str | None
    """Calls that it may make, as `10/s`; null for any number, as with the other limits."""
    tokens: str | None
    """Tokens that it may have read and written on OpenAI's paths, as `100k/min`."""
    concurrency: int | None
    """Calls that it may have open."""
    last_used: float | None
    """The beginning of the hour in which an endpoint was last called with it; null: not in the last 400 days."""


class MadeKey(Key):
    """A key that was made."""

    key: str
    """Its text: here, and nowhere else."""


class Secret(TypedDict):
    """A set of values, by their names."""

    name: str
    keys: list[str]


class NewKey(BaseModel, extra="forbid"):
    """The body of `POST /keys`."""

    name: str = ""
    scope: list[str]
    endpoints: list[str] | None = None
    expires_s: float | None = None
    rate: str | None = None
    """Calls: `10/s`, `600/min`, `5k/h`."""
    tokens: str | None = None
    """Tokens of OpenAI's paths, read and written: `100k/min`."""
    concurrency: int | None = None
    """Calls at once, those that wait included."""


class NewSecret(BaseModel, extra="forbid", hide_input_in_errors=True):
    """The body of `POST /secrets`; SecretStr keeps values out of errors and logs."""

    name: str
    values: dict[str, SecretStr]


def routes(control: Control) -> Routes:
    """The handlers."""
    route, store = Routes("keys"), control.store

    @route("POST /keys", Right.ADMIN, Answer(201))
    def post_key(body: NewKey) -> MadeKey:
        """Make a key, which every gateway knows by now; its text is in this reply and nowhere else."""
        limits = api_keys.parse_limits(body.model_dump(include={"rate", "tokens", "concurrency"}))
        key, text = api_keys.make(body.name, body.scope, body.endpoints, body.expires_s, control.clock(), limits)
        store.add_key(key)
        control.loads.wait_for_tables(store.version, TOLD_S)
        return {**key_view(key), "key": text}

    @route("GET /keys", Right.ADMIN)
    def list_keys(page: Paged) -> Listed[Key]:
        """Every key, oldest first, without its text."""
        hours = store.last_hours()
        return page.show(store.keys(), lambda k: (k.created, k.id), lambda k: key_view(k, hours.get(k.id)))

    @route("DELETE /keys/{key_id}", Right.ADMIN)
    def delete_key(key_id: KeyId) -> Deleted:
        """Revoke a key; no gateway takes it any more."""
        store.delete_key(key_id)
        control.loads.wait_for_tables(store.version, TOLD_S)
        return {"deleted": key_id}

    @route("POST /secrets", Right.ADMIN, Answer(201), tag="secrets")
    def post_secret(body: NewSecret) -> Secret:
        """Keep a set of values, encrypted; replicas that start from now on get them."""
        values = {k: v.get_secret_value() for k, v in body.values.items()}
        control.secrets.save(body.name, values, control.clock())
        return {"name": body.name, "keys": sorted(values)}

    @route("GET /secrets", Right.ADMIN, tag="secrets")
    def list_secrets(page: Paged) -> Listed[Secret]:
        """Names of the sets, and of the values in them."""
        return page.show(store.secrets().items(), lambda s: (s[0],), lambda s: Secret(name=s[0], keys=s[1]))

    @route("DELETE /secrets/{name}", Right.ADMIN, tag="secrets")
    def delete_secret(name: SecretName) -> Deleted:
        """Forget a set."""
        store.delete_secret(name)
        return {"deleted": name}

    return route


def key_view(key: records.Key, last_used: float | None = None) -> Key:
    """One key, without salt and hash."""
    return view(Key, key, **api_keys.parse_limits(key.limits).as_json(), last_used=last_used)
