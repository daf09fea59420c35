"""Planning: `plan(desired, actual, now) -> actions`, pure. Rollouts, restarts, scaling and placement.

A rollout: the new revision's replicas start beside the old one's; when enough are ready the route is swapped in one
transaction, and only then the old ones drain. The revision that serves is never stopped first, unless `replace` was
asked for and there is no room for both. A rollout that fails leaves it serving.

A revision that is to have less than all requests joins the serving one instead. Each is then scaled by itself,
within its part of the limits, until one is promoted (it gets the replicas for all requests first, then the route)
or keeps dying (the other gets its share).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from puna.backends.base import Capacity, Observed, Phase
from puna.control.domain.records import WHOLE, Endpoint, Replica, Revision, Snapshot, TrafficSplit
from puna.control.domain.states import ALIVE, CRASH_LOOP, PENDING, SERVING, ReplicaState, RevisionState
from puna.control.reconcile import placement
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
    Note,
    Sleep,
    Start,
    StartCanary,
    Stop,
    Swap,
    Wake,
    mark,
)
from puna.control.reconcile.placement import Placement, SleepPolicy

BACK_OFF_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # after the 1st, 2nd... failure in a row; the last one repeats
STEADY_S = 60.0  # a replica that has been ready so long clears its revision's failures
UNSEEN_S = 10.0  # a replica that was just started may take so long to show in the backend's list
SETTLE_S = 1.0  # gateways report twice a second: a drained replica's count is believed after this
PLACE_S = 60.0  # a rollout that finds no room gives up after this
STOP_GRACE_S = 10.0
STOP_AGAIN_S = 15.0


@dataclass(frozen=True)
class Actual:
    """Reality: the backend's view, and the gateways' counts."""

    capacity: Capacity
    observed: Mapping[str, Observed] = field(default_factory=dict)
    """By replica id."""
    in_flight: Mapping[str, int] = field(default_factory=dict)
    """By replica id; absent is none."""
    excused: frozenset[str] = frozenset()
    """Replicas that died of somebody's request."""


def plan(desired: Snapshot, actual: Actual, now: float) -> list[Action]:
    """The actions that bring what runs nearer to what is wanted; none when both agree."""
    actions: list[Action] = []
    replicas: list[Replica] = []
    failures: dict[tuple[str, int], Fail] = {}
    serving = {(endpoint.name, endpoint.serving) for endpoint in desired.endpoints}
    for replica in desired.replicas:
        action = _fact(replica, actual, now)
        if isinstance(action, Fail) and replica.id in actual.excused:
            # Of a second revision each death counts: whether it dies of what the first one answers is the question.
            action = replace(action, counts=(replica.endpoint, replica.revision) not in serving)
        if action is not None:
            actions.append(action)
            replica = _after(replica, action, now)
        if isinstance(action, Fail) and action.counts:
            failures[replica.endpoint, replica.revision] = action
        replicas.append(replica)
    running = [r for r in replicas if r.state is not ReplicaState.FAILED]
    room = Placement(actual.capacity, running, desired.reserved)
    sleep_policy = SleepPolicy(running, desired.endpoints, actual.in_flight)
    known = set()
    for endpoint in desired.endpoints:
        known.add(endpoint.name)
        mine = [r for r in replicas if r.endpoint == endpoint.name]
        revisions = [_counted(r, failures, now) for r in desired.revisions if r.endpoint == endpoint.name]
        actions += _Endpoint(endpoint, revisions, mine, actual, now).plan(room, sleep_policy)
    for name, share in desired.waiting:
        for replica in filter(sleep_policy.leaves, room.to_evict(share, sleep_policy) or ()):
            actions.append(Drain(replica.id, f"makes room for a build of {name}", now + STOP_GRACE_S))
    gone = [r for r in replicas if r.endpoint not in known and r.state in (*ALIVE, ReplicaState.DRAINING)]
    return actions + [Stop(r.id, "its endpoint was deleted", STOP_GRACE_S) for r in gone]


# ---- one replica: what has happened to it -----------------------------------------------------------------------


def _fact(replica: Replica, actual: Actual, now: float) -> Action | None:
    """The action that follows from what the backend sees, whatever the endpoint wants."""
    seen = actual.observed.get(replica.id)
    gone = seen is None or seen.phase is Phase.EXITED
    match replica.state:
        case ReplicaState.STARTING:
            if seen is None and now - replica.since < UNSEEN_S:
                return None
            if gone:
                return _death(replica, seen, "while it started")
            return Admit(replica.id) if seen and seen.phase is Phase.READY else None
        case ReplicaState.READY | ReplicaState.ASLEEP:
            is_asleep = replica.state is ReplicaState.ASLEEP
            if seen is None or gone:
                return _death(replica, seen, "while it slept" if is_asleep else "while it served")
            return Changed(replica.id, seen.is_asleep) if seen.is_asleep != is_asleep else None
        case ReplicaState.DRAINING:
            if gone:
                return Forget(replica.id)
            idle = actual.in_flight.get(replica.id, 0) == 0 and now - replica.since >= SETTLE_S
            if idle or now >= replica.deadline:
                return Stop(replica.id, "drained" if idle else "its time to drain is up", STOP_GRACE_S)
            return None
        case ReplicaState.STOPPING:
            if gone:
                return Forget(replica.id)
            return Stop(replica.id, "still there", 0.0) if now - replica.since >= STOP_AGAIN_S else None
        case _:
            return Forget(replica.id)


def _death(replica: Replica, seen: Observed | None, when: str) -> Fail:
    if seen is None:
        return Fail(replica.id, f"it vanished {when}", "")
    code = "" if seen.exit_code is None else f" (exit code {seen.exit_code})"
    return Fail(replica.id, f"{seen.reason or 'it exited'} {when}{code}", "\n".join(seen.last_lines))


def _after(replica: Replica, action: Action, now: float) -> Replica:
    """The replica as it will be once the action has been performed."""
    if isinstance(action, Changed):
        return replace(replica, state=ReplicaState.ASLEEP if action.is_asleep else ReplicaState.READY, since=now)
    states = {Admit: ReplicaState.READY, Fail: ReplicaState.FAILED, Stop: ReplicaState.STOPPING}
    return replace(replica, state=states.get(type(action), ReplicaState.FAILED))


def _counted(revision: Revision, failures: Mapping[tuple[str, int], Fail], now: float) -> Revision:
    """The revision with a failure of this very step counted, so that its replica is not started again at once."""
    fail = failures.get((revision.endpoint, revision.number))
    if fail is None:
        return revision
    more = {"detail": fail.lines} if fail.lines else {}
    return replace(revision, failures=revision.failures + 1, failed_at=now, error=fail.reason, **more)  # type: ignore[arg-type]


# ---- one endpoint: what it wants ---------------------------------------------------------------------------------


class _Endpoint:
    """One endpoint within one plan."""

    def __init__(
        self,
        endpoint: Endpoint,
        revisions: Sequence[Revision],
        replicas: Sequence[Replica],
        actual: Actual,
        now: float,
    ) -> None:
        self.endpoint, self.revisions, self.actual, self.now = endpoint, revisions, actual, now
        self.replicas = [r for r in replicas if r.state in ALIVE]
        self.leaving = [r for r in replicas if r.state in (ReplicaState.DRAINING, ReplicaState.STOPPING)]
        self.serving = next((r for r in revisions if r.number == endpoint.serving), None)
        self.split = next((r for r in revisions if endpoint.split and r.number == endpoint.split.revision), None)
        rolling = [r for r in revisions if r.state in (RevisionState.BUILT, RevisionState.STARTING)]
        latest = max([*rolling, *filter(None, [self.serving, self.split])], key=lambda r: r.asked, default=None)
        self.next = latest if latest in rolling else None
        self.stale = [r for r in rolling if r is not self.next]
        self.actions: list[Action] = []
        self.reason = ""

    def plan(self, room: Placement, sleep_policy: SleepPolicy) -> list[Action]:
        """The actions; `room` is booked for what they start, `sleepers` hear of what they end."""
        self.sleep_policy = sleep_policy
        for revision in self.stale:
            self.actions.append(mark(revision, RevisionState.SUPERSEDED))
        if self.endpoint.active and self.serving is not None and self.split is not None:
            self._abort_canary(self.serving, self.split)
        for replica in self.replicas:
            if replica.revision not in self._kept():
                self._remove(replica, "its revision no longer serves" if self.endpoint.active else "deactivated")
        if not self.endpoint.active:
            self.reason = "it is deactivated; `puna activate` lets it serve"
        else:
            if self.serving is not None:
                self._hold_serving(self.serving, room)
            if self.split is not None:
                self._hold_split(self.split, room)
            if self.next is not None:
                self._roll_out(self.next, room)
            elif self.serving is None:
                self.reason = self._why_nothing()
        if self.reason != self.endpoint.reason:
            self.actions.append(Note(self.endpoint.name, self.reason))
        return self.actions

    def _kept(self) -> set[int]:
        kept = [r.number for r in (self.serving, self.split, self.next) if r is not None]
        return set(kept) if self.endpoint.active else set()

    def _abort_canary(self, serving: Revision, split: Revision) -> None:
        """When one of two keeps dying, the other gets its share, and is all that this plan holds."""
        if self._keeps_dying(split):
            lost, kept = split, serving
        elif self._keeps_dying(serving) and (_ready(self._of(split)) or not split.failures):
            lost, kept = serving, split
        else:
            return
        error = f"its replicas keep dying: {lost.error or 'see its events'}"
        self.actions.append(AbortCanary(lost.endpoint, lost.number, error, lost.detail))
        self.serving, self.split = kept, None
        self.endpoint = replace(
            self.endpoint, serving=kept.number, split=None, desired_replicas=self.endpoint.wanted_in_all
        )

    def _keeps_dying(self, revision: Revision) -> bool:
        return revision.failures >= CRASH_LOOP and not _ready(self._of(revision))

    def _wanted(self, revision: Revision) -> int:
        """Replicas of a revision that serves."""
        wanted, mine = self.endpoint.wanted_of(revision.number), self._of(revision)
        if self.next is not None:
            # The last ready replica stays until the new revision is ready, even when nobody calls; and a rollout that
            # may replace gets the room first.
            wanted = max(wanted, min(1, len(_ready(mine))))
            wanted = min(wanted, len(_awake(mine))) if _may_replace(self.next) else wanted
        return wanted

    def _hold_serving(self, serving: Revision, room: Placement) -> None:
        self._hold(serving, self._wanted(serving), room)
        if self._keeps_dying(serving):
            self.reason = f"its replicas keep dying: {serving.error or 'see its events'}"
        self._clear(serving)

    def _hold_split(self, split: Revision, room: Placement) -> None:
        """The second one of a split: as many as it needs, or, while it is promoted, as all requests need."""
        if split.percent < WHOLE:
            self._hold(split, self._wanted(split), room)
        else:
            wanted, mine = max(1, self.endpoint.wanted_in_all), self._of(split)
            short = self._hold(split, wanted, room)
            if self._is_ready(mine, wanted, short):
                self.actions.append(Swap(split.endpoint, split.number))
            elif short and not mine and not self.leaving and self.now - split.since >= PLACE_S:
                error = f"no room to promote it: {self.reason}"
                self.actions.append(CancelPromotion(split.endpoint, split.number, error))
        self._clear(split)

    @staticmethod
    def _is_ready(mine: Sequence[Replica], wanted: int, short: bool) -> bool:
        """All that is wanted is ready, or all that there is room for."""
        ready = _ready(mine)
        return len(ready) >= wanted or bool(ready and short and len(ready) == len(mine))

    def _clear(self, revision: Revision) -> None:
        steady = [r for r in _ready(self._of(revision)) if self.now - r.since >= STEADY_S]
        if revision.failures and steady:
            self.actions.append(ClearFailures(revision.endpoint, revision.number))

    def _roll_out(self, new: Revision, room: Placement) -> None:
        never = room.impossible(new)
        if never:
            self.actions.append(mark(new, RevisionState.FAILED, f"it fits nowhere: {never}", "use a larger machine"))
            return
        if new.failures >= CRASH_LOOP:
            message = f"{new.failures} replicas of revision {new.number} failed: {new.error or 'see the lines below'}"
            self.actions.append(mark(new, RevisionState.FAILED, message, f"`puna logs {new.endpoint}`", new.detail))
            return
        if new.state is RevisionState.BUILT:
            self.actions.append(mark(new, RevisionState.STARTING))
        beside = new.percent < WHOLE and self.serving is not None
        fewest = TrafficSplit(new.number, new.percent).part(self.endpoint.settings.min_replica)
        wanted, mine = max(1, fewest if beside else self.endpoint.wanted_in_all), self._of(new)
        short = self._hold(new, wanted, room)
        if self._is_ready(mine, wanted, short):
            self.actions.append((StartCanary if beside else Swap)(new.endpoint, new.number))
        elif short and not mine:
            self._no_room(new, room)

    def _no_room(self, new: Revision, room: Placement) -> None:
        """Nothing of the new revision runs or can start: make room if that was asked for, or give up in time."""
        if room.to_evict(new.settings.gpu_fraction, self.sleep_policy) is not None:
            return  # enough will be free: of what leaves, be the drain as long as it may
        old = self._of(self.serving) if self.serving is not None else []
        if _may_replace(new) and old:
            self.reason = "it is being replaced: there is no room for two revisions"
            for replica in old:
                self._remove(replica, f"makes room for revision {new.number}")
            return
        # Replicas of its own that are leaving will give room: a long drain is no shortage.
        if new.state is RevisionState.STARTING and self.now - new.since >= PLACE_S and not self.leaving:
            hint = "`puna deploy --replace` stops the serving revision first" if old else "deactivate another endpoint"
            if old and new.percent < WHOLE:
                hint = "a split needs room for a replica of both; deploy without a share, or free a GPU"
            self.actions.append(mark(new, RevisionState.FAILED, f"no room for it: {self.reason}", hint))

    def _why_nothing(self) -> str:
        newest = max(self.revisions, key=lambda r: r.asked, default=None)
        if newest is None or newest.state in (RevisionState.CANCELLED, RevisionState.SUPERSEDED):
            return "nothing is deployed"
        if newest.state in PENDING:
            return ""  # it is being built: requests wait
        return f"revision {newest.number} failed: {newest.error}"

    def _of(self, revision: Revision) -> list[Replica]:
        return [r for r in self.replicas if r.revision == revision.number]

    def _hold(self, revision: Revision, wanted: int, room: Placement) -> bool:
        """Start or remove replicas until `wanted` of the revision run; True when there was no room for one."""
        mine = _awake(self._of(revision))
        # One that is promoted may have as many as one that serves alone.
        is_promoted = revision is self.split and revision.percent == WHOLE
        most = self.endpoint.settings.max_replica if is_promoted else self.endpoint.limits(revision.number)[1]
        why = self.endpoint.desired_of(revision.number)[1] or "the limits changed"
        for number, replica in enumerate(sorted(mine, key=self._spare)[: max(0, len(mine) - wanted)]):
            if number < len(mine) - most:
                self._remove(replica, f"{wanted} wanted: {why}")  # no place is left even for one that sleeps
            else:
                self._rest(replica, f"{wanted} wanted: {why}")
        missing = wanted - len(mine)
        missing -= self._hold_asleep(revision, missing, most - max(wanted, min(len(mine), most)))
        if missing <= 0 or 0 <= self.now - revision.failed_at < back_off_s(revision.failures):
            return False
        for _ in range(missing):
            gpu = room.allocate(revision)
            if gpu is None:
                for replica in room.to_evict(revision.settings.gpu_fraction, self.sleep_policy) or ():
                    self._remove(replica, f"makes room for {revision.endpoint}")
                more = f"{len(mine)} of {wanted} replicas run: " if mine else ""
                self.reason = f"{more}{room.shortage(revision)}"
                return True
            fraction = revision.settings.gpu_fraction if gpu else 0.0
            self.actions.append(Start(revision.endpoint, revision.number, gpu, fraction))
        return False

    def _hold_asleep(self, revision: Revision, missing: int, places: int) -> int:
        """Wake those that are missing, end those that have slept too long or are too many; how many were woken."""
        mine = self._of(revision)
        asleep = [r for r in mine if r.state is ReplicaState.ASLEEP and r.id not in self.sleep_policy.left]
        woken = self.sleep_policy.to_wake(asleep, missing)
        self.actions += [Wake(replica.id) for replica in woken]
        rest = [r for r in asleep if r not in woken]
        settings = self.endpoint.settings
        for replica in rest:
            if self.now - replica.since >= settings.evict_after_s:
                self._remove(replica, f"slept for {settings.evict_after_s:g} s")
        for replica in placement.too_many(rest, places):
            self._remove(replica, f"max_replica is {settings.max_replica}")
        return len(woken)

    def _rest(self, replica: Replica, why: str) -> None:
        """Let a replica that is not wanted sleep if it can, once it is idle, else end it."""
        may = placement.may_sleep(self.endpoint, replica, self.actual.observed, self.actual.in_flight, self.now)
        if may:
            self.actions.append(Sleep(replica.id, why))
        elif may is False:
            self._remove(replica, why)

    def _spare(self, replica: Replica) -> tuple[bool, int, float]:
        """Sort key of who goes first: the one that is still starting, then the least busy, then the youngest."""
        busy = self.actual.in_flight.get(replica.id, 0)
        return (replica.state is ReplicaState.READY, busy, -replica.created)

    def _remove(self, replica: Replica, why: str) -> None:
        if not self.sleep_policy.leaves(replica):
            return  # scaled down and replaced in one step, or ended for the sake of another endpoint
        if replica.state in SERVING:
            settings = self.endpoint.settings
            deadline = self.now + (settings.drain_timeout_s or settings.inference_time_s)
            self.actions.append(Drain(replica.id, why, deadline))
        else:
            self.actions.append(Stop(replica.id, why, STOP_GRACE_S))


def _may_replace(new: Revision) -> bool:
    """It may take the serving revision's room: one that is to share with it may not."""
    return new.settings.replace and new.percent == WHOLE


def _awake(replicas: Sequence[Replica]) -> list[Replica]:
    return [r for r in replicas if r.state is not ReplicaState.ASLEEP]


def _ready(replicas: Sequence[Replica]) -> list[Replica]:
    return [r for r in replicas if r.state is ReplicaState.READY]


def back_off_s(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return BACK_OFF_S[min(failures, len(BACK_OFF_S)) - 1] if failures else 0.0
