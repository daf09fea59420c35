"""The plan by itself: random walks (walk.py) that break no rule and settle, and what little else there is to say."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from control.conftest import gpus
from control.reconcile.walk import Walk
from puna.backends.base import Capacity, Observed, Phase
from puna.config.settings import Settings
from puna.control.domain.records import WHOLE, Endpoint, Replica, Revision, Snapshot
from puna.control.domain.states import ReplicaState, RevisionState
from puna.control.reconcile.actions import Action, Drain
from puna.control.reconcile.plan import Actual, back_off_s, plan


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
        for one in endpoint.shares:
            walk.bad.discard((name, one))
    for _ in range(600):
        walk.step()
        if walk.settled():
            break
    assert walk.settled(), [(e.name, e.desired_replicas, e.reason) for e in walk.endpoints.values()]
    for _ in range(150):  # drains, back-offs and cleared failures come to an end too
        asked = walk.step()
    assert asked == [] and {r.state for r in walk.replicas.values()} <= {ReplicaState.READY, ReplicaState.ASLEEP}


@pytest.mark.parametrize("seed", range(12))
def test_a_clock_that_is_set_by_hours_changes_no_action_of_a_walk(seed: int) -> None:
    share, capacity = [1.0, 0.1][seed % 2], gpus(1 + seed % 3)
    calm = Walk(random.Random(seed), capacity, trouble_share=share, pace=1.00013)
    jumpy = Walk(random.Random(seed), capacity, trouble_share=share, pace=1.00013, jumps=random.Random(seed))
    for _ in range(600):
        assert [_without_times(action) for action in jumpy.step()] == [_without_times(one) for one in calm.step()]
    assert jumpy.ahead != 0 and calm.replicas.keys() == jumpy.replicas.keys()


def _without_times(action: Action) -> Action:
    return replace(action, deadline=round(action.deadline, 3)) if isinstance(action, Drain) else action


def test_in_quieter_walks_replicas_sleep_wake_and_make_room_and_no_rule_is_broken() -> None:
    walks = [Walk(random.Random(seed), gpus(1 + seed % 2), trouble_share=0.1) for seed in range(24)]
    for walk in walks:
        for _ in range(800):
            walk.step()
    slept, evicted = sum(walk.slept for walk in walks), sum(walk.evicted for walk in walks)
    assert slept > 100 and evicted > 5, "too little happened to prove anything"


def test_splits_are_shared_promoted_and_given_back_in_walks_that_break_no_rule() -> None:
    walks = [Walk(random.Random(seed), gpus(seed % 4), trouble_share=0.4) for seed in range(24)]
    for walk in walks:
        for _ in range(500):
            walk.step()
    joined, promoted, returned = (sum(getattr(w, what) for w in walks) for what in ("joined", "promoted", "returned"))
    assert joined > 50 and promoted > 10 and returned > 3, "too few splits to prove anything"


@pytest.mark.parametrize("seed", range(12))
def test_a_promotion_ends_within_finite_steps_whatever_comes_of_it(seed: int) -> None:
    rng = random.Random(seed)
    walk = Walk(rng, gpus(seed % 4), trouble_share=0.4)
    for _ in range(2000):
        walk.step()
        split = [e for e in walk.endpoints.values() if e.active and e.split is not None]
        if split:
            break
    assert split, "nothing was ever split"
    (name, second) = (split[0].name, split[0].split.revision)  # type: ignore[union-attr]
    walk.chaos = False
    walk.count += 1
    asked = replace(walk.revisions[name, second], percent=WHOLE, asked=walk.count, since=walk.now)
    walk.revisions[name, second] = asked
    if seed % 3 == 0:
        walk.bad.add((name, second))
        walk.seen = {r: s for r, s in walk.seen.items() if walk.replicas[r].revision != second}  # and they die now
    for _ in range(200):
        walk.step()
        endpoint = walk.endpoints[name]
        if endpoint.split is None or walk.revisions[name, second].percent < WHOLE:
            break
    else:
        pytest.fail(f"{walk.revisions[name, second]} is being promoted still")
    if seed % 3 == 0:
        assert endpoint.serving != second or endpoint.split is not None


def test_nothing_is_planned_for_an_empty_world() -> None:
    assert plan(Snapshot(), Actual(Capacity(1, 1)), 0.0) == []


def test_back_off_doubles_and_is_capped() -> None:
    assert [back_off_s(n) for n in range(8)] == [0, 1, 2, 4, 8, 15, 30, 30]


# ---- the time constants, each from both sides -------------------------------------------------------------------

NOW = 1_000_000.0
SETTINGS = Settings(min_replica=1, max_replica=1, gpu_type="cpu", inference_time_s=30)


def planned(replica: tuple[ReplicaState, float] | None, seen: Observed | None = None, **revision: Any) -> list[str]:
    """Actions for an endpoint whose revision serves, and whose one replica came into its state so long ago."""
    endpoint = Endpoint("app", True, SETTINGS, 1, "", 0.0, 1)
    serving = Revision("app", 1, RevisionState.SERVING, "s", None, None, "e", "b", SETTINGS, None, 0.0, 0.0, 1)
    replicas = ()
    if replica is not None:
        state, ago_s = replica
        replicas = (Replica("r1", 1, "app", 1, state, "", 0.0, NOW - ago_s, NOW - 500, deadline=NOW + 20),)
    observed = {} if seen is None else {"r1": seen}
    snapshot = Snapshot((endpoint,), (replace(serving, **revision),), replicas)
    return [type(action).__name__ for action in plan(snapshot, Actual(gpus(0), observed), NOW)]


def test_a_drained_replica_is_ended_when_a_gateways_report_must_have_come() -> None:
    seen = Observed("r1", Phase.READY)
    assert "Stop" not in planned((ReplicaState.DRAINING, 0.99), seen)
    assert "Stop" in planned((ReplicaState.DRAINING, 1.0), seen)


def test_a_replica_that_is_just_started_may_take_ten_seconds_to_be_seen() -> None:
    assert planned((ReplicaState.STARTING, 9.99)) == []
    assert "Fail" in planned((ReplicaState.STARTING, 10.0))


def test_a_replica_that_does_not_end_is_stopped_again_after_fifteen_seconds() -> None:
    seen = Observed("r1", Phase.READY)
    assert "Stop" not in planned((ReplicaState.STOPPING, 14.99), seen)
    assert "Stop" in planned((ReplicaState.STOPPING, 15.0), seen)


def test_failures_are_forgotten_when_a_replica_has_been_ready_for_a_minute() -> None:
    seen = Observed("r1", Phase.READY)
    assert planned((ReplicaState.READY, 59.99), seen, failures=2) == []
    assert planned((ReplicaState.READY, 60.0), seen, failures=2) == ["ClearFailures"]
    assert planned((ReplicaState.READY, 60.0), seen) == []


@pytest.mark.parametrize(("failures", "pause_s"), [(0, 0.0), (1, 1.0), (2, 2.0), (5, 15.0), (6, 30.0), (9, 30.0)])
def test_a_replica_is_started_again_when_the_pause_after_its_failures_is_over(failures: int, pause_s: float) -> None:
    assert ("Start" in planned(None, failures=failures, failed_at=NOW - pause_s + 0.01)) is (failures == 0)
    assert "Start" in planned(None, failures=failures, failed_at=NOW - pause_s)


def test_a_drain_ends_at_its_time_however_busy_it_is() -> None:
    for left_s, is_stopped in ((0.01, False), (0.0, True)):
        replica = Replica("r1", 1, "gone", 1, ReplicaState.DRAINING, "", 0.0, NOW - 9, NOW - 9, deadline=NOW + left_s)
        seen = Actual(gpus(0), {"r1": Observed("r1", Phase.READY)}, {"r1": 3})
        stops = [action for action in plan(Snapshot(replicas=(replica,)), seen, NOW) if "its time" in str(action)]
        assert bool(stops) is is_stopped
