"""Changes as they come: server-sent events with the state of endpoints and builds."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from puna.control.api.routes.builds import build_view
from puna.control.api.routes.endpoints import divided
from puna.control.api.routes.logs import UNBUFFERED
from puna.control.api.routing import Answer, Right, Routes, encode
from puna.control.domain import api_keys
from puna.control.domain.records import Endpoint, Key, Replica, Revision, state_of
from puna.control.domain.states import label
from puna.control.operations.context import Control
from puna.errors import PunaError, UnauthorizedError

Json = dict[str, Any]
Texts = dict[tuple[str, str, str], str]
"""`(endpoints or builds, name or id, the endpoint whose keys may see it)` -> JSON."""
LOOK_S = 0.5
"""What gateways report is no write of the store: it is looked at so often."""
BREATH_S = 15.0
"""A comment is sent when nothing was for so long: proxies close what is silent, and clients see that we live."""
BUILDS = 30


def routes(control: Control) -> Routes:
    """The handlers."""
    route = Routes("events")
    board = Board(control)

    @route("GET /events/stream", Right.OWN, Answer(model="text/event-stream"))
    async def get_stream(request: Request) -> StreamingResponse:
        """Server-sent events: `state` with endpoints and builds that are new or changed, and names of those gone.

        The first event has all of them.
        """
        stream = _stream(control, board, request.state.key)
        return StreamingResponse(stream, media_type="text/event-stream", headers=UNBUFFERED)

    return route


class Board:
    """Every endpoint and the latest builds in short, as JSON, made once for all who look at the same moment."""

    def __init__(self, control: Control) -> None:
        """Over the control plane's parts."""
        self._control = control
        self._lock = threading.Lock()
        self._made: tuple[float, Texts] = (float("-inf"), {})
        self._builds: tuple[int, Texts] = (-1, {})

    def look(self) -> Texts:
        """The texts as they are, at most a fifth of a second old; a text that has not changed is the same object."""
        now = self._control.steady()
        with self._lock:
            at, before = self._made
            if not 0 <= now - at < 0.2:
                made = self._endpoints(now) | self._latest_builds()
                self._made = now, {key: before[key] if before.get(key) == text else text for key, text in made.items()}
            return self._made[1]

    def _endpoints(self, now: float) -> Texts:
        found = {}
        for endpoint, revisions, replicas in self._control.store.snapshot().by_endpoint():
            found["endpoints", endpoint.name, endpoint.name] = encode(
                self._summary(endpoint, revisions, replicas, now)
            ).decode()
        return found

    def _latest_builds(self) -> Texts:
        """Read again after a write only: nothing else changes a build."""
        writes = self._control.store.writes
        if self._builds[0] != writes:
            found = {}
            for build in self._control.store.builds(limit=BUILDS):
                owner = build.subject if build.kind == "revision" else ""
                found["builds", build.id, owner] = encode(build_view(build)).decode()
            self._builds = writes, found
        return self._builds[1]

    def _summary(self, endpoint: Endpoint, revisions: list[Revision], replicas: list[Replica], now: float) -> Json:
        state = state_of(endpoint, revisions, replicas)
        newest = max(revisions, key=lambda r: r.number, default=None)
        load = self._control.loads.endpoint(endpoint.name, now)
        figures = self._control.history.summary(endpoint.name) if self._control.history else {}
        return {
            "name": endpoint.name,
            "state": state,
            "label": label(state),
            "active": endpoint.active,
            "reason": endpoint.reason or (newest.error if newest else ""),
            "revision": endpoint.serving,
            "traffic": divided(endpoint, revisions),
            "newest": newest.number if newest else None,
            "build_id": newest.build_id if newest else None,
            "wanted": endpoint.wanted_of(endpoint.serving),
            "scaling_reason": endpoint.scaling_reason,
            "wish_reason": endpoint.scaling_reason,  # as it was called before 0.2
            "replicas": [{"id": r.id, "state": r.state, "tier": r.tier, "revision": r.revision} for r in replicas],
            "in_flight": load.in_flight,
            "queued": load.queued,
            "created": endpoint.created,
            "figures": figures,
        }


async def _stream(control: Control, board: Board, key: Key | None) -> AsyncIterator[bytes]:
    sent: Texts | None = None
    silent_since = time.monotonic()
    # The key was revoked or has expired: the next request says so.
    with contextlib.suppress(PunaError), control.changes() as changed:
        while True:
            changed.clear()
            await run_in_threadpool(_still_valid, control, key)
            event, sent = await run_in_threadpool(_difference, board, key, sent)
            if event is not None:
                yield b"event: state\ndata: " + event + b"\n\n"
                silent_since = time.monotonic()
            elif time.monotonic() - silent_since > BREATH_S:
                yield b": still here\n\n"
                silent_since = time.monotonic()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), LOOK_S)
                await asyncio.sleep(0.05)  # a rollout writes in bursts: one event for each of them


def _still_valid(control: Control, key: Key | None) -> None:
    if key is None:
        return
    current = next((k for k in control.store.keys() if k.id == key.id), None)
    if current is None:
        raise UnauthorizedError(api_keys.UNKNOWN, api_keys.MAKE)
    api_keys.check_expiry(current, control.clock())


def _difference(board: Board, key: Key | None, sent: Texts | None) -> tuple[bytes | None, Texts]:
    """The event with all that is new since `sent`, or None, and what has been sent then; the first is never None."""
    now = {one: text for one, text in board.look().items() if api_keys.visible(key, one[2])}
    before = sent or {}
    new: dict[str, list[str]] = {"endpoints": [], "builds": []}
    for one, text in now.items():
        if before.get(one) is not text:
            new[one[0]].append(text)
    gone = [name for kind, name, _ in before if kind == "endpoints" and (kind, name, name) not in now]
    if sent is not None and not (new["endpoints"] or new["builds"] or gone):
        return None, now
    parts = [f'"{kind}":[{",".join(texts)}]' for kind, texts in new.items()]
    return ("{" + ",".join([*parts, f'"gone":{encode(gone).decode()}']) + "}").encode(), now
