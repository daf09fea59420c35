"""The scope of one request while `infer` runs for it: functions to call when its client disconnects."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from typing import Any, Callable, List, Optional


class Cancelled(BaseException):
    """The client went. A BaseException, so that an app which catches every Exception does not go on without one."""


class RequestScope:
    """One request's; `cancel` may come from any thread, before or after the work that it ends has begun."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._functions: List[Callable[[], Any]] = []
        self.is_cancelled = False

    def on_cancel(self, function: Callable[[], Any]) -> None:
        """Call `function` when the client disconnects; at once, when it has."""
        with self._lock:
            if not self.is_cancelled:
                self._functions.append(function)
                return
        function()

    def forget(self, function: Callable[[], Any]) -> None:
        """That work is done."""
        with self._lock, contextlib.suppress(ValueError):
            self._functions.remove(function)

    def cancel(self) -> None:
        """The client went, or its time is over."""
        with self._lock:
            self.is_cancelled = True
            functions, self._functions = self._functions, []
        for function in functions:
            function()


# A context variable and not a thread-local: asyncio tasks made by a request inherit it.
_current: contextvars.ContextVar[Optional[RequestScope]] = contextvars.ContextVar("scope", default=None)


def current() -> Optional[RequestScope]:
    """The scope of the request that this thread or task works for."""
    return _current.get()


class entered:  # reads as a function; a generator would cost each request a microsecond more
    """A context whose code works for that request."""

    __slots__ = ("_scope", "_token")

    def __init__(self, scope: RequestScope) -> None:
        self._scope = scope

    def __enter__(self) -> RequestScope:
        self._token = _current.set(self._scope)
        return self._scope

    def __exit__(self, *_: Any) -> None:
        _current.reset(self._token)
