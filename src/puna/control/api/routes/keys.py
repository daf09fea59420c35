"""The API's part about keys and secrets: values are taken in, and never given out again."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, SecretStr

from puna.control import views
from puna.control.api.pagination import Paged
from puna.control.domain import api_keys
from puna.control.domain import api_keys as key_limits
from puna.control.operations.context import Control

Json = dict[str, Any]
TOLD_S = 1.0
"""A gateway that does not answer holds nobody up for longer."""


class NewKey(BaseModel):
    """What `POST /keys` takes."""

    model_config = ConfigDict(extra="forbid")
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


class NewSecret(BaseModel):
    """What `POST /secrets` takes; SecretStr keeps values out of errors and logs."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)
    name: str
    values: dict[str, SecretStr]


def routes(control: Control) -> APIRouter:
    """The handlers."""
    router = APIRouter()
    store = control.store

    @router.post("/keys", status_code=201, tags=["keys"])
    def post_key(body: NewKey) -> Json:
        """Make a key, which every gateway knows by now; its text is in this reply and nowhere else."""
        limits = key_limits.parse_limits(body.model_dump(include={"rate", "tokens", "concurrency"}))
        key, text = api_keys.make(body.name, body.scope, body.endpoints, body.expires_s, control.clock(), limits)
        store.add_key(key)
        control.loads.wait_for_tables(store.version, TOLD_S)
        return views.key_view(key) | {"key": text}

    @router.get("/keys", tags=["keys"])
    def list_keys(page: Paged) -> Json:
        """Every key, oldest first, without its text."""
        return page.show(store.keys(), lambda k: (k.created, k.id), views.key_view)

    @router.delete("/keys/{key_id}", tags=["keys"])
    def delete_key(key_id: str) -> Json:
        """Revoke a key; no gateway takes it any more."""
        store.delete_key(key_id)
        control.loads.wait_for_tables(store.version, TOLD_S)
        return {"deleted": key_id}

    @router.post("/secrets", status_code=201, tags=["secrets"])
    def post_secret(body: NewSecret) -> Json:
        """Keep a set of values, encrypted; replicas that start from now on get them."""
        values = {k: v.get_secret_value() for k, v in body.values.items()}
        control.secrets.save(body.name, values, control.clock())
        return {"name": body.name, "keys": sorted(values)}

    @router.get("/secrets", tags=["secrets"])
    def list_secrets(page: Paged) -> Json:
        """Names of the sets, and of the values in them."""
        return page.show(store.secrets().items(), lambda s: (s[0],), lambda s: {"name": s[0], "keys": s[1]})

    @router.delete("/secrets/{name}", tags=["secrets"])
    def delete_secret(name: str) -> Json:
        """Forget a set."""
        store.delete_secret(name)
        return {"deleted": name}

    return router
