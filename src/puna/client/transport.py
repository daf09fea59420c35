"""The connection to the control plane: its Unix socket or HTTP, calls made once more, and errors out of replies."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx

from puna import errors, instance
from puna.errors import PunaError, UnavailableError
from puna.home import Home

Json = dict[str, Any]
T = TypeVar("T")
POLL_S = 0.25
PAGE = 1000
"""Items asked for at once."""
IN_FLIGHT_S = 600.0
"""A call whose first try is still being answered is waited for so long."""
RESTART_S = 15.0
"""A control plane that was killed, or hung, is there again within; a `puna up` that stands is waited for so long."""


class Transport:
    """One control plane, by JSON."""

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        home: Home | None = None,
        *,
        http: httpx.Client | None = None,
    ) -> None:
        """`url` and `key` default to PUNA_URL and PUNA_KEY; without a URL it is this machine's own control plane.

        `http` is used in place of a connection, e.g. one that calls an application in this process.
        """
        self.home = home or Home.default()
        self.url = url or os.environ.get("PUNA_URL") or None
        self.key = key or os.environ.get("PUNA_KEY") or None
        timeout = httpx.Timeout(600.0, connect=5.0)  # an upload of hundreds of MB is answered once it is unpacked
        self._local = http is None and self.url is None
        if http is not None:
            self._http = http
        elif self.url:
            headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
            tls = not self.url.startswith("http://")  # to read certificates that nobody shows takes 50 ms
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, verify=tls)
        else:
            transport = httpx.HTTPTransport(uds=str(self.home.control_socket), verify=False)  # certificates: 50 ms
            self._http = httpx.Client(transport=transport, base_url="http://localhost", timeout=timeout)

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _items(self, path: str, query: Mapping[str, Any] | None = None) -> list[Json]:
        """Everything in a list, page by page."""
        items: list[Json] = []
        asked = {"limit": PAGE, **(query or {})}
        while True:
            page = self._call("GET", path, params=asked)
            items += page["items"]
            if not page.get("next"):
                return items
            asked["after"] = page["next"]

    def _call(
        self, method: str, path: str, *, read: Callable[[httpx.Response], Json] | None = None, **request: Any
    ) -> Json:
        """One call; where the connection breaks it is made once more, under a key by which it is not done twice."""
        self._await_listener()
        if method != "GET":
            request["headers"] = {"idempotency-key": secrets.token_urlsafe(18), **request.get("headers", {})}
        start = _position(request.get("content"))
        try:
            return (read or read_json)(self._http.request(method, f"/api/v1{path}", **request))
        except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
            if start is None:  # what was to be sent cannot be read again
                raise self._unreachable(error) from None
            return self._again(method, path, request, start, read or read_json)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None

    def _again(
        self, method: str, path: str, request: Mapping[str, Any], start: int, read: Callable[[httpx.Response], Json]
    ) -> Json:
        """The same call once more; while the first is still being answered, its reply is waited for.

        This machine's own control plane may break again, by one that was killed and still took connections.
        """
        begun = time.monotonic()
        while True:
            self._await_listener()
            if start >= 0:
                request["content"].seek(start)
            try:
                return read(self._http.request(method, f"/api/v1{path}", **request))
            except errors.InFlightError:
                if time.monotonic() > begun + IN_FLIGHT_S:
                    raise
                time.sleep(0.5)
            except httpx.TransportError as error:
                if not self._local or time.monotonic() > begun + RESTART_S:
                    raise self._unreachable(error) from None
                time.sleep(0.1)

    def _lines(self, path: str, query: Mapping[str, Any]) -> Iterator[str]:
        return self._stream(path, query, lambda reply: reply.iter_lines())

    def _stream(
        self, path: str, query: Mapping[str, Any], pieces: Callable[[httpx.Response], Iterator[T]]
    ) -> Iterator[T]:
        try:
            yield from self._pieces(path, query, pieces)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None

    def _following(self, path: str, query: Mapping[str, Any]) -> Iterator[str]:
        """The lines of a reply that grows and always begins the same; one that breaks off is asked for again."""
        yielded, end = 0, 0.0
        while True:
            try:
                for number, line in enumerate(self._pieces(path, query, lambda reply: reply.iter_lines()), 1):
                    end = 0.0
                    if number > yielded:
                        yielded = number
                        yield line
                return
            except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
                end = end or time.monotonic() + RESTART_S
                if time.monotonic() > end or not (yielded or self._local):  # another machine's that never answered
                    raise self._unreachable(error) from None
                time.sleep(POLL_S)
            except httpx.TransportError as error:
                raise self._unreachable(error) from None

    def _pieces(
        self, path: str, query: Mapping[str, Any], pieces: Callable[[httpx.Response], Iterator[T]]
    ) -> Iterator[T]:
        self._await_listener()
        timeout = httpx.Timeout(60.0, read=None)  # a build may say nothing for long
        with self._http.stream("GET", f"/api/v1{path}", params=dict(query), timeout=timeout) as reply:
            if reply.status_code >= 400:
                reply.read()
                raise error_of(reply)
            yield from pieces(reply)

    def _await_listener(self) -> None:
        """Wait while a `puna up` starts its control plane again; fail clearly where nothing listens.

        httpx's way of failing leaves a socket open.
        """
        end = time.monotonic() + RESTART_S
        while self._local:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                try:
                    probe.connect(str(self.home.control_socket))
                    return
                except OSError as error:
                    if time.monotonic() > end or instance.pid_of(self.home) is None:
                        raise self._unreachable(error) from None
            time.sleep(0.1)

    def _unreachable(self, error: Exception) -> UnavailableError:
        if self._local and instance.pid_of(self.home) is not None:
            log = self.home.logs / "control.log"
            return UnavailableError(f"Puna is up, and its control plane does not answer: {error}", f"tail {log}")
        return unreachable(self.url or str(self.home.control_socket), error)


def part(text: str) -> str:
    """A name as one part of a path."""
    return quote(str(text), safe="")


def poll(end: float, message: str, hint: str) -> None:
    """Wait a moment before something is looked at again.

    Raises:
        UnavailableError: it is `end` by now, in `time.monotonic` seconds.
    """
    if time.monotonic() > end:
        raise UnavailableError(message, hint)
    time.sleep(POLL_S)


def _position(content: Any) -> int | None:
    """Position at which a file that is sent begins; -1 for what is no file, None for one that cannot be read twice."""
    if content is None or isinstance(content, bytes):
        return -1
    try:
        return int(content.tell())
    except (AttributeError, OSError):  # an iterator, a pipe
        return None


def read_json(reply: httpx.Response) -> Json:
    """The reply's JSON.

    Raises:
        PunaError: the kind that stands for the reply's error.
    """
    if reply.status_code >= 400:
        raise error_of(reply)
    value: Json = reply.json()
    return value


def read_health(reply: httpx.Response) -> Json:
    """The reply's JSON, also when it says that a part does not work.

    Raises:
        PunaError: it says something else.
    """
    try:
        value: Json = reply.json()
    except ValueError:
        value = {}
    return value if "status" in value else read_json(reply)


def unreachable(where: str, error: Exception) -> UnavailableError:
    """The error for a control plane that cannot be reached."""
    return UnavailableError(f"Puna does not answer at {where}: {error}", "start it with `puna up`")


def error_of(reply: httpx.Response) -> PunaError:
    """The error that a reply stands for: by its code, or by its status where the body is Triton's or no JSON."""
    try:
        found = reply.json()["error"]
    except (json.JSONDecodeError, KeyError, TypeError):
        found = reply.text.strip()[:2000] or f"HTTP {reply.status_code}"
    if not isinstance(found, dict):
        found = {"message": str(found)}
    kind = errors.kind_of(str(found.get("code", "")), reply.status_code)
    if kind is errors.QueueFullError:
        return errors.QueueFullError(found["message"], int(reply.headers.get("retry-after", 1)))
    return kind(str(found.get("message", "")), str(found.get("hint", "")), str(found.get("detail", "")))
