"""A request's scope: what is to happen when its client goes happens once, however close the two come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from puna.worker.app import scope

Functions = list[Callable[[], Any]]


def test_what_is_registered_is_called_once_when_the_client_goes_and_at_once_when_it_has() -> None:
    request, called = scope.RequestScope(), []
    request.on_cancel(lambda: called.append("before"))
    done = lambda: called.append("done")  # noqa: E731 - forgotten by its identity
    request.on_cancel(done)
    request.forget(done)
    request.forget(done)
    assert called == [] and not request.is_cancelled
    request.cancel()
    request.cancel()
    assert called == ["before"] and request.is_cancelled
    request.on_cancel(lambda: called.append("after"))
    assert called == ["before", "after"]


def test_a_client_that_goes_while_work_is_registered_ends_it() -> None:
    request, called, is_over = scope.RequestScope(), [], threading.Event()

    class Slow(Functions):
        def append(self, function: Callable[[], Any]) -> None:
            is_over.wait(0.2)  # whoever cancels meanwhile has to wait
            super().append(function)

    request._functions = Slow()
    worker = threading.Thread(target=request.on_cancel, args=(lambda: called.append("ended"),))
    worker.start()
    request.cancel()
    is_over.set()
    worker.join()
    assert called == ["ended"]
