"""The API's part for webhooks: the address that repositories call, its secret, and what they have said."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from puna.control import views
from puna.control.api import bodies
from puna.control.api.bodies import Number
from puna.control.api.pagination import Paged
from puna.control.domain.records import Delivery, Endpoint
from puna.control.domain.states import DeliveryState
from puna.control.operations import push_events
from puna.control.operations.context import Control
from puna.errors import ConflictError, NotFoundError

Json = dict[str, Any]
ALL_BYTES = 32 << 20
"""Of deliveries at one time: their sender is known only when they have been read."""
DELIVERY_S = 30.0


def routes(control: Control) -> APIRouter:
    """The handlers."""
    router = APIRouter(tags=["webhooks"])
    store = control.store
    deliveries = bodies.BodyBudget(ALL_BYTES, DELIVERY_S)

    @router.post("/hooks/{name}", status_code=202)
    async def post_hook(name: str, request: Request) -> JSONResponse:
        """What GitHub, GitLab or the Hugging Face Hub call after a push; needs no key, but the endpoint's secret."""
        async with deliveries.body(request, push_events.MAX_BYTES, "delivery", "send push events only") as body:
            taken = await run_in_threadpool(take, control, name, dict(request.headers), body)
        status = 202 if taken.outcome is DeliveryState.QUEUED else 200
        return JSONResponse(
            {"delivery": taken.id, "outcome": taken.outcome, "message": taken.message}, status_code=status
        )

    @router.get("/endpoints/{name}/webhook")
    def get_webhook(name: str) -> Json:
        """The address and the secret to type into the repository's settings, and whether pushes are deployed."""
        endpoint = store.endpoint(name)
        return {
            "url": f"{control.base_url.rstrip('/')}/api/v1/hooks/{name}",
            "secret": _secret(control, endpoint),
            "auto_rebuild": endpoint.settings.auto_rebuild,
            "poll_s": endpoint.settings.poll_s,
            "git": endpoint.settings.git,
        }

    @router.get("/endpoints/{name}/deliveries")
    def list_deliveries(name: str, page: Paged) -> Json:
        """What was said of the repository, newest first, and what became of it."""
        store.endpoint(name)
        made = {revision.number: revision for revision in store.revisions(name)}
        found = store.deliveries(name)
        return page.show(found, lambda d: (-d.id,), lambda d: views.delivery_view(d, made.get(d.revision or -1)))

    @router.post("/endpoints/{name}/deliveries/{number}/replay", status_code=202)
    def post_replay(name: str, number: Number) -> Json:
        """Do as if a delivery came now: its branch's newest commit is fetched and deployed."""
        endpoint, before = store.endpoint(name), store.delivery(name, number)
        if not endpoint.settings.git:
            raise ConflictError(f"`{name}` is not built from a repository", "puna deploy --git URL")
        event, queued = f"{before.sender} {before.id}", DeliveryState.QUEUED
        made = store.add_delivery(Delivery(name, control.clock(), "replay", queued, event, commit=before.commit))
        control.wake_rebuilds()
        return views.delivery_view(made, None)

    return router


def take(control: Control, name: str, headers: dict[str, str], body: bytes) -> Delivery:
    """Check a delivery and write it down.

    Raises:
        ForbiddenError: its sender does not know the secret, or there is no such endpoint: outside both look the same.
        UsageError: it is not what its sender sends.
    """
    try:
        endpoint = control.store.endpoint(name)
        known = _secret(control, endpoint)
    except NotFoundError:
        endpoint, known = None, _key(control).hex()
    hook = push_events.read(headers, body, known)
    assert endpoint is not None  # nobody knows the secret of one that is not there
    why = push_events.ignored_because(hook, endpoint.settings.git, endpoint.settings.auto_rebuild)
    outcome, said = DeliveryState.IGNORED if why else DeliveryState.QUEUED, (hook.event, hook.key, hook.digest)
    delivery = Delivery(name, control.clock(), hook.sender, outcome, *said, commit=hook.commit, message=why)
    taken = control.store.add_delivery(delivery)
    control.wake_rebuilds()
    return taken


def _key(control: Control) -> bytes:
    return control.home.key.read_bytes()


def _secret(control: Control, endpoint: Endpoint) -> str:
    return push_events.secret(_key(control), endpoint.name, endpoint.created)
