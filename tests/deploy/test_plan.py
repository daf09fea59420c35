"""The plan by itself: random walks through every trouble there is, and the few rules that hold at each step."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from deploy.conftest import gpus
from puna.backends.base import Capacity, Observed, Phase
from puna.deploy import actions as a
from puna.deploy.database import check_move
from puna.deploy.plan import Actual, back_off_s, plan
from puna.deploy.records import Endpoint, Replica, Revision, Settings, Snapshot
from puna.deploy.states import (
    ALIVE,
    REPLICA_MOVES,
    REVISION_MOVES,
    ReplicaState,
    RevisionState,
)

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
    slept = evicted = 0
    """How often a replica fell asleep, and was ended for another's sake: a walk without them proves little."""
    count: int = 0
    chaos: bool = True
    trouble_share: float = 1.0
    """How much of the usual trouble with deploys and deaths there is; with little, replicas live to sleep."""

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
        before = self.endpoints.get(name)
        serving, wish = (before.serving, before.wish) if before else (None, 0)
        self.endpoints[name] = Endpoint(name, True, settings, serving, "", 0.0, wish)
        revision = Revision(
            name, self.count, RevisionState.BUILT, "s", None, None, "e", "b", settings, None, 0, self.now, self.count
        )
        self.revisions[name, self.count] = revision
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
            self.endpoints[name] = replace(self.endpoints[name], wish=self.rng.choice([0, 0, 1, 2, 3]))
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
        self.now += self.rng.choice([0.2, 0.2, 1.0]) if self.chaos else 1.0
        if self.chaos:
            self.trouble()
        self.processes()
        snapshot = Snapshot(
            tuple(self.endpoints.values()), tuple(self.revisions.values()), tuple(self.replicas.values())
        )
        self.busy = {r: self.rng.randrange(2) for r in self.replicas} if self.chaos else {}
        before = {name: ready for name, ready in self.ready_of_serving().items() if self.rolling(name)}
        asked = plan(snapshot, Actual(self.capacity, dict(self.seen), self.busy), self.now)
        for action in asked:
            self.perform(action)
        self.check(before)
        return asked

    def perform(self, action: a.Action) -> None:
        match action:
            case a.Start(name, number, gpu, fraction):
                self.count += 1
                new = Replica(
                    f"r{self.count}", self.count, name, number, ReplicaState.STARTING, gpu, fraction, self.now, self.now
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
                self.move(replica_id, ReplicaState.DRAINING, deadline=deadline)
            case a.Stop(replica_id):
                if self.replicas[replica_id].state is not ReplicaState.STOPPING:
                    self.move(replica_id, ReplicaState.STOPPING)
            case a.Fail(replica_id):
                failed = self.move(replica_id, ReplicaState.FAILED)
                key = (failed.endpoint, failed.revision)
                if key in self.revisions:
                    old = self.revisions[key]
                    self.revisions[key] = replace(old, failures=old.failures + 1, failed_at=self.now)
            case a.Forget(replica_id):
                self.move(replica_id, ReplicaState.GONE)
                del self.replicas[replica_id]
                self.seen.pop(replica_id, None)
            case a.MarkRevision(name, number, state):
                self.mark(name, number, state)
            case a.Swap(name, number):
                old = self.endpoints[name].serving
                self.mark(name, number, RevisionState.SERVING)
                if old is not None:
                    self.mark(name, old, RevisionState.RETIRED)
                wish = max(1, self.endpoints[name].wish)
                self.endpoints[name] = replace(self.endpoints[name], serving=number, wish=wish)
            case a.ClearFailures(name, number):
                self.revisions[name, number] = replace(self.revisions[name, number], failures=0)
            case a.Note(name, reason):
                assert reason != self.endpoints[name].reason, "a note that says nothing new"
                self.endpoints[name] = replace(self.endpoints[name], reason=reason)

    def nap(self, action: a.Sleep | a.Wake | a.Changed) -> None:
        match action:
            case a.Sleep(replica_id):
                assert not self.busy.get(replica_id), "it is asked to sleep with requests in flight"
                asked = self.replicas[replica_id]
                assert asked.state is ReplicaState.READY and asked.revision == self.endpoints[asked.endpoint].serving
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
                    self.endpoints[moved.endpoint] = replace(endpoint, wish=max(1, endpoint.wish))

    def move(self, replica_id: str, state: ReplicaState, **values: Any) -> Replica:
        check_move(replica_id, REPLICA_MOVES, self.replicas[replica_id].state, state)
        self.replicas[replica_id] = replace(self.replicas[replica_id], state=state, since=self.now, **values)
        return self.replicas[replica_id]

    def mark(self, name: str, number: int, state: RevisionState) -> None:
        before = self.revisions[name, number]
        check_move(f"{name} {number}", REVISION_MOVES, before.state, state)
        failures = 0 if state is RevisionState.SERVING else before.failures
        self.revisions[name, number] = replace(before, state=state, since=self.now, failures=failures)

    # ---- what must hold --------------------------------------------------------------------------------------

    def of(self, name: str, number: int | None, *states: ReplicaState) -> list[Replica]:
        return [r for r in self.replicas.values() if (r.endpoint, r.revision) == (name, number) and r.state in states]

    def ready_of_serving(self, awake_or_not: bool = False) -> dict[str, int]:
        """Ready and alive in truth, by endpoint; with those that sleep if asked so."""
        return {
            name: len(
                [
                    r
                    for r in self.of(name, e.serving, ReplicaState.READY, *[ReplicaState.ASLEEP] * awake_or_not)
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
        for name, endpoint in self.endpoints.items():
            limit = max(1, endpoint.settings.max_replica)
            for key in [k for k in self.revisions if k[0] == name]:
                assert len(self.of(*key, *ALIVE)) <= limit, f"more than {limit} replicas of {key}"
            serving = [r for (n, _), r in self.revisions.items() if n == name and r.state is RevisionState.SERVING]
            assert [r.number for r in serving] == ([] if endpoint.serving is None else [endpoint.serving])
            if endpoint.active and before.get(name):
                may_stop = any(r.settings.replace for r in self.rolling(name))
                assert after[name] or may_stop, f"{name} was served before this step of its rollout, and is not after"
            assert endpoint.active or not self.of(name, endpoint.serving, *ALIVE)
        for gpu in self.capacity.gpus:
            alive = [r for r in self.replicas.values() if r.state is not ReplicaState.FAILED]
            used = sum(r.fraction for r in alive if r.gpu == str(gpu.index))
            assert used <= 1.0 + 1e-6, f"GPU {gpu.index} is given {used} times"

    def settled(self) -> bool:
        return all(not self.rolling(n) for n, e in self.endpoints.items() if e.active) and all(
            len(self.of(n, e.serving, ReplicaState.READY)) == (e.wanted if e.serving is not None else 0)
            for n, e in self.endpoints.items()
        )


@pytest.mark.parametrize("seed", range(16))
def test_a_random_walk_breaks_no_rule_and_settles_when_the_trouble_ends(seed: int) -> None:
    rng = random.Random(seed)
    walk = Walk(rng, gpus(rng.choice([0, 1, 6])))
    for _ in range(300):
        walk.step()
    # The trouble ends; whatever is bad stays bad, but there is room for all that is wanted.
    walk.chaos = False
    walk.capacity = gpus(16)
    for name, endpoint in walk.endpoints.items():
        if endpoint.serving is not None:
            walk.bad.discard((name, endpoint.serving))
    for _ in range(600):
        walk.step()
        if walk.settled():
            break
    assert walk.settled(), [(e.name, e.wanted, e.reason) for e in walk.endpoints.values()]
    for _ in range(150):  # drains, back-offs and cleared failures come to an end too
        asked = walk.step()
    assert asked == [] and {r.state for r in walk.replicas.values()} <= {ReplicaState.READY, ReplicaState.ASLEEP}


def test_in_quieter_walks_replicas_sleep_wake_and_make_room_and_no_rule_is_broken() -> None:
    walks = [Walk(random.Random(seed), gpus(1 + seed % 2), trouble_share=0.1) for seed in range(24)]
    for walk in walks:
        for _ in range(800):
            walk.step()
    slept, evicted = sum(walk.slept for walk in walks), sum(walk.evicted for walk in walks)
    assert slept > 100 and evicted > 5, "too little happened to prove anything"


def test_nothing_is_planned_for_an_empty_world() -> None:
    assert plan(Snapshot(), Actual(Capacity(1, 1)), 0.0) == []


def test_back_off_doubles_and_is_capped() -> None:
    assert [back_off_s(n) for n in range(8)] == [0, 1, 2, 4, 8, 15, 30, 30]
