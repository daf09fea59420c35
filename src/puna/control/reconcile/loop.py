"""The reconciliation loop: read the store and the backend, plan, act; every action is one small method."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from puna.backends.base import Backend, Launch, Observed, Phase
from puna.control.domain.records import Replica, Snapshot
from puna.control.domain.states import ReplicaState, RevisionState
from puna.control.reconcile.actions import (
    AbortCanary,
    Action,
    Admit,
    CancelPromotion,
    Changed,
    ClearFailures,
    Drain,
    Fail,
    Forget,
    MarkRevision,
    Note,
    Sleep,
    Start,
    StartCanary,
    Stop,
    Swap,
    Wake,
)
from puna.control.reconcile.launch import Launching
from puna.control.reconcile.plan import Actual, plan
from puna.control.reconcile.zygotes import ZygoteKeeper
from puna.control.resources import revision_files
from puna.control.resources.secrets import Secrets
from puna.control.store.store import Store
from puna.control.telemetry.load import Loads
from puna.errors import ConflictError, NotFoundError, PunaError
from puna.home import Home

LOG = logging.getLogger("puna.reconciler")
INTERVAL_S = 0.2
SOONEST_S, LATENESS = 0.02, 0.05  # while a replica starts: a look every 20 ms, then every 5 % of what it has taken
UNKNOWN_GRACE_S = 5.0
DAMAGE_EVERY_S = 30.0
SLEEP_TAKES_S, WAKE_TAKES_S = 60.0, 10.0
"""An answer is awaited so long before a replica is asked again."""

Prepare = Callable[[Replica], Launch]
"""Everything needed to start a replica; raises PunaError when its bundle or a secret is missing."""


class Reconciler:
    """Brings what runs nearer to what the store says, one `step` at a time."""

    def __init__(
        self,
        store: Store,
        backend: Backend,
        home: Home,
        *,
        loads: Loads | None = None,
        prepare: Prepare | None = None,
        zygotes: ZygoteKeeper | None = None,
    ) -> None:
        """`loads` say when a draining replica has no request left; `prepare` is for tests without bundles.

        Without `zygotes` none are kept.
        """
        self.store, self.backend, self.home, self.loads = store, backend, home, loads or Loads()
        self.prepare = prepare or Launching(store, home, Secrets(store, home.key))
        self.zygotes = zygotes
        self._at = 0.0  # the step's moment on the monotonic clock
        self._observed: Mapping[str, Observed] = {}
        self._desired = Snapshot()
        self._looked: dict[tuple[str, int], tuple[float, str]] = {}
        self._asked: dict[str, tuple[float, str]] = {}  # replica id -> when it was asked to sleep or wake, and why
        self._acts: Mapping[type[Any], Callable[[Any, float], None]] = {
            Start: self._start,
            Admit: self._admit,
            Sleep: self._sleep,
            Wake: self._wake,
            Changed: self._changed,
            Drain: self._drain,
            Stop: self._stop,
            Fail: self._fail,
            Forget: self._forget,
            MarkRevision: self._mark,
            Swap: lambda it, now: store.swap(it.endpoint, it.revision, now),
            StartCanary: lambda it, now: store.start_canary(it.endpoint, it.revision, now),
            AbortCanary: self._abort_canary,
            CancelPromotion: lambda it, now: store.cancel_promotion(it.endpoint, it.revision, it.error, now),
            ClearFailures: lambda it, _: store.clear_failures(it.endpoint, it.revision),
            Note: lambda it, now: store.set_reason(it.endpoint, it.reason, now),
        }

    def run(self, stop: threading.Event) -> None:
        """Step until `stop`: five times a second, more often while a replica starts, at once when the store changes."""
        changed = threading.Event()
        with self.store.subscribed(changed.set):
            while not stop.is_set():
                changed.clear()
                try:
                    self.step(time.time())
                except Exception:  # the log has it, and the loop goes on: one bad step must not end all serving
                    LOG.exception("a step of the reconciler failed")
                    stop.wait(1.0)
                changed.wait(self._pause_s())

    def _pause_s(self) -> float:
        starts = [r.created for r in self._desired.replicas if r.state is ReplicaState.STARTING]
        return min(max(SOONEST_S, (self._at - max(starts)) * LATENESS), INTERVAL_S) if starts else INTERVAL_S

    def step(self, now: float) -> list[Action]:
        """One look and what follows from it; the actions are returned for whoever watches."""
        # The backend first: a replica that is added in between is then missing from its list, and has 10 s to appear.
        self._observed = {seen.replica_id: seen for seen in self.backend.list()}
        desired, self._at = self.store.snapshot(), now
        if self.store.timeline is not None:
            desired, self._at = self.store.timeline.snapshot(desired), self.store.timeline.now()
        self._desired = desired
        self._end_unknown({r.id for r in desired.replicas})
        in_flight = {r.id: self.loads.in_flight(r.id, self._at) for r in desired.replicas}
        actual = Actual(self.backend.capacity(), self._observed, in_flight, self.loads.deaths.excused())
        actions = plan(desired, actual, self._at)
        for action in actions:
            try:
                self._acts[type(action)](action, now)
            except (NotFoundError, ConflictError) as error:
                # Somebody changed the store since the snapshot; the next plan knows.
                LOG.info("%s is out of date: %s", action, error.message)
        # Who is no longer to sleep or to wake is forgotten, and asked at once when that changes.
        still = {action.replica_id for action in actions if isinstance(action, Sleep | Wake)}
        self._asked = {replica_id: asked for replica_id, asked in self._asked.items() if replica_id in still}
        if self.zygotes is not None:
            self.zygotes.step(self.store.snapshot(), now, self._at)
        return actions

    def _end_unknown(self, known: set[str]) -> None:
        """Stop what runs and stands in no book: left by a lost database, or by a start that was never recorded."""
        for seen in self._observed.values():
            if seen.replica_id in known:
                continue
            if seen.phase is Phase.EXITED:
                self.backend.forget(seen.replica_id)
            else:
                LOG.warning("stopping %s: the store does not know it", seen.replica_id)
                self.backend.stop(seen.replica_id, UNKNOWN_GRACE_S)

    # ---- actions -----------------------------------------------------------------------------------------------

    def _start(self, action: Start, now: float) -> None:
        replica = self.store.add_replica(action.endpoint, action.revision, action.gpu, action.fraction, now)
        try:
            launch = self.prepare(replica)
            self.backend.start(launch)
        except (PunaError, OSError) as error:
            reason = " ".join(filter(None, (str(error), getattr(error, "hint", ""))))
            self.store.fail_replica(replica.id, f"it could not be started: {reason}", "", now)
            return
        if self.zygotes is not None:
            self.zygotes.started(replica, launch)

    def _admit(self, action: Admit, now: float) -> None:
        seen = self._observed[action.replica_id]
        ready = f" after {seen.ready_s:.1f} s" if seen.ready_s is not None else ""
        concurrency = int(str(seen.schema.get("concurrency") or 1))
        values = {"pid": seen.pid, "concurrency": concurrency, "reason": f"initialize ended{ready}"}
        verdict = seen.schema.get("verdict")
        self.store.admit_replica(action.replica_id, seen.schema.get("schema"), now, verdict, **values)

    def _sleep(self, action: Sleep, _: float) -> None:
        if self._may_ask(action.replica_id, action.reason, SLEEP_TAKES_S):
            self.backend.sleep(action.replica_id)

    def _wake(self, action: Wake, _: float) -> None:
        if self._may_ask(action.replica_id, "it is wanted", WAKE_TAKES_S):
            self.backend.wake(action.replica_id)

    def _may_ask(self, replica_id: str, why: str, again_s: float) -> bool:
        """It was not asked just now: the first sleep of a large model takes seconds."""
        if replica_id in self._asked and self._at - self._asked[replica_id][0] < again_s:
            return False
        self._asked[replica_id] = self._at, why
        return True

    def _changed(self, action: Changed, now: float) -> None:
        """A replica fell asleep, or woke: then its endpoint wants it until nobody has called for a while."""
        _, reason = self._asked.pop(action.replica_id, (0.0, "" if action.is_asleep else "a request woke it"))
        if action.is_asleep:
            asleep = {"reason": reason, "tier": "asleep"}
            self.store.move_replica(action.replica_id, ReplicaState.ASLEEP, now, **asleep)
        else:
            self.store.wake_replica(action.replica_id, reason, now)

    def _drain(self, action: Drain, now: float) -> None:
        values = {"reason": action.reason, "deadline": now + action.deadline - self._at}
        self.store.move_replica(action.replica_id, ReplicaState.DRAINING, now, **values)

    def _stop(self, action: Stop, now: float) -> None:
        if self.store.replica(action.replica_id).state is not ReplicaState.STOPPING:
            self.store.move_replica(action.replica_id, ReplicaState.STOPPING, now, reason=action.reason)
        self.backend.stop(action.replica_id, action.grace_s)

    def _fail(self, action: Fail, now: float) -> None:
        replica = self.store.replica(action.replica_id)
        damaged = self._damaged(replica)
        reason = action.reason + (f"; {damaged}; `puna rebuild {replica.endpoint}` mends it" if damaged else "")
        self.store.fail_replica(action.replica_id, reason, action.lines, now, counts=action.counts)
        if action.counts and self.loads.deaths.count(action.replica_id, time.monotonic()):
            self.store.uncount_failure(replica.endpoint, replica.revision)

    def _damaged(self, replica: Replica) -> str:
        """Damage to a dead replica's files, in words; looked for once in a while, not at each death."""
        key = (replica.endpoint, replica.revision)
        if self._at >= self._looked.get(key, (float("-inf"), ""))[0] + DAMAGE_EVERY_S:
            try:
                found = revision_files.damage_of(self.home, self.store.revision(*key))
            except (NotFoundError, OSError):  # deleted meanwhile; or the disk is away, which others say
                found = ""
            self._looked = {key: one for key, one in self._looked.items() if self._at - one[0] < DAMAGE_EVERY_S}
            self._looked[key] = self._at, found
        return self._looked[key][1]

    def _forget(self, action: Forget, now: float) -> None:
        self.backend.forget(action.replica_id)
        self.store.move_replica(action.replica_id, ReplicaState.GONE, now)

    def _mark(self, action: MarkRevision, now: float) -> None:
        why = {"error": action.error, "hint": action.hint, "detail": action.detail} if action.error else {}
        self.store.move_revision(action.endpoint, action.revision, action.state, now, **why)
        if action.state is RevisionState.FAILED:
            LOG.warning("revision %d of %s failed: %s", action.revision, action.endpoint, action.error)

    def _abort_canary(self, action: AbortCanary, now: float) -> None:
        LOG.warning("revision %d of %s loses its share: %s", action.revision, action.endpoint, action.error)
        self.store.abort_canary(action.endpoint, action.revision, action.error, action.detail, now)
