"""Routes of the API: each declares what it answers, what it refuses beside the usual, and whose key opens it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeVar

import orjson
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match, compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import TypedDict

Handler = TypeVar("Handler", bound=Callable[..., Any])
API = "/api/v1"
SAFE = {"GET", "HEAD", "OPTIONS"}


class Deleted(TypedDict):
    """The name of a deleted thing."""

    deleted: str


class Right(Enum):
    """The key that a route asks for; this machine's own user, on the control socket, needs none for any."""

    OPEN = auto()
    """None."""
    OWN = auto()
    """A deploy key; the handler keeps to the endpoints that it opens."""
    ENDPOINT = auto()
    """A deploy key that opens the endpoint `{name}` of the path."""
    ALL = auto()
    """A deploy key for all endpoints: the route is about things that belong to all."""
    ADMIN = auto()
    """An administrator's key for all endpoints."""
    LOCAL = auto()
    """No key opens it: for this machine's own user only."""
    INTERNAL = auto()
    """No key opens it: for gateways only, and others find nothing at the address."""

    @property
    def scope(self) -> str:
        """The scope that a key must have."""
        return "admin" if self is Right.ADMIN else "deploy"


@dataclass(frozen=True)
class Body:
    """A body that a handler reads by itself, up to a limit of its own."""

    media_type: str
    description: str


@dataclass(frozen=True)
class Answer:
    """The answer of a route when all is well, and the refusals that its path and method do not tell of."""

    status: int = 200
    model: Any = None
    """Its type, where the handler does not return it; a text is the media type of what is no JSON."""
    also: Mapping[int, str] | None = None
    """Other statuses with the same model, and when they come."""
    refuses: tuple[int, ...] = ()


def encode(content: Any) -> bytes:
    """JSON of an answer, records included; numbers that JSON does not have become null."""
    try:
        return orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS, default=str)
    except TypeError:  # an integer of more than 64 bits
        return json.dumps(content, default=_plain, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    is_record = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return dataclasses.asdict(value) if is_record else str(value)


class Json(JSONResponse):
    """JSON as it is: nothing is validated, so a row of an older version is shown rather than refused."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return encode(content)


class Route(APIRoute):
    """One method and path with its handler and all that is declared of them; FastAPI validates only what comes in.

    FastAPI reads the handler's parameters when the route is first asked, or the document: for all routes that is most
    of the time that an application takes to begin, and few are ever asked.
    """

    def __init__(
        self,
        method: str,
        path: str,
        handler: Callable[..., Any],
        needs: Right,
        answer: Answer,
        body: Body | None,
        tag: str,
    ) -> None:
        """`body` is one that the handler reads by itself; a route without a tag is in no document."""
        self.handler, self.needs, self.answer, self.own_body, self._tag = handler, needs, answer, body, tag
        self.path, self.methods, self.name, self.include_in_schema = path, {method}, handler.__name__, bool(tag)
        self.endpoint = _answering(handler, answer.status)
        self.path_regex, self.path_format, self.param_convertors = compile_path(path)

    def __getattr__(self, name: str) -> Any:
        """Let FastAPI read the handler, as soon as anything is asked that it makes of it."""
        if name.startswith("__") or "app" in vars(self):
            raise AttributeError(name)
        super().__init__(
            self.path,
            self.endpoint,
            methods=self.methods,
            name=self.name,
            status_code=self.answer.status,
            response_model=None,
            tags=[self._tag],
            include_in_schema=self.include_in_schema,
            generate_unique_id_function=lambda route: route.name,
        )
        return getattr(self, name)


class Routes(list[Route]):
    """The routes of one part of the API, in the order in which they are asked."""

    def __init__(self, tag: str = "", prefix: str = API) -> None:
        """None yet; without a tag they are in no document."""
        super().__init__()
        self.tag, self.prefix = tag, prefix

    def __call__(
        self, call: str, needs: Right, answer: Answer | None = None, *, body: Body | None = None, tag: str = ""
    ) -> Callable[[Handler], Handler]:
        """Add a handler for `call`, e.g. `GET /endpoints/{name}`. Its return type is the model of its answer."""
        method, _, path = call.partition(" ")

        def add(handler: Handler) -> Handler:
            self.append(Route(method, self.prefix + path, handler, needs, answer or Answer(), body, tag or self.tag))
            return handler

        return add


def declared(routes: Iterable[BaseRoute]) -> list[Route]:
    """The same routes.

    Raises:
        TypeError: one of them does not say whose key opens it.
    """
    found: list[Route] = []
    for route in routes:
        if not isinstance(route, Route):
            raise TypeError(f"{route!r} does not say whose key opens it: add it with `Routes` and a `Right`")
        found.append(route)
    return found


def find(routes: Iterable[Route], scope: Scope) -> tuple[Route | None, Mapping[str, Any]]:
    """The route that answers a request, and the names in its path; else one of that path for other methods."""
    other: tuple[Route | None, Mapping[str, Any]] = (None, {})
    for route in routes:
        match, found = route.matches(scope)
        if match is Match.FULL:
            return route, found["path_params"]
        if match is Match.PARTIAL and other[0] is None:
            other = route, found["path_params"]
    return other


def _answering(handler: Callable[..., Any], status: int) -> Callable[..., Any]:
    """The handler, with what it returns as a response: FastAPI then neither validates nor encodes it again."""

    def response(value: Any) -> Response:
        return value if isinstance(value, Response) else Json(value, status)

    if inspect.iscoroutinefunction(handler):

        @functools.wraps(handler)
        async def answer(**named: Any) -> Response:
            return response(await handler(**named))

        return answer

    @functools.wraps(handler)
    def answer_in_thread(**named: Any) -> Response:
        return response(handler(**named))

    return answer_in_thread


class Methods:
    """An ASGI layer that answers HEAD and OPTIONS before any handler is asked; OPTIONS needs no key."""

    def __init__(self, app: ASGIApp, routes: Collection[Route]) -> None:
        self.app, self._routes = app, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything else on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["method"] == "HEAD":
            await self._head(scope, receive, send)
        elif scope["method"] == "OPTIONS" and (allowed := self._allowed(scope["path"])):
            await Response(status_code=204, headers={"allow": allowed})(scope, receive, send)
        else:
            await self.app(scope, receive, self._naming_all(scope, send))

    def _allowed(self, path: str) -> str:
        """The methods that a documented path takes, as `Allow` has them; empty for none."""
        shown = (route for route in self._routes if route.include_in_schema and route.path_regex.match(path))
        methods = {method for route in shown for method in route.methods or ()}
        if not methods:
            return ""
        return ", ".join(sorted(methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())))

    def _naming_all(self, scope: Scope, send: Send) -> Send:
        """`send`, with all methods in a 405: a handler's refusal names its own only."""

        async def corrected(message: Message) -> None:
            is_refusal = message["type"] == "http.response.start" and message["status"] == 405
            if is_refusal and (allowed := self._allowed(scope["path"])):
                MutableHeaders(scope=message)["allow"] = allowed
            await send(message)

        return corrected

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask as GET, and stop at the head: a stream of events would never end."""
        begun = asyncio.Event()

        async def first(message: Message) -> None:
            if message["type"] == "http.response.start" and not begun.is_set():
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                begun.set()

        asked = asyncio.ensure_future(self.app({**scope, "method": "GET"}, receive, first))
        waiting = asyncio.ensure_future(begun.wait())
        await asyncio.wait({asked, waiting}, return_when=asyncio.FIRST_COMPLETED)
        for task in (waiting, asked):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asked
