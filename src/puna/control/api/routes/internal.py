"""What gateways ask and tell the control plane, over its Unix socket only."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter
from pydantic import BaseModel

from puna.control import views
from puna.control.operations.context import Control
from puna.control.resources.models import Adapters
from puna.control.telemetry.deaths import MAX_DEATHS_OF_KEY

Json = dict[str, Any]
MAX_WAIT_S = 60.0
LOOK_S = 0.5
THREADS = 8
"""Of their own: whatever handlers of the API wait for, gateways are told of replicas and heard at once."""


class UsageReport(BaseModel):
    """What a gateway has counted since its report of the number before."""

    process: str
    number: int
    rows: list[tuple[int, str, str, int, int, float]]
    """Hour, endpoint, key, requests, failed, seconds of `infer`."""


class LoadReport(BaseModel):
    """What `POST /internal/load` takes."""

    gateway: str
    at: float
    """On the monotonic clock."""
    endpoints: dict[str, dict[str, Any]]
    usage: UsageReport | None = None


def routes(control: Control) -> APIRouter:
    """The handlers."""
    router = APIRouter()
    adapters = Adapters(control.home)
    threads = CapacityLimiter(THREADS)

    @router.get("/routes")
    async def get_routes(since: int = -1, wait_s: float = 0, gateway: str = "") -> Json:
        """The route table, once it is another than version `since`, which `gateway` has, or `wait_s` is over."""
        if gateway:
            control.loads.has_table(gateway, since)
        await _changed(control, adapters, since, min(max(wait_s, 0.0), MAX_WAIT_S), threads)
        return await to_thread.run_sync(table, control, adapters, limiter=threads)

    @router.post("/load")
    async def post_load(report: LoadReport) -> Json:
        """Take a gateway's report."""
        control.loads.report(report.gateway, report.at, report.endpoints)
        await to_thread.run_sync(_take_deaths, control, report, limiter=threads)
        used = report.usage
        if used is not None:
            call = partial(control.store.add_usage, used.process, used.number, used.rows, control.clock())
            await to_thread.run_sync(call, limiter=threads)
        return {"version": control.store.version}

    return router


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


def table(control: Control, adapters: Adapters) -> Json:
    """The route table as it is now."""
    version, snapshot, keys = control.store.routing()

    def socket(replica_id: str) -> str:
        return str(control.home.replica_socket(replica_id))

    def refused(endpoint: str, revision: int) -> Json:
        return dict(control.loads.deaths.refused(endpoint, revision, time.monotonic()))

    return views.routes(version, snapshot, keys, socket, adapters.of, refused)


async def _changed(control: Control, adapters: Adapters, since: int, wait_s: float, threads: CapacityLimiter) -> None:
    """Return when the table's version is not `since`, or after `wait_s`."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(changed.set)

    unsubscribe = control.store.subscribe(wake)
    try:
        # After subscribing: a change between look and wait is not missed. Another number, not a higher one: a
        # database that was set up anew counts from 1 again.
        until = loop.time() + wait_s
        while control.store.version == since and loop.time() < until:
            try:
                await asyncio.wait_for(changed.wait(), min(LOOK_S, until - loop.time()))
            except TimeoutError:
                # Publishing writes files, not the database: what it did becomes a version of the table here.
                if await to_thread.run_sync(adapters.have_changed, limiter=threads):
                    await to_thread.run_sync(control.store.touch_routes, limiter=threads)
    finally:
        unsubscribe()
