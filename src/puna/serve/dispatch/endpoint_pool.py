"""The lanes of all endpoints in one gateway, as the route table says; two where two revisions share an endpoint."""

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
        """The lane of the revision that serves, or has the rest beside a second one."""
        self._on_cold = on_cold
        self._startup_allowance_s = startup_allowance_s
        self._closing: list[Dispatcher] = []

    def __iter__(self) -> Iterator[Dispatcher]:
        """Every lane that takes requests."""
        for lane in self.by_name.values():
            yield from (lane,) if lane.split is None else (lane, lane.split.lane)

    def update(self, table: RouteTable) -> None:
        """Take a newer table."""
        for name, route in table.endpoints.items():
            self._follow(name, route)
        for name in [name for name in self.by_name if name not in table.endpoints]:
            lane = self.by_name.pop(name)
            for one in (lane,) if lane.split is None else (lane, lane.split.lane):
                one.close()
                self._closing.append(one)
        self._closing = [lane for lane in self._closing if lane.in_flight]

    def _follow(self, name: str, route: EndpointRoute) -> None:
        lane = self.by_name.get(name)
        if lane is None:
            lane = self.by_name[name] = self._lane(route)
        split = lane.split
        if split is not None and split.lane.route.revision == route.revision:
            # The second one has taken over: its lane is the endpoint's, with all that it holds.
            self.by_name[name], lane.split = split.lane, None
            split.lane.update(route)
            self._retire(lane, split.lane)
            lane = split.lane
        else:
            lane.update(route)
        second, split = route.split, lane.split
        if split is not None and (second is None or second.revision != split.lane.route.revision):
            lane.split = None
            self._retire(split.lane, lane)
        if second is not None:
            lane.split = lane.split or Split(self._lane(second), second.percent)
            lane.split.percent = second.percent
            lane.split.lane.update(second)

    def _lane(self, route: EndpointRoute) -> Dispatcher:
        return Dispatcher(route, self._on_cold, self._startup_allowance_s)

    def _retire(self, lane: Dispatcher, heir: Dispatcher) -> None:
        lane.retire(heir)
        self._closing.append(lane)

    def find(self, name: str) -> Dispatcher:
        """The lane of an endpoint, of the first revision where two share it.

        Raises:
            NotFoundError: no endpoint of that name.
        """
        lane = self.by_name.get(name)
        if lane is None:
            raise NotFoundError(f"no endpoint is named {name!r}", "puna ps")
        return lane

    def sweep(self, now: float) -> None:
        """End waits that have been too long; `now` on the loop's clock."""
        for lane in self:
            lane.sweep(now)

    def load(self) -> dict[str, EndpointLoad]:
        """The endpoints' part of a load report."""
        loads = {name: _load(lane) for name, lane in self.by_name.items()}
        for lane in self._closing:  # a replica is drained when nothing of it is in flight, here too
            load = loads.get(lane.route.name)
            if load is not None:
                rest = replace(lane.load(), queued=0, last_request=0.0)
                loads[lane.route.name] = replace(_together(rest, load), revisions=load.revisions)
        self._closing = [lane for lane in self._closing if lane.in_flight]
        return loads


def _load(lane: Dispatcher) -> EndpointLoad:
    """An endpoint's load; where two revisions share it, with that of each."""
    load = lane.load()
    if lane.split is None:
        return load
    parts = {lane.route.revision: load, lane.split.lane.route.revision: lane.split.lane.load()}
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
