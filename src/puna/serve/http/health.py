"""Answers to probes: this gateway's life, the state of everything behind it, and its version."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import orjson

from puna import __version__
from puna.serve.dispatch.dispatcher import Dispatcher
from puna.serve.http.forward import Follower

LIVE, READY = ("/ping", "/v2/health/live"), "/v2/health/ready"
WHOLE = ("/health", "/healthz")
VERSION = "/version"
PATHS = frozenset((*LIVE, READY, *WHOLE, VERSION))
GRACE_S = 10.0
"""A part that is away for less is restarting: the supervisor or the reconciler sees to it."""
REMEMBERED_S = 1.0
"""Probes need no key, so they must not be able to keep the control plane busy."""

OK = "ok"
Ask = Callable[[], Awaitable[tuple[int, bytes]]]
"""Status and body of the control plane's own health; raises OSError when it does not answer."""


class HealthCheck:
    """Answers the paths in PATHS; `look` is called at every report."""

    def __init__(self, ask: Ask, dispatchers: Iterable[Dispatcher], follower: Follower) -> None:
        self._ask, self._dispatchers, self._follower = ask, dispatchers, follower
        self._lost_since: dict[tuple[str, int], float] = {}
        self._heard = float("-inf")
        self._told: tuple[float, dict[str, str]] = (float("-inf"), {})
        self._asking: asyncio.Task[dict[str, str]] | None = None

    def look(self, now: float) -> None:
        """Note which endpoints have replicas that this gateway cannot reach; `now` on the loop's clock."""
        if self._follower.connected:
            self._heard = now
        away = [one.route for one in self._dispatchers if one.route.replicas and not one.ready]
        lost = {(route.name, route.revision) for route in away}
        self._lost_since = {name: self._lost_since.get(name, now) for name in lost}

    async def answer(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and body for one of PATHS."""
        if path in LIVE:
            return 200, {"live": True}
        if path == VERSION:
            return 200, {"version": __version__}
        has_table = self._follower.table.version >= 0
        if path == READY:
            return 200 if has_table else 503, {"ready": has_table}
        parts = await self._parts(has_table)
        is_well = all(state == OK for state in parts.values())
        told = {"status": OK if is_well else "failing", "version": __version__, "parts": parts}
        return 200 if is_well else 503, told

    async def _parts(self, has_table: bool) -> dict[str, str]:
        now = asyncio.get_running_loop().time()
        self.look(now)
        lost = sum(now - since >= GRACE_S for since in self._lost_since.values())
        return {
            "gateway": OK if has_table else "it has not heard from the control plane yet",
            **await self._control_plane(now),
            "replicas": f"those of {lost} endpoint{'s' * (lost > 1)} cannot be reached" if lost else OK,
        }

    async def _control_plane(self, now: float) -> dict[str, str]:
        """The control plane's own parts, asked at most once a second whoever asks here."""
        asked, parts = self._told
        if now - asked < REMEMBERED_S:
            return parts
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._ask_control_plane())
            self._asking.add_done_callback(self._asked)
        return await asyncio.shield(self._asking)

    def _asked(self, task: asyncio.Task[dict[str, str]]) -> None:
        self._asking = None
        if not task.cancelled() and task.exception() is None:
            self._told = (asyncio.get_running_loop().time(), task.result())

    async def _ask_control_plane(self) -> dict[str, str]:
        try:
            status, body = await self._ask()
            told = orjson.loads(body)
        except (OSError, ValueError):
            silent_s = asyncio.get_running_loop().time() - self._heard
            if silent_s < GRACE_S:
                return {"control_plane": OK}  # it restarts; inference goes on meanwhile
            return {"control_plane": "it does not answer"}
        parts = told.get("parts") if isinstance(told, dict) else None
        own = {str(name): str(state) for name, state in parts.items()} if isinstance(parts, dict) else {}
        return {"control_plane": OK if status == 200 or own else f"it answers {status}", **own}
