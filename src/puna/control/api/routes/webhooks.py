"""Webhooks: the address that repositories call, its secret, and what they have said."""

from __future__ import annotations

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from typing_extensions import TypedDict

from puna.control.api import bodies
from puna.control.api.bodies import Number
from puna.control.api.query import Listed, Paged
from puna.control.api.routes.endpoints import EndpointName
from puna.control.api.routing import Answer, Body, Json, Right, Routes
from puna.control.domain import records
from puna.control.domain.records import view
from puna.control.domain.states import DeliveryState, RevisionState
from puna.control.operations import push_events
from puna.control.operations.context import Control
from puna.errors import ConflictError, NotFoundError

ALL_BYTES = 32 << 20
"""Of deliveries at one time: their sender is known only when they have been read."""
DELIVERY_S = 30.0
PUSH = Body("application/json", "What the sender says, signed with the endpoint's secret.")


class Delivery(TypedDict):
    """One word that a repository has changed, and what became of it."""

    id: int
    at: float
    sender: str
    """`github`, `gitlab`, `huggingface`, `poll` or `replay`."""
    event: str
    commit: str
    outcome: DeliveryState
    message: str
    hint: str
    detail: str
    revision: int | None
    state: RevisionState | None
    build_id: str | None


class Webhook(TypedDict):
    """The values to type into a repository's settings."""

    url: str
    secret: str
    auto_rebuild: bool
    poll_s: float
    git: dict[str, str]


class Taken(TypedDict):
    """The outcome of a webhook's delivery."""

    delivery: int
    outcome: DeliveryState
    message: str


TAKEN = Answer(202, Taken, also={200: "Ignored; the message says why."})


def routes(control: Control) -> Routes:
    """The handlers."""
    route = Routes("webhooks")
    store = control.store
    deliveries = bodies.BodyBudget(ALL_BYTES, DELIVERY_S)

    @route("POST /hooks/{name}", Right.OPEN, TAKEN, body=PUSH)
    async def post_hook(name: EndpointName, request: Request) -> Json:
        """Take a push from GitHub, GitLab or the Hugging Face Hub; needs no key, but the endpoint's secret."""
        async with deliveries.body(request, push_events.MAX_BYTES, "delivery", "send push events only") as body:
            made = await run_in_threadpool(take, control, name, dict(request.headers), body)
        taken: Taken = {"delivery": made.id, "outcome": made.outcome, "message": made.message}
        return Json(taken, 202 if made.outcome is DeliveryState.QUEUED else 200)

    @route("GET /endpoints/{name}/webhook", Right.ENDPOINT)
    def get_webhook(name: EndpointName) -> Webhook:
        """The address and the secret to type into the repository's settings, and whether pushes are deployed."""
        endpoint = store.endpoint(name)
        return {
            "url": f"{control.base_url.rstrip('/')}/api/v1/hooks/{name}",
            "secret": _secret(control, endpoint),
            "auto_rebuild": endpoint.settings.auto_rebuild,
            "poll_s": endpoint.settings.poll_s,
            "git": endpoint.settings.git,
        }

    @route("GET /endpoints/{name}/deliveries", Right.ENDPOINT)
    def list_deliveries(name: EndpointName, page: Paged) -> Listed[Delivery]:
        """List the reported changes of the repository, newest first, with the outcome of each."""
        store.endpoint(name)
        made = {revision.number: revision for revision in store.revisions(name)}
        found = store.deliveries(name)
        return page.show(found, lambda d: (-d.id,), lambda d: _delivery(d, made.get(d.revision or -1)))

    @route("POST /endpoints/{name}/deliveries/{number}/replay", Right.ENDPOINT, Answer(202))
    def post_replay(name: EndpointName, number: Number) -> Delivery:
        """Do as if a delivery came now: its branch's newest commit is fetched and deployed."""
        endpoint, before = store.endpoint(name), store.delivery(name, number)
        if not endpoint.settings.git:
            raise ConflictError(f"`{name}` is not built from a repository", "puna deploy --git URL")
        event, queued = f"{before.sender} {before.id}", DeliveryState.QUEUED
        made = store.add_delivery(
            records.Delivery(name, control.clock(), "replay", queued, event, commit=before.commit)
        )
        control.wake_rebuilds()
        return _delivery(made, None)

    return route


def take(control: Control, name: str, headers: dict[str, str], body: bytes) -> records.Delivery:
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
    delivery = records.Delivery(name, control.clock(), hook.sender, outcome, *said, commit=hook.commit, message=why)
    taken = control.store.add_delivery(delivery)
    control.wake_rebuilds()
    return taken


def _key(control: Control) -> bytes:
    return control.home.key.read_bytes()


def _secret(control: Control, endpoint: records.Endpoint) -> str:
    return push_events.secret(_key(control), endpoint.name, endpoint.created)


def _delivery(delivery: records.Delivery, revision: records.Revision | None) -> Delivery:
    """One delivery, and how the revision that it made is doing."""
    return view(
        Delivery,
        delivery,
        message=delivery.message or (revision.error if revision else ""),
        hint=delivery.hint or (revision.hint if revision else ""),
        detail=delivery.detail or (revision.detail if revision else ""),
        state=revision.state if revision else None,
        build_id=revision.build_id if revision else None,
    )
