"""The dispatchers of all endpoints in one gateway, as the route table says; two for an endpoint that is split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from puna.control.wire import EndpointLoad, EndpointRoute, RouteTable
from puna.errors import NotFoundError
from puna.serve.dispatch.dispatcher import Dispatcher, Split
from puna.serve.dispatch.pending_queue import STARTUP_ALLOWANCE_S


class EndpointPool:
    """All endpoints of one gateway."""

    def __init__(self, on_cold: Callable[[], None], startup_allowance_s: float = STARTUP_ALLOWANCE_S) -> None:
        """`on_cold` is called when a request has to wait with no replica ready."""
        self.by_name: dict[str, Dispatcher] = {}
        """The dispatcher of the revision that serves, or has the rest beside a second one."""
        self._on_cold = on_cold
        self._startup_allowance_s = startup_allowance_s
        self._closing: list[Dispatcher] = []

    def __iter__(self) -> Iterator[Dispatcher]:
        """Every dispatcher that takes requests."""
        for dispatcher in self.by_name.values():
            yield from dispatcher.both

    def update(self, table: RouteTable) -> None:
        """Take a newer table."""
        for name, route in table.endpoints.items():
            self._follow(name, route)
        for name in [name for name in self.by_name if name not in table.endpoints]:
            for dispatcher in self.by_name.pop(name).both:
                dispatcher.close()
                self._closing.append(dispatcher)
        self._closing = [dispatcher for dispatcher in self._closing if dispatcher.in_flight]

    def _follow(self, name: str, route: EndpointRoute) -> None:
        dispatcher = self.by_name.get(name)
        if dispatcher is None:
            dispatcher = self.by_name[name] = self._dispatcher(route)
        split = dispatcher.split
        if split is not None and split.dispatcher.route.revision == route.revision:
            # The second one has taken over: its dispatcher is the endpoint's, with all that it holds.
            self.by_name[name], dispatcher.split = split.dispatcher, None
            split.dispatcher.update(route)
            self._retire(dispatcher, split.dispatcher)
            dispatcher = split.dispatcher
        else:
            dispatcher.update(route)
        second, split = route.split, dispatcher.split
        if split is not None and (second is None or second.revision != split.dispatcher.route.revision):
            dispatcher.split = None
            self._retire(split.dispatcher, dispatcher)
        if second is not None:
            dispatcher.split = dispatcher.split or Split(self._dispatcher(second), second.percent)
            dispatcher.split.percent = second.percent
            dispatcher.split.dispatcher.update(second)

    def _dispatcher(self, route: EndpointRoute) -> Dispatcher:
        return Dispatcher(route, self._on_cold, self._startup_allowance_s)

    def _retire(self, dispatcher: Dispatcher, heir: Dispatcher) -> None:
        dispatcher.retire(heir)
        self._closing.append(dispatcher)

    def find(self, name: str) -> Dispatcher:
        """The dispatcher of an endpoint, of the first revision where two share it.

        Raises:
            NotFoundError: no endpoint of that name.
        """
        dispatcher = self.by_name.get(name)
        if dispatcher is None:
            raise NotFoundError(f"no endpoint is named {name!r}", "puna ps")
        return dispatcher

    def sweep(self, now: float) -> None:
        """End waits that have been too long; `now` on the loop's clock."""
        for dispatcher in self:
            dispatcher.sweep(now)

    def load(self) -> dict[str, EndpointLoad]:
        """The endpoints' part of a load report."""
        loads = {name: _load(dispatcher) for name, dispatcher in self.by_name.items()}
        for dispatcher in self._closing:  # a replica is drained when nothing of it is in flight, here too
            load = loads.get(dispatcher.route.name)
            if load is not None:
                rest = replace(dispatcher.load(), queued=0, last_request=0.0)
                loads[dispatcher.route.name] = replace(_together(rest, load), revisions=load.revisions)
        self._closing = [dispatcher for dispatcher in self._closing if dispatcher.in_flight]
        return loads


def _load(dispatcher: Dispatcher) -> EndpointLoad:
    """An endpoint's load; where two revisions share it, with that of each."""
    if dispatcher.split is None:
        return dispatcher.load()
    parts = {one.route.revision: one.load() for one in dispatcher.both}
    of_each = {number: EndpointLoad(part.in_flight, part.queued, part.last_request) for number, part in parts.items()}
    return replace(_together(*parts.values()), revisions=of_each)


def _together(one: EndpointLoad, other: EndpointLoad) -> EndpointLoad:
    return EndpointLoad(
        one.in_flight + other.in_flight,
        one.queued + other.queued,
        max(one.last_request, other.last_request),
        {**one.replicas, **other.replicas},
        deaths=one.deaths + other.deaths,
        poison=one.poison + other.poison,
    )
