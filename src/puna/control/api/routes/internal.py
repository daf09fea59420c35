"""The gateways' side door, over the Unix socket only: the route table out, their reports in."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from anyio import CapacityLimiter, to_thread
from fastapi import Request, Response

from puna.control import wire
from puna.control.api.routing import Right, Routes
from puna.control.domain.records import Endpoint, Key, Replica, Revision, state_of
from puna.control.domain.states import SERVING
from puna.control.operations.context import Control
from puna.control.resources.models import Adapters
from puna.control.telemetry.load import MAX_DEATHS_OF_KEY
from puna.control.wire import ASLEEP, AWAKE, EndpointRoute, KeyRoute, LoadReport, ReplicaRoute, RouteTable
from puna.errors import UsageError

JSON = "application/json"
MAX_WAIT_S = 60.0
LOOK_S = 0.5
THREADS = 8
"""Of their own: whatever handlers of the API wait for, gateways are told of replicas and heard at once."""


def routes(control: Control) -> Routes:
    """The handlers."""
    route = Routes(prefix="/internal")
    adapters = Adapters(control.home)
    threads = CapacityLimiter(THREADS)

    @route("GET /routes", Right.INTERNAL)
    async def get_routes(since: int = -1, wait_s: float = 0, gateway: str = "") -> Response:
        """The route table, once it is another than version `since`, which `gateway` has, or `wait_s` is over."""
        if gateway:
            control.loads.has_table(gateway, since)
        await _changed(control, adapters, since, min(max(wait_s, 0.0), MAX_WAIT_S), threads)
        return Response(await to_thread.run_sync(_table, control, adapters, limiter=threads), media_type=JSON)

    @route("POST /load", Right.INTERNAL)
    async def post_load(request: Request) -> dict[str, int]:
        """Take a gateway's report."""
        try:
            report = wire.decode(LoadReport, await request.body())
        except ValueError as error:
            raise UsageError(f"this is no load report: {error}") from None
        control.loads.report(report)
        await to_thread.run_sync(_take_deaths, control, report, limiter=threads)
        used = report.usage
        if used is not None:
            call = partial(control.store.add_usage, used.process, used.number, used.rows, control.clock())
            await to_thread.run_sync(call, limiter=threads)
        return {"version": control.store.version}

    return route


def _take_deaths(control: Control, report: LoadReport) -> None:
    """Write down what a report says of replicas that died with requests, and what all gateways are to refuse now."""
    store, now = control.store, control.clock()
    for name, load in report.endpoints.items():
        news = control.loads.deaths.report(report.gateway, name, load, time.monotonic())
        for revision in news.uncount:
            store.uncount_failure(name, revision)
        for digest in news.poison:
            said = f"replicas die of one request (digest {digest[:12]}): equal ones are answered 500 for 10 min"
            store.add_event(name, "poison", said, now)
        for key in news.blocked:
            said = f"{MAX_DEATHS_OF_KEY} replicas died of requests of key {key}: it is answered 429 for a while"
            store.add_event(name, "poison", said, now)
        if news.poison or news.blocked:
            store.touch_routes()


def _table(control: Control, adapters: Adapters) -> bytes:
    """The route table as it is now."""
    version, snapshot, keys = control.store.routing()
    routes = {e.name: _endpoint(control, adapters, e, rs, ps) for e, rs, ps in snapshot.by_endpoint()}
    return wire.encode(RouteTable(version, tuple(map(key_route, keys)), routes))


def key_route(key: Key) -> KeyRoute:
    """A key as gateways know it."""
    name = key.name if key.limits else ""
    return KeyRoute(key.id, key.salt, key.sha256, key.scope, key.endpoints, key.expires, name, key.limits or None)


def _endpoint(
    control: Control, adapters: Adapters, endpoint: Endpoint, revisions: list[Revision], replicas: list[Replica]
) -> EndpointRoute:
    settings, state = endpoint.settings, state_of(endpoint, revisions, replicas)

    def route(number: int, split: EndpointRoute | None = None) -> EndpointRoute:
        revision = next((r for r in revisions if r.number == number), None)
        serving = [r for r in replicas if r.state in SERVING and r.revision == number and endpoint.active]
        return EndpointRoute(
            name=endpoint.name,
            revision=number,
            active=endpoint.active,
            state=state,
            reason=endpoint.reason,
            inference_time_s=settings.inference_time_s,
            max_queue=settings.max_queue,
            max_replica=settings.max_replica,
            min_replica=settings.min_replica,
            schema=revision.schema if revision else None,
            replicas=tuple(_replica(control, replica) for replica in serving),
            adapters=adapters.of(revision.bundle) if revision else {},
            created=endpoint.created,
            split=split,
            percent=endpoint.shares.get(number, 0),
            startup_timeout_s=(revision.settings if revision else settings).startup_timeout_s,
            **control.loads.deaths.refused(endpoint.name, number, time.monotonic()),
        )

    first, *second = [*endpoint.shares] or [endpoint.serving or 0]
    return route(first, route(second[0]) if second else None)


def _replica(control: Control, replica: Replica) -> ReplicaRoute:
    socket, tier = str(control.home.replica_socket(replica.id)), ASLEEP if replica.tier == ASLEEP else AWAKE
    return ReplicaRoute(replica.id, replica.epoch, socket, max(replica.concurrency, 1), tier, replica.revision)


async def _changed(control: Control, adapters: Adapters, since: int, wait_s: float, threads: CapacityLimiter) -> None:
    """Return when the table's version is not `since`, or after `wait_s`."""
    with control.changes() as changed:
        # After subscribing: a change between look and wait is not missed. Another number, not a higher one: a
        # database that was set up anew counts from 1 again.
        until = time.monotonic() + wait_s
        while control.store.version == since and (left_s := until - time.monotonic()) > 0:
            try:
                await asyncio.wait_for(changed.wait(), min(LOOK_S, left_s))
            except TimeoutError:
                # Publishing writes files, not the database: what it did becomes a version of the table here.
                if await to_thread.run_sync(adapters.have_changed, limiter=threads):
                    await to_thread.run_sync(control.store.touch_routes, limiter=threads)
