"""A random walk through every trouble there is, and the few rules that hold at each of its steps."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from puna.backends.base import Capacity, Observed, Phase
from puna.config.settings import Settings
from puna.control.domain.records import WHOLE, Endpoint, Replica, Revision, Snapshot, TrafficSplit
from puna.control.domain.states import ALIVE, CRASH_LOOP, REPLICA_MOVES, REVISION_MOVES, ReplicaState, RevisionState
from puna.control.domain.timeline import Timeline
from puna.control.reconcile import actions as a
from puna.control.reconcile.plan import Actual, plan
from puna.control.store.database import check_move

BAD = 0.5  # of the revisions cannot start at all


@dataclass
class Walk:
    """A store and a backend as plain dictionaries; whatever a plan asks for is checked against the tables."""

    rng: random.Random
    capacity: Capacity
    now: float = 100.0
    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    revisions: dict[tuple[str, int], Revision] = field(default_factory=dict)
    replicas: dict[str, Replica] = field(default_factory=dict)
    seen: dict[str, Observed] = field(default_factory=dict)
    bad: set[tuple[str, int]] = field(default_factory=set)
    sleepy: set[str] = field(default_factory=set)
    """Asked to sleep, and not asleep yet."""
    busy: dict[str, int] = field(default_factory=dict)
    slept = evicted = joined = promoted = returned = 0
    """How often a replica fell asleep, was ended for another's sake, and what became of splits: a walk without them
    proves little."""
    count: int = 0
    splits: dict[str, tuple[Settings, TrafficSplit]] = field(default_factory=dict)
    """What was split after the step before."""
    chaos: bool = True
    trouble_share: float = 1.0
    """How much of the usual trouble with deploys and deaths there is; with little, replicas live to sleep."""
    pace: float = 1.0
    """A crooked one lets no pause end exactly at a step, where the last bit of a number decides."""
    jumps: random.Random | None = None
    """Sets the wall clock, by hours in either direction; None: it is never set."""
    ahead: float = 0.0
    """The wall clock is so much before the one that nobody sets, which is `now`."""
    timeline: Timeline | None = None

    def __post_init__(self) -> None:
        if self.jumps is not None:
            self.timeline = Timeline(lambda: self.wall, lambda: self.now)

    @property
    def wall(self) -> float:
        """What is written down."""
        return self.now + self.ahead

    # ---- what the world does ---------------------------------------------------------------------------------

    def deploy(self, name: str) -> None:
        self.count += 1
        settings = Settings(
            min_replica=self.rng.choice([0, 1, 2]),
            max_replica=self.rng.choice([2, 3]),
            is_dedicated=self.rng.random() < 0.5,
            gpu_type=self.rng.choice(["", "cpu", "A100"]),
            replace=self.rng.random() < 0.3,
            inference_time_s=5,
            evict_after_s=self.rng.choice([0, 10, 10_000]),
        )
        before = self.endpoints.get(name) or Endpoint(name, True, settings, None, "", 0.0, 0)
        self.endpoints[name] = replace(before, active=True, settings=settings, reason="")
        revision = Revision(
            name, self.count, RevisionState.BUILT, "s", None, None, "e", "b", settings, None, 0, self.wall, self.count
        )
        share = self.rng.choice([WHOLE, 10, 50])
        self.revisions[name, self.count] = replace(revision, percent=share)
        if self.rng.random() < BAD * self.trouble_share and self.chaos:
            self.bad.add((name, self.count))

    def trouble(self) -> None:
        name = self.rng.choice(["one", "two"])
        dice = self.rng.random()
        if dice < 0.03 * self.trouble_share or (name not in self.endpoints and dice < 0.1):
            self.deploy(name)
        elif name not in self.endpoints:
            return
        elif dice < 0.10:
            self.scale(name, self.rng.choice([0, 0, 1, 2, 3]))
        elif dice < 0.13:
            self.divide(name)
        elif dice > 1 - 0.02 * self.trouble_share:
            self.endpoints[name] = replace(self.endpoints[name], active=not self.endpoints[name].active)
        elif dice > 1 - 0.025 * self.trouble_share:
            del self.endpoints[name]
            self.revisions = {key: r for key, r in self.revisions.items() if key[0] != name}
        elif dice > 1 - 0.06 * self.trouble_share and self.seen:
            victim = self.rng.choice(sorted(self.seen))
            self.seen[victim] = replace(self.seen[victim], phase=Phase.EXITED, reason="killed", exit_code=-9)
        elif dice > 1 - 0.07 * self.trouble_share and self.seen:
            del self.seen[self.rng.choice(sorted(self.seen))]  # it vanished altogether

    def scale(self, name: str, replicas: int) -> None:
        """Of either revision that serves."""
        endpoint = self.endpoints[name]
        if endpoint.split is not None and self.rng.random() < 0.5:
            self.endpoints[name] = replace(endpoint, split=replace(endpoint.split, desired_replicas=replicas))
        else:
            self.endpoints[name] = replace(endpoint, desired_replicas=replicas)

    def divide(self, name: str) -> None:
        """Change a split, take it away, or promote its second revision, as the store does."""
        endpoint = self.endpoints[name]
        if endpoint.split is None:
            return
        key, dice = (name, endpoint.split.revision), self.rng.random()
        if dice < 0.5:
            self.count += 1
            self.revisions[key] = replace(self.revisions[key], percent=WHOLE, asked=self.count, since=self.wall)
        elif dice < 0.8:
            percent = self.rng.choice([1, 30, 99])
            self.revisions[key] = replace(self.revisions[key], percent=percent)
            self.endpoints[name] = replace(endpoint, split=replace(endpoint.split, percent=percent))
        else:
            assert endpoint.serving is not None
            self.unite(name, endpoint.serving)

    def unite(self, name: str, number: int) -> None:
        endpoint = self.endpoints[name]
        for old in endpoint.shares:
            if old != number:
                self.mark(name, old, RevisionState.RETIRED)
        desired = endpoint.desired_replicas + (endpoint.split.desired_replicas if endpoint.split else 0)
        self.revisions[name, number] = replace(self.revisions[name, number], percent=WHOLE)
        self.endpoints[name] = replace(endpoint, serving=number, split=None, desired_replicas=desired)

    def processes(self) -> None:
        for replica_id, seen in list(self.seen.items()):
            replica = self.replicas.get(replica_id)
            if seen.phase is Phase.STARTING and replica and self.rng.random() < 0.3:
                broken = (replica.endpoint, replica.revision) in self.bad
                phase = Phase.EXITED if broken else Phase.READY
                naps = {"tier": "awake", "can_sleep": replica.revision % 3 != 0}
                self.seen[replica_id] = replace(
                    seen, phase=phase, reason="initialize failed" if broken else "", schema=naps
                )
            if seen.phase is Phase.READY and replica_id in self.sleepy and self.rng.random() < 0.3:
                self.sleepy.discard(replica_id)
                self.seen[replica_id] = replace(seen, schema={**seen.schema, "tier": "asleep"})
            elif seen.is_asleep and self.chaos and self.rng.random() < 0.02:  # a request wakes it
                self.seen[replica_id] = replace(seen, schema={**seen.schema, "tier": "awake"})
            if replica and replica.state is ReplicaState.STOPPING and self.rng.random() < 0.5:
                self.seen[replica_id] = replace(seen, phase=Phase.EXITED)

    # ---- what the plan does ----------------------------------------------------------------------------------

    def step(self) -> list[a.Action]:
        self.now += self.pace * (self.rng.choice([0.2, 0.2, 1.0]) if self.chaos else 1.0)
        if self.jumps is not None and self.jumps.random() < 0.05:
            by_s = self.jumps.choice([-1, 1]) * self.jumps.choice([2.0, 60.0, 3600.0, 7200.0, 86400.0])
            self.ahead += by_s * self.jumps.uniform(0.9, 1.1)
        if self.chaos:
            self.trouble()
        self.processes()
        snapshot = Snapshot(
            tuple(self.endpoints.values()), tuple(self.revisions.values()), tuple(self.replicas.values())
        )
        self.busy = {r: self.rng.randrange(2) for r in self.replicas} if self.chaos else {}
        if self.timeline is not None:
            snapshot = self.timeline.snapshot(snapshot)
        before = {name: ready for name, ready in self.ready_of_serving().items() if self.rolling(name)}
        asked = plan(snapshot, Actual(self.capacity, dict(self.seen), self.busy), self.now)
        for action in asked:
            self.perform(action)
        self.check(before)
        return asked

    def check_times(self, action: a.Action) -> None:
        """Nothing is done before its time; the numbers stand here again, so that a wrong one there is seen."""
        match action:
            case a.Start(name, number):
                revision = self.revisions[name, number]
                pause_s = [0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0][min(revision.failures, 6)]
                assert self.now - revision.failed_at >= pause_s, f"{revision} is tried again too soon"
            case a.Stop(replica_id, "drained"):
                assert self.now - self.replicas[replica_id].since >= 1.0, "a stale count was believed"
            case a.Stop(replica_id, "still there"):
                assert self.now - self.replicas[replica_id].since >= 15.0, "it is killed within its grace"
            case a.ClearFailures(name, number):
                steady = [r for r in self.of(name, number, ReplicaState.READY) if self.now - r.since >= 60.0]
                assert steady, "failures are forgotten before anything has held"
            case a.Fail(replica_id) if replica_id not in self.seen:
                replica = self.replicas[replica_id]
                is_new = replica.state is ReplicaState.STARTING and self.now - replica.since < 10.0
                assert not is_new, "it was not given the time to be seen"

    def perform(self, action: a.Action) -> None:
        if self.jumps is None:
            self.check_times(action)
        match action:
            case a.Start(name, number, gpu, fraction):
                self.count += 1
                new = Replica(
                    f"r{self.count}",
                    self.count,
                    name,
                    number,
                    ReplicaState.STARTING,
                    gpu,
                    fraction,
                    self.wall,
                    self.wall,
                )
                self.replicas[new.id] = new
                self.seen[new.id] = Observed(new.id, Phase.STARTING)
            case a.Admit(replica_id):
                self.move(replica_id, ReplicaState.READY)
            case a.Sleep() | a.Wake() | a.Changed():
                self.nap(action)
            case a.Drain(replica_id, reason, deadline):
                gone = self.replicas[replica_id]
                if (
                    gone.state is ReplicaState.ASLEEP
                    and reason.startswith("makes room for")
                    and "revision" not in reason
                ):
                    assert not self.busy.get(replica_id), "one that wakes is ended for another's sake"
                    self.evicted += 1
                self.move(replica_id, ReplicaState.DRAINING, deadline=deadline + self.ahead)
            case a.Stop(replica_id):
                if self.replicas[replica_id].state is not ReplicaState.STOPPING:
                    self.move(replica_id, ReplicaState.STOPPING)
            case a.Fail(replica_id):
                failed = self.move(replica_id, ReplicaState.FAILED)
                key = (failed.endpoint, failed.revision)
                if key in self.revisions:
                    old = self.revisions[key]
                    self.revisions[key] = replace(old, failures=old.failures + 1, failed_at=self.wall)
            case a.Forget(replica_id):
                self.move(replica_id, ReplicaState.GONE)
                del self.replicas[replica_id]
                self.seen.pop(replica_id, None)
            case a.MarkRevision(name, number, state):
                self.mark(name, number, state)
            case a.Swap() | a.StartCanary() | a.AbortCanary() | a.CancelPromotion():
                self.route(action)
            case a.ClearFailures(name, number):
                self.revisions[name, number] = replace(self.revisions[name, number], failures=0)
            case a.Note(name, reason):
                assert reason != self.endpoints[name].reason, "a note that says nothing new"
                self.endpoints[name] = replace(self.endpoints[name], reason=reason)

    def route(self, action: a.Swap | a.StartCanary | a.AbortCanary | a.CancelPromotion) -> None:
        name, number = action.endpoint, action.revision
        endpoint = self.endpoints[name]
        match action:
            case a.Swap():
                assert self.of(name, number, ReplicaState.READY), "all requests go where nobody is ready"
                if number in endpoint.shares:
                    self.promoted += 1
                else:
                    self.mark(name, number, RevisionState.SERVING)
                self.unite(name, number)
                self.endpoints[name] = replace(
                    self.endpoints[name], desired_replicas=max(1, self.endpoints[name].desired_replicas)
                )
            case a.StartCanary():
                self.joined += 1
                assert self.of(name, number, ReplicaState.READY), "a share goes where nobody is ready"
                percent = self.revisions[name, number].percent
                assert endpoint.serving is not None and 0 < percent < WHOLE
                self.mark(name, number, RevisionState.SERVING)
                if endpoint.split is not None:
                    self.mark(name, endpoint.split.revision, RevisionState.RETIRED)
                self.endpoints[name] = replace(endpoint, split=TrafficSplit(number, percent, 1))
            case a.AbortCanary():
                self.returned += 1
                (other,) = set(endpoint.shares) - {number}
                assert not self.of(name, number, ReplicaState.READY), "it is ready, and loses its share"
                self.unite(name, other)
            case a.CancelPromotion():
                assert endpoint.split is not None and endpoint.split.revision == number
                self.revisions[name, number] = replace(self.revisions[name, number], percent=endpoint.split.percent)

    def nap(self, action: a.Sleep | a.Wake | a.Changed) -> None:
        match action:
            case a.Sleep(replica_id):
                assert not self.busy.get(replica_id), "it is asked to sleep with requests in flight"
                asked = self.replicas[replica_id]
                assert asked.state is ReplicaState.READY and asked.revision in self.endpoints[asked.endpoint].shares
                assert self.endpoints[asked.endpoint].settings.evict_after_s > 0
                self.sleepy.add(replica_id)
            case a.Wake(replica_id):
                assert self.replicas[replica_id].state is ReplicaState.ASLEEP
                seen = self.seen[replica_id]
                self.seen[replica_id] = replace(seen, schema={**seen.schema, "tier": "awake"})
            case a.Changed(replica_id, is_asleep):
                moved = self.move(replica_id, ReplicaState.ASLEEP if is_asleep else ReplicaState.READY)
                self.slept += is_asleep
                if not is_asleep and moved.endpoint in self.endpoints:
                    endpoint = self.endpoints[moved.endpoint]
                    if endpoint.split is not None and moved.revision == endpoint.split.revision:
                        woken = replace(
                            endpoint,
                            split=replace(endpoint.split, desired_replicas=max(1, endpoint.split.desired_replicas)),
                        )
                    else:
                        woken = replace(endpoint, desired_replicas=max(1, endpoint.desired_replicas))
                    self.endpoints[moved.endpoint] = woken

    def move(self, replica_id: str, state: ReplicaState, **values: Any) -> Replica:
        check_move(replica_id, REPLICA_MOVES, self.replicas[replica_id].state, state)
        self.replicas[replica_id] = replace(self.replicas[replica_id], state=state, since=self.wall, **values)
        return self.replicas[replica_id]

    def mark(self, name: str, number: int, state: RevisionState) -> None:
        before = self.revisions[name, number]
        check_move(f"{name} {number}", REVISION_MOVES, before.state, state)
        failures = 0 if state is RevisionState.SERVING else before.failures
        self.revisions[name, number] = replace(before, state=state, since=self.wall, failures=failures)

    # ---- what must hold --------------------------------------------------------------------------------------

    def of(self, name: str, number: int | None, *states: ReplicaState) -> list[Replica]:
        return [r for r in self.replicas.values() if (r.endpoint, r.revision) == (name, number) and r.state in states]

    def ready_of_serving(self, awake_or_not: bool = False) -> dict[str, int]:
        """Ready and alive in truth, by endpoint; with those that sleep if asked so."""
        return {
            name: len(
                [
                    r
                    for revision in e.shares
                    for r in self.of(name, revision, ReplicaState.READY, *[ReplicaState.ASLEEP] * awake_or_not)
                    if r.id in self.seen
                    and self.seen[r.id].phase is not Phase.EXITED
                    and (awake_or_not or not self.seen[r.id].is_asleep)
                ]
            )
            for name, e in self.endpoints.items()
        }

    def rolling(self, name: str) -> list[Revision]:
        states = (RevisionState.BUILT, RevisionState.STARTING)
        return [r for (n, _), r in self.revisions.items() if n == name and r.state in states]

    def check(self, before: dict[str, int]) -> None:
        after = self.ready_of_serving(awake_or_not=True)
        alive = Counter((r.endpoint, r.revision) for r in self.replicas.values() if r.state in ALIVE)
        for key in alive.keys() & self.revisions.keys():
            limit = max(1, self.endpoints[key[0]].settings.max_replica)
            assert alive[key] <= limit, f"more than {limit} replicas of {key}"
        for name, endpoint in self.endpoints.items():
            serving = [r for (n, _), r in self.revisions.items() if n == name and r.state is RevisionState.SERVING]
            assert {r.number for r in serving} == set(endpoint.shares)
            self.check_split(endpoint)
            if endpoint.active and before.get(name):
                may_stop = any(r.settings.replace for r in self.rolling(name))
                assert after[name] or may_stop, f"{name} was served before this step of its rollout, and is not after"
            assert endpoint.active or not any(alive[name, one] for one in endpoint.shares)
        for gpu in self.capacity.gpus:
            held = [r for r in self.replicas.values() if r.state is not ReplicaState.FAILED]
            used = sum(r.fraction for r in held if r.gpu == str(gpu.index))
            assert used <= 1.0 + 1e-6, f"GPU {gpu.index} is given {used} times"

    def check_split(self, endpoint: Endpoint) -> None:
        """Who has a share can serve it, and two together have no more places than there are, or one each."""
        name, split = endpoint.name, endpoint.split
        if split is None or not endpoint.active:
            return
        assert sum(endpoint.shares.values()) == WHOLE and 0 < split.percent < WHOLE
        second = self.revisions[name, split.revision]
        is_lost = second.failures >= CRASH_LOOP and not self.of(name, split.revision, *ALIVE)
        assert not is_lost, f"{second} keeps dying, and has a share"
        steady = split == self.splits.get(name, (None, None))[1] and self.splits[name][0] == endpoint.settings
        self.splits[name] = (endpoint.settings, split)
        if steady and second.percent < WHOLE:
            count = sum(len(self.of(name, one, *ALIVE)) for one in endpoint.shares)
            assert count <= max(2, endpoint.settings.max_replica), f"{count} replicas of a split {name}"

    def settled(self) -> bool:
        """No rollout and no promotion is under way, and each revision that serves has what is wanted of it."""
        for name, endpoint in self.endpoints.items():
            split = endpoint.split
            is_promoted = split is not None and self.revisions[name, split.revision].percent == WHOLE
            if endpoint.active and (self.rolling(name) or is_promoted):
                return False
        return all(
            len(self.of(n, one, ReplicaState.READY)) == e.wanted_of(one)
            for n, e in self.endpoints.items()
            for one in e.shares
        )
