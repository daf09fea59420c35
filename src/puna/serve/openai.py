"""OpenAI's paths in the gateway: which endpoint and which adapter a `model` means, and errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from puna.control.domain.api_keys import visible
from puna.control.domain.states import EndpointState
from puna.control.wire import EndpointRoute, KeyRoute
from puna.errors import (
    DeadlineError,
    ForbiddenError,
    MethodError,
    NotFoundError,
    PunaError,
    QueueFullError,
    ReplicaDiedError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
    UsageError,
)
from puna.serve.admission import Admission
from puna.serve.dispatch.call import REVISION, Call
from puna.serve.dispatch.dispatcher import Dispatcher
from puna.serve.http import asgi, delivery
from puna.serve.http.asgi import CLIENT_GONE, ClientGone, Header, Receive, Scope, Send
from puna.serve.http.body import Spool

PREFIX = "/v1/"
PATHS = {"/v1/chat/completions": "chat", "/v1/completions": "completion"}
MODELS = "/v1/models"
DONE = b"[DONE]"
MAX_BODY_BYTES = 16 * 1024 * 1024
"""The body is parsed here to find its `model`, and everyone waits meanwhile; a full context of 128k tokens is 1 MB."""
MANY_VALUES = 300_000
"""Reading so many takes some 50 ms. A prompt of 128k token ids has half of that; marks in texts are counted as well."""
OWNER = "puna"
NAMED = 8  # models that an error names

# Error -> OpenAI's type and code; the first row that fits. Clients choose their exception by the status.
KINDS: tuple[tuple[type[PunaError], str, str | None], ...] = (
    (ForbiddenError, "invalid_request_error", "permission_denied"),
    (UnauthorizedError, "invalid_request_error", "invalid_api_key"),
    (NotFoundError, "invalid_request_error", "model_not_found"),
    (TooLargeError, "invalid_request_error", "request_too_large"),
    (MethodError, "invalid_request_error", "method_not_supported"),
    (UsageError, "invalid_request_error", None),
    (QueueFullError, "rate_limit_error", "rate_limit_exceeded"),
    (UnavailableError, "server_error", "unavailable"),
    (DeadlineError, "server_error", "timeout"),
    (ReplicaDiedError, "server_error", "replica_died"),
)


@dataclass(frozen=True)
class Target:
    """The endpoint and the adapter that a `model` means."""

    endpoint: str
    adapter: str = ""
    """A published adapter, `owner/name`; empty: what the app itself loads."""


class OpenAI:
    """Answers everything under /v1."""

    def __init__(self, admission: Admission, spool: Spool, max_body_bytes: int) -> None:
        """Long bodies are kept in `spool`; none may be longer than `max_body_bytes`, nor than MAX_BODY_BYTES."""
        self.admission, self.access, self.pool = admission, admission.access, admission.pool
        self.spool = spool
        self.max_body_bytes = min(max_body_bytes, MAX_BODY_BYTES)
        self._reading = asyncio.Lock()
        """Held while a long body is in memory, to be looked into."""

    async def answer(self, scope: Scope, receive: Receive, send: Send, trace: str) -> None:
        """One request, from its first byte to the last of its reply; `trace` is its id."""
        began = time.perf_counter()
        path = scope["path"].rstrip("/")
        call = Call("", PATHS.get(path, ""), b"", trace)
        try:
            if scope["method"] == "OPTIONS" and (takes := _takes(path)):
                await asgi.options(send, takes)
                return
            key = self.access.check(asgi.header(scope, b"authorization"), time.time())
            if call.path and scope["method"] == "POST":
                status = await self._complete(scope, receive, send, call)
            else:
                status = await self._about(scope["method"], path, key, send, call)
        except PunaError as error:
            status = error.http_status
            await _refuse(send, error, call)
        except ClientGone:
            status = CLIENT_GONE
        finally:
            self.admission.leave(call, _tokens(call))
        if call.path and scope["method"] == "POST":
            self.admission.count(call, status, began)

    async def _complete(self, scope: Scope, receive: Receive, send: Send, call: Call) -> int:
        async with self.spool.body(scope, receive, self.max_body_bytes) as call.body:
            if isinstance(call.body, bytes):
                model, is_stream = asked_of(call.body)
            else:
                async with self._reading:
                    model, is_stream = asked_of(await call.body.whole())
            return await self._pass_on(scope, receive, send, call, model, is_stream)

    async def _pass_on(
        self, scope: Scope, receive: Receive, send: Send, call: Call, model: str, is_stream: bool
    ) -> int:
        """A request that has arrived, to the endpoint that its `model` means; returns the status."""
        authorization, now = asgi.header(scope, b"authorization"), time.time()
        key = self.access.check(authorization, now)
        # A key for some endpoints hears nothing of the others, not even which there are.
        target = find(model, [dispatcher.route for dispatcher in self._open_to(key)])
        if target is None and (key.endpoints is None or _is_adapters(model, key)):
            raise self._unknown(model, key)
        asked = target.endpoint if target else model
        key = self.access.check(authorization, now, asked)
        if target is None:
            raise self._unknown(model, key)
        call.endpoint = target.endpoint
        self.admission.enter(call, key)
        dispatcher = self.admission.dispatcher(call, asgi.header(scope, REVISION), target.adapter)
        if target.adapter:
            call.adapter = {"name": target.adapter, "path": dispatcher.route.adapters[target.adapter]}
        with delivery.watched(receive, call):
            if is_stream:
                return await delivery.streamed(send, call, dispatcher, _failed, DONE)
            reply = await dispatcher.serve(call)
            assert reply is not None, "only a stream begins without its reply"
            if call.use is not None:
                call.tokens = _usage(reply.body)
            return await delivery.whole(send, call, reply)

    def _open_to(self, key: KeyRoute) -> list[Dispatcher]:
        """The dispatchers of the endpoints that the key may call."""
        return [dispatcher for name, dispatcher in self.pool.by_name.items() if visible(key, name)]

    def _unknown(self, model: str, key: KeyRoute) -> NotFoundError:
        served = [str(one["id"]) for one in _models(self._open_to(key), key)]
        told = ", ".join(served[:NAMED]) + (" ..." if len(served) > NAMED else "")
        what = f"this key may call {told or 'no model yet'}"
        hint = f"GET {MODELS} lists what this key may call"
        return NotFoundError(f"the model `{model}` does not exist: no endpoint or adapter is called so; {what}", hint)

    async def _about(self, method: str, path: str, key: KeyRoute, send: Send, call: Call) -> int:
        """The models, and paths that are not here."""
        takes = _takes(path)
        if not takes:
            served = ", ".join([*(f"POST {name}" for name in PATHS), f"GET {MODELS}"])
            error = NotFoundError(f"{method} {path} is not served here", f"what is: {served}")
            await _refuse(send, error, call, "unknown_url")
            return error.http_status
        if method not in takes:
            raise MethodError(f"{path} takes no {method}", f"send {takes[0]}", allow=takes)
        models = list(_models(self.pool.by_name.values(), key))
        if path == MODELS:
            await asgi.reply(send, 200, orjson.dumps({"object": "list", "data": models}))
            return 200
        name = path.removeprefix(MODELS + "/")
        found = next((model for model in models if model["id"] == name), None)
        if found is None:
            raise NotFoundError(f"the model `{name}` does not exist", f"GET {MODELS} lists what this key may call")
        await asgi.reply(send, 200, orjson.dumps(found))
        return 200


def _takes(path: str) -> tuple[str, ...]:
    """The methods of an address; none: there is no such address."""
    if path in PATHS:
        return asgi.CALL
    return asgi.READ if path == MODELS or path.startswith(MODELS + "/") else ()


def asked_of(body: bytes) -> tuple[str, bool]:
    """The `model` of a request, and whether it wants a stream.

    Raises:
        UsageError: the body is no JSON object, or names no model.
    """
    if len(body) > MANY_VALUES and sum(body.count(mark) for mark in (b"[", b"{", b",")) > MANY_VALUES:
        raise TooLargeError(f"the body has more than {MANY_VALUES:,} values")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"the body is not JSON: {error}") from None
    model = document.get("model") if isinstance(document, dict) else None
    if not isinstance(model, str) or not model:
        raise UsageError("the body must be a JSON object with a `model`: the endpoint's name")
    return model, document.get("stream") is True


def _is_adapters(model: str, key: KeyRoute) -> bool:
    """True if the name can only be an adapter's: `owner/name`, or `endpoint:name` of one that the key is for."""
    name, colon, _ = model.partition(":")
    return "/" in name or (bool(colon) and name in (key.endpoints or ()))


def find(model: str, routes: Sequence[EndpointRoute]) -> Target | None:
    """Find what `model` means: an endpoint, `endpoint:adapter`, or the name of an adapter that one can load."""
    by_name = {route.name: route for route in routes}
    if model in by_name:
        return Target(model)
    name, colon, wanted = model.partition(":")
    if colon and name in by_name:
        full = [a for a in by_name[name].adapters if wanted == a] or [
            a for a in by_name[name].adapters if a.rpartition("/")[2] == wanted
        ]
        return Target(name, full[0]) if len(full) == 1 else None
    holders = sorted((r for r in routes if model in r.adapters), key=lambda r: (not r.replicas, r.name))
    # The endpoint that is awake answers soonest.
    return Target(holders[0].name, model) if holders else None


def _models(dispatchers: Any, key: KeyRoute) -> Iterator[dict[str, Any]]:
    """The endpoints that the key may call, and their adapters; without those known to have no engine."""
    seen: set[str] = set()
    for dispatcher in sorted(dispatchers, key=lambda dispatcher: str(dispatcher.route.name)):
        route = dispatcher.route
        if not visible(key, route.name) or not _has_engine(dispatcher):
            continue
        for name in (route.name, *sorted(route.adapters)):
            if name not in seen:
                seen.add(name)
                yield {"id": name, "object": "model", "created": int(route.created), "owned_by": OWNER}


def _has_engine(dispatcher: Dispatcher) -> bool:
    """True if it may answer here: an app that was tried at deploy time and loaded no engine will not."""
    route = dispatcher.route
    if not route.active or route.state in (EndpointState.EMPTY, EndpointState.FAILED):
        return False
    return route.schema is None or bool(route.schema.get("engine"))


def _usage(body: bytes) -> int:
    """The tokens that a whole reply says it has cost; 0: it says nothing of them."""
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        return 0
    usage = told.get("usage") if isinstance(told, dict) else None
    return int(usage.get("total_tokens") or 0) if isinstance(usage, dict) else 0


def _tokens(call: Call) -> int:
    """Tokens that a call has cost. Of a stream that broke off the worker says nothing: each of its events is one."""
    return call.tokens or (call.exchange.tokens if call.exchange is not None else 0) or call.events


def _failed(text: str) -> bytes:
    """The last event of a stream that broke off: clients raise what it says."""
    return orjson.dumps({"error": _error(text, "server_error", "stream_broke_off")})


def _error(message: str, kind: str, code: str | None, param: str | None = None) -> dict[str, str | None]:
    return {"message": message, "type": kind, "param": param, "code": code}


async def _refuse(send: Send, error: PunaError, call: Call, code: str = "") -> None:
    kind, usual = next(((k, c) for cls, k, c in KINDS if isinstance(error, cls)), ("server_error", None))
    param = "model" if usual == "model_not_found" and not code else None
    extra: list[Header] = [asgi.JSON, *delivery.headers(call), *asgi.advice(error)]
    body = orjson.dumps({"error": _error(asgi.error_text(error), kind, code or usual, param)})
    await asgi.reply(send, error.http_status, body, extra)
