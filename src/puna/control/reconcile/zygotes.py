"""Which zygotes should run: `plan(wanted, seen, history, now)`, pure, and the keeper that makes it true.

One for each revision that serves, of every active endpoint that wants one. It is begun when nothing of the endpoint
starts, so that no start is slowed, begun anew with a pause when it dies, and not again when it refuses: its imports
would do the same again.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from puna.backends.base import Backend, Launch, Phase, Zygote
from puna.control.domain.records import Replica, Snapshot
from puna.control.domain.states import ReplicaState, RevisionState
from puna.control.reconcile.launch import Launching
from puna.control.reconcile.plan import STEADY_S, back_off_s
from puna.control.store.store import Store
from puna.errors import PunaError

LOG = logging.getLogger("puna.zygotes")
LOOK_EVERY_S = 0.5

Key = tuple[str, int]
"""An endpoint's name and a revision's number."""


@dataclass(frozen=True)
class StartZygote:
    """Begin a zygote."""

    name: str


@dataclass(frozen=True)
class Cool:
    """End and forget a zygote."""

    name: str


@dataclass(frozen=True)
class ZygoteHistory:
    """History of the zygotes of one name."""

    deaths: int = 0
    last_death: float = 0.0
    """On the monotonic clock."""
    refused: str = ""
    """Why an import makes forks unsafe."""
    was_ready: bool = False

    def may_begin(self, now: float) -> bool:
        """Neither refused nor within its pause."""
        return not self.refused and now >= self.last_death + back_off_s(self.deaths)


def wanted(snapshot: Snapshot) -> dict[Key, bool]:
    """The revisions that should have a zygote, and whether one may be begun now."""
    found: dict[Key, bool] = {}
    for endpoint in snapshot.endpoints:
        if endpoint.active and endpoint.settings.zygote:
            starts = [r for r in snapshot.replicas if r.endpoint == endpoint.name and r.state is ReplicaState.STARTING]
            rolls = [
                r
                for r in snapshot.revisions
                if r.endpoint == endpoint.name and r.state in (RevisionState.BUILT, RevisionState.STARTING)
            ]
            found |= {(endpoint.name, revision): not starts and not rolls for revision in endpoint.shares}
    return found


def plan(
    names: Mapping[str, bool], seen: Collection[Zygote], history: Mapping[str, ZygoteHistory], now: float
) -> list[StartZygote | Cool]:
    """Plan starts and ends; `names` are the wanted ones, and whether each may begin now."""
    actions: list[StartZygote | Cool] = [Cool(z.name) for z in seen if z.name not in names or z.phase is Phase.EXITED]
    there = {zygote.name for zygote in seen}
    for name, may_begin in names.items():
        if name not in there and may_begin and history.get(name, ZygoteHistory()).may_begin(now):
            actions.append(StartZygote(name))
    return actions


class ZygoteKeeper:
    """Keeps the zygotes that are wanted; `step` from one thread, `view` from any."""

    def __init__(self, store: Store, backend: Backend, launching: Launching) -> None:
        self._store, self._backend, self._launching = store, backend, launching
        self._names: dict[Key, str] = {}
        self._seen: dict[str, Zygote] = {}
        self._history: dict[str, ZygoteHistory] = {}
        self._looked = self._at = 0.0

    def step(self, snapshot: Snapshot, now: float, at: float | None = None) -> list[StartZygote | Cool]:
        """One look and what follows from it, twice a second at most; `at` is the moment on the monotonic clock."""
        self._at = now if at is None else at
        if 0 <= self._at - self._looked < LOOK_EVERY_S:
            return []
        self._looked = self._at
        keys = wanted(snapshot)
        self._names = {key: name for key in keys if (name := self._name(key, now))}
        names: dict[str, bool] = {}
        for key, name in self._names.items():
            names[name] = names.get(name, False) or keys[key]
        seen = {zygote.name: zygote for zygote in self._backend.zygotes()}
        for zygote in seen.values():
            self._learn(zygote, now)
        actions = plan(names, seen.values(), self._history, self._at)
        for action in actions:
            self._act(action, now)
        self._seen = {zygote.name: zygote for zygote in self._backend.zygotes()} if actions else seen
        self._history = {name: one for name, one in self._history.items() if name in names}
        return actions

    def started(self, replica: Replica, launch: Launch) -> None:
        """A replica has just been started: whatever its environment is now, is what a zygote must have."""
        key = (replica.endpoint, replica.revision)
        if key in self._names and launch.warm:
            self._names[key] = launch.warm

    def view(self, endpoint: str, revision: int | None) -> dict[str, Any] | None:
        """An endpoint's zygote as the API shows it; None when it is to have none."""
        name = self._names.get((endpoint, revision or 0))
        if name is None:
            return None
        zygote, history = self._seen.get(name), self._history.get(name, ZygoteHistory())
        state = "refused" if history.refused else str(zygote.phase) if zygote else "waiting"
        return {
            "state": state,
            "memory_bytes": zygote.memory_bytes if zygote else 0,
            "reason": history.refused,
        }

    # ---- parts of a step ---------------------------------------------------------------------------------------

    def _name(self, key: Key, now: float) -> str:
        known = self._names.get(key)
        if known is not None:
            return known
        try:
            return self._launching.zygote_name(*key)
        except (PunaError, OSError) as error:
            LOG.info(
                "no zygote for %s revision %d: %s", *key, error
            )  # its replicas fail for the same reason, and say so
            return ""

    def _learn(self, zygote: Zygote, now: float) -> None:
        before = self._history.get(zygote.name, ZygoteHistory())
        if zygote.phase is Phase.EXITED:
            refused = (zygote.reason or "it says not why") if zygote.refused else ""
            is_first = before.was_ready and self._at - before.last_death >= STEADY_S
            deaths = 1 if is_first else before.deaths + 1
            after = ZygoteHistory(deaths, self._at, refused)
            what = "refuses, each start imports for itself" if refused else "died and will be begun again"
            self._tell(zygote.name, f"the zygote {what}: {zygote.reason}", now)
        elif zygote.phase is Phase.READY and not before.was_ready:
            after = ZygoteHistory(before.deaths, before.last_death, before.refused, was_ready=True)
            self._tell(zygote.name, f"the zygote is ready: {zygote.memory_bytes / 2**20:.0f} MiB", now)
        else:
            return
        self._history[zygote.name] = after

    def _act(self, action: StartZygote | Cool, now: float) -> None:
        if isinstance(action, Cool):
            self._backend.cool(action.name)
            return
        key = next(key for key, name in self._names.items() if name == action.name)
        try:
            self._backend.warm(self._launching.zygote(*key))
        except (PunaError, OSError) as error:
            before = self._history.get(action.name, ZygoteHistory())
            self._history[action.name] = ZygoteHistory(before.deaths + 1, self._at)
            self._tell(action.name, f"the zygote could not be begun: {error}", now)

    def _tell(self, name: str, message: str, now: float) -> None:
        for endpoint in {key[0] for key, known in self._names.items() if known == name}:
            self._store.add_event(endpoint, "zygote", message, now)
