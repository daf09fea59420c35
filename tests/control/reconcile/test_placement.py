"""Who sleeps, wakes and makes room, and what the reconciler does of it on a backend without processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from backends.memory import SCHEMA, MemoryBackend
from control.conftest import World, gpus
from control.rows import save_endpoint
from puna.backends.base import Observed, Phase
from puna.config.settings import Settings
from puna.control.domain.records import Endpoint, Replica, state_of
from puna.control.domain.states import EndpointState, ReplicaState
from puna.control.reconcile import placement
from puna.control.reconcile.placement import SleepPolicy

CAN_SLEEP = {**SCHEMA, "can_sleep": True}


def replica(name: str = "r", *, since: float = 0.0, gpu: str = "0", fraction: float = 1.0, **values: Any) -> Replica:
    state = values.pop("state", ReplicaState.ASLEEP)
    return Replica(name, 1, "app", 1, state, gpu, fraction, since, 0.0, **values)


def endpoint(**settings: Any) -> Endpoint:
    return Endpoint("app", True, Settings(**settings), 1, "", 0.0, 0)


def ids(replicas: Sequence[Replica] | None) -> list[str]:
    assert replicas is not None
    return [r.id for r in replicas]


READY = {"r": Observed("r", Phase.READY, schema={"can_sleep": True})}


@pytest.mark.parametrize(
    ("observed", "in_flight", "settings", "may"),
    [
        (READY, {}, {}, True),
        (READY, {"r": 1}, {}, None),
        (READY, {}, {"evict_after_s": 0}, False),
        ({"r": Observed("r", Phase.READY, schema={})}, {}, {}, False),
        ({}, {}, {}, False),
    ],
    ids=["idle", "busy", "sleep is off", "the app cannot", "unseen"],
)
def test_only_what_is_idle_and_can_sleep_may(observed: Any, in_flight: Any, settings: Any, may: bool | None) -> None:
    one = replica(state=ReplicaState.READY)
    assert placement.may_sleep(endpoint(**settings), one, observed, in_flight, 10.0) is may


def test_the_count_of_a_gateway_is_awaited() -> None:
    one = replica(state=ReplicaState.READY, since=9.5)
    assert placement.may_sleep(endpoint(), one, READY, {}, 10.0) is None


def test_the_last_to_fall_asleep_wakes_first_and_the_first_goes_first() -> None:
    three = [replica("a", since=3), replica("b", since=1), replica("c", since=2)]
    assert [r.id for r in SleepPolicy(three, []).to_wake(three, 2)] == ["a", "c"]
    assert SleepPolicy(three, []).to_wake(three, -1) == []
    assert [r.id for r in SleepPolicy(three, [], {"b": 1}).to_wake(three, 2)] == ["b", "a"], "b wakes already"
    assert [r.id for r in placement.too_many(three, 1)] == ["b", "c"]


def test_room_is_made_by_as_few_as_can_be_the_longest_asleep_first() -> None:
    halves = [replica("a", since=5, fraction=0.5), replica("b", since=1, fraction=0.5)]
    whole = replica("c", since=9, gpu="1")
    both = [*halves, whole]
    assert ids(placement.to_evict(1.0, {"0": 0.0, "1": 0.0}, [], both)) == ["c"]
    assert ids(placement.to_evict(0.5, {"0": 0.0, "1": 0.0}, [], both)) == ["b"]
    assert ids(placement.to_evict(1.0, {"0": 0.0}, [], halves)) == ["b", "a"]
    assert placement.to_evict(1.0, {"0": 0.5}, [halves[0]], [halves[1]]) == [], "what leaves is enough"
    assert placement.to_evict(1.0, {"0": 0.0}, [], [halves[0]]) is None, "all of it would not be"


def test_who_is_wanted_or_wakes_already_makes_no_room() -> None:
    three = [replica("a", since=3), replica("b", since=1), replica("c", since=2)]
    assert ids(SleepPolicy(three, [endpoint(max_replica=3)]).evictable) == ["a", "b", "c"]
    assert ids(SleepPolicy(three, [endpoint(max_replica=3, min_replica=1)]).evictable) == ["b", "c"]
    assert ids(SleepPolicy(three, [endpoint(max_replica=3)], {"c": 1}).evictable) == ["a", "b"]


def test_who_leaves_leaves_once() -> None:
    sleep_policy = SleepPolicy([replica("a"), replica("b")], [])
    assert sleep_policy.leaves(replica("a")) and not sleep_policy.leaves(replica("a"))
    assert ids(sleep_policy.evictable) == ["b"] and ids(sleep_policy.leaving) == ["a"]


def sleeping(world: World, **settings: Any) -> str:
    """A world whose one replica sleeps."""
    world.backend.schema = CAN_SLEEP
    world.deploy(**settings)
    world.settle(10)
    world.store.scale("app", 0, "no request for 600 s", world.now)
    world.settle(12)
    (one,) = world.store.replicas("app")
    assert (one.state, one.tier) == (ReplicaState.ASLEEP, "asleep")
    return one.id


def shown(world: World) -> EndpointState:
    snapshot = world.store.snapshot()
    return state_of(world.endpoint(), snapshot.revisions, snapshot.replicas)


def test_an_idle_replica_sleeps_wakes_for_a_request_and_goes_in_the_end(world: World) -> None:
    replica_id = sleeping(world, evict_after_s=60)
    assert shown(world) is EndpointState.ASLEEP
    world.backend.wake(replica_id)  # a request reached it
    world.step()
    assert world.store.replica(replica_id).state is ReplicaState.READY
    assert (world.endpoint().desired_replicas, world.endpoint().scaling_reason) == (1, "a request woke it")
    world.store.scale("app", 0, "no request for 600 s", world.now)
    world.settle(12)
    assert world.store.replica(replica_id).state is ReplicaState.ASLEEP
    world.settle(4, 30.0)
    assert world.store.replicas("app") == [] and shown(world) is EndpointState.IDLE
    said = " ".join(event.message for event in world.store.events_page("app", None, 10_000))
    assert "slept for 60 s" in said


def test_a_desired_replica_wakes_what_sleeps_before_it_starts_anything(world: World) -> None:
    replica_id = sleeping(world)
    world.store.scale("app", 1, "1 waiting", world.now)
    world.settle(3)
    assert [r.id for r in world.store.replicas("app")] == [replica_id] == world.ready()


def test_what_cannot_sleep_or_must_not_goes_at_once(world: World) -> None:
    world.deploy()
    world.settle(10)
    world.store.scale("app", 0, "no request for 600 s", world.now)
    world.settle(20)
    assert world.store.replicas("app") == []
    assert "sleep" not in {call for call, _ in world.backend.calls}


def test_replicas_of_min_replica_never_sleep(world: World) -> None:
    world.backend.schema = CAN_SLEEP
    world.deploy(min_replica=1)
    world.settle(10)
    world.store.scale("app", 0, "no request for 600 s", world.now)
    world.settle(20)
    assert len(world.ready()) == 1


def test_a_replica_is_asked_once_and_not_each_step(world: World) -> None:
    class Slow(MemoryBackend):
        def _tier(self, replica_id: str, tier: str) -> None:
            """The first sleep of a large model takes seconds."""

    world.backend = Slow(schema=CAN_SLEEP)
    world.restart()
    world.deploy()
    world.settle(10)
    world.store.scale("app", 0, "no request for 600 s", world.now)
    world.settle(50)
    assert [call for call, _ in world.backend.calls].count("sleep") == 1


def test_deactivate_and_a_new_revision_end_what_sleeps(world: World) -> None:
    first = sleeping(world)
    world.deploy()
    world.settle(40)
    assert first not in [r.id for r in world.store.replicas("app")] and len(world.ready()) == 1
    world.store.scale("app", 0, "no request for 600 s", world.now)
    world.settle(12)
    world.store.set_active("app", False, world.now)
    world.settle(20)
    assert world.store.replicas("app") == []


def test_another_endpoint_gets_the_gpu_of_one_that_sleeps(world: World) -> None:
    world.backend = MemoryBackend(gpus(1), schema=CAN_SLEEP)
    world.restart()
    replica_id = sleeping(world)
    world.deploy("other")
    world.settle(40)
    assert world.store.replicas("app") == [] and len(world.ready("other")) == 1
    said = " ".join(event.message for event in world.store.events_page("app", None, 10_000))
    assert f"{replica_id}: asleep -> draining: makes room for other" in said


def test_one_that_dies_asleep_is_a_failure_and_started_when_wanted(world: World) -> None:
    replica_id = sleeping(world)
    world.backend.kill(replica_id)
    world.step()
    world.step()
    assert world.store.replicas("app") == []
    world.store.scale("app", 1, "1 waiting", world.now)
    world.settle(40)
    assert len(world.ready()) == 1


def test_a_lower_max_replica_counts_those_that_sleep(world: World) -> None:
    world.backend.schema = CAN_SLEEP
    world.deploy(max_replica=3)
    world.settle(10)
    world.store.scale("app", 3, "3 in flight", world.now)
    world.settle(12)
    world.store.scale("app", 2, "fewer in flight", world.now)
    world.settle(12)
    assert sorted(r.state for r in world.store.replicas("app")) == ["asleep", "ready", "ready"]
    awake = set(world.ready())
    save_endpoint(world.store, "app", Settings(max_replica=2), world.now)
    world.settle(12)
    assert {r.id for r in world.store.replicas("app")} == awake


def test_replace_leaves_the_serving_revision_alone_when_one_that_sleeps_makes_room(world: World) -> None:
    world.backend = MemoryBackend(gpus(2), schema=CAN_SLEEP)
    world.restart()
    sleeper = sleeping(world)
    world.deploy("other", replace=True)
    world.settle(20)
    (serving,) = world.ready("other")
    world.deploy("other", replace=True)
    world.step()
    assert world.store.replica(sleeper).state is ReplicaState.DRAINING
    assert world.store.replica(serving).state is ReplicaState.READY
    world.settle(60)
    assert len(world.ready("other")) == 1 and serving not in world.ready("other")


def test_one_that_its_own_endpoint_wants_is_not_ended_for_another(world: World) -> None:
    world.backend = MemoryBackend(gpus(1), schema=CAN_SLEEP)
    world.restart()
    replica_id = sleeping(world)
    world.deploy("a-first")  # planned before `app`
    world.store.scale("app", 1, "1 waiting", world.now)
    world.settle(20)
    assert world.ready() == [replica_id] and world.ready("a-first") == []


def test_why_it_sleeps_and_wakes_is_told(world: World) -> None:
    replica_id = sleeping(world)
    world.store.scale("app", 1, "1 waiting", world.now)
    world.settle(3)
    said = " ".join(event.message for event in world.store.events_page("app", None, 10_000))
    assert f"{replica_id}: ready -> asleep: 0 wanted: no request for 600 s" in said
    assert f"{replica_id}: asleep -> ready: it is wanted" in said
