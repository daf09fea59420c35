"""Stories of rollouts, deaths, scaling and placement: plan, store and reconciler on a backend without processes."""

from __future__ import annotations

import pytest

from control.conftest import GIB, World, gpu_world
from puna.control.domain.records import state_of
from puna.control.domain.states import EndpointState, ReplicaState, RevisionState
from puna.control.wire import DeathReport, EndpointLoad, LoadReport


def state(world: World, name: str = "app") -> EndpointState:
    return state_of(world.endpoint(name), world.store.revisions(name), world.store.replicas(name))


def test_a_first_deploy_proves_one_replica_even_when_none_must_stay(world: World) -> None:
    world.deploy(min_replica=0)
    world.settle(3)
    assert state(world) is EndpointState.DEPLOYING and not world.ready()
    world.settle(10)
    assert state(world) is EndpointState.READY and len(world.ready()) == 1
    world.store.scale("app", 0, "idle for 600 s", world.now)
    world.settle(20)
    assert state(world) is EndpointState.IDLE and world.running() == []
    assert world.backend.list() == []  # forgotten, not only stopped


def test_a_desired_replica_from_zero_starts_a_replica(world: World) -> None:
    world.deploy()
    world.settle(10)
    world.store.scale("app", 0, "idle", world.now)
    world.settle(20)
    world.store.scale("app", 1, "a request came", world.now)
    assert [type(a).__name__ for a in world.step()] == ["Start"]
    world.settle(8)
    assert len(world.ready()) == 1


def test_a_new_revision_starts_beside_the_old_one_and_takes_over_when_ready(world: World) -> None:
    world.deploy(min_replica=1)
    world.settle(10)
    old = world.ready()
    world.deploy(min_replica=1)
    world.step()
    assert state(world) is EndpointState.UPDATING
    assert world.ready() == old and len(world.running()) == 2
    while not world.ready(revision=2):
        world.step()
        assert world.endpoint().serving == 2 or world.ready(revision=1) == old
    assert world.endpoint().serving == 2 and world.revision(1).state is RevisionState.RETIRED
    world.settle(20)
    assert world.running() == world.ready(revision=2) and len(world.running()) == 1


def test_a_busy_old_replica_is_drained_and_not_cut_off(world: World) -> None:
    world.deploy(min_replica=1, inference_time_s=30)
    world.settle(10)
    (old,) = world.ready()
    world.traffic = {old: 1}
    world.deploy(min_replica=1, inference_time_s=30)
    world.settle(40)
    assert world.endpoint().serving == 2
    assert world.store.replica(old).state is ReplicaState.DRAINING
    world.traffic = {}
    world.loads.report(LoadReport("g", world.now, {}))
    world.settle(10)
    assert old not in world.running()


def test_a_drain_ends_at_the_request_limit(world: World) -> None:
    world.deploy(min_replica=1, inference_time_s=5)
    world.settle(10)
    (old,) = world.ready()
    world.traffic = {old: 1}
    world.deploy(min_replica=1, inference_time_s=5)
    world.settle(50)
    assert old not in world.running()


@pytest.mark.parametrize(("limit_s", "drain_s", "is_ended"), [(7200, 5, True), (5, 7200, False), (5, 0, True)])
def test_a_drain_may_be_shorter_or_longer_than_a_request(
    world: World, limit_s: float, drain_s: float, is_ended: bool
) -> None:
    limits = {"min_replica": 1, "inference_time_s": limit_s, "drain_timeout_s": drain_s}
    world.deploy(**limits)
    world.settle(10)
    (old,) = world.ready()
    world.traffic = {old: 1}
    world.deploy(**limits)
    world.settle(50)
    assert (old not in world.running()) is is_ended


def test_a_crash_loop_fails_the_rollout_with_the_last_lines_and_leaves_the_old_one_serving(world: World) -> None:
    world.deploy(min_replica=1)
    world.settle(10)
    old = world.ready()
    world.deploy(min_replica=1)
    started = []
    for _ in range(100):
        world.step()
        for replica_id in world.running(revision=2):
            if replica_id not in started:
                started.append(replica_id)
                world.backend.kill(replica_id, "initialize failed", 1, "line 1\nValueError: no such weight")
        assert world.ready(revision=1) == old and world.endpoint().serving == 1
    assert len(started) == 3
    failed = world.revision(2)
    assert failed.state is RevisionState.FAILED
    assert "3 replicas of revision 2 failed: initialize failed while it started (exit code 1)" in failed.error
    assert failed.detail.endswith("ValueError: no such weight") and failed.hint == "`puna logs app`"
    assert state(world) is EndpointState.READY and world.endpoint().reason == ""


def test_back_off_grows_from_one_second_to_two(world: World) -> None:
    world.deploy(min_replica=1)
    starts, known = [], set()
    for _ in range(60):
        world.step(0.1)
        for replica_id in world.running():
            if replica_id not in known:
                known.add(replica_id)
                starts.append(world.now)
                world.backend.kill(replica_id)
    gaps = [round(b - a, 1) for a, b in zip(starts, starts[1:], strict=False)]
    assert [1.0 <= gaps[0] < 1.5, 2.0 <= gaps[1] < 2.5] == [True, True] and len(starts) == 3
    assert state(world) is EndpointState.FAILED
    assert "revision 1 failed" in world.endpoint().reason


def test_a_serving_replica_that_dies_is_restarted_and_keeps_dying_is_said(world: World) -> None:
    world.deploy(min_replica=1)
    world.settle(10)
    for _ in range(3):
        while not world.ready():
            world.step()
        world.backend.kill(world.ready()[0], "killed by SIGKILL")
        world.step()
    assert state(world) is EndpointState.FAILING
    assert "keep dying: killed by SIGKILL" in world.endpoint().reason
    world.settle(60)
    assert len(world.ready()) == 1 and world.endpoint().reason == ""
    world.settle(10, seconds=10)
    assert world.revision(1).failures == 0


def test_replicas_follow_the_desired_number_within_the_limits(world: World) -> None:
    world.deploy(min_replica=1, max_replica=3)
    world.settle(10)
    world.store.scale("app", 9, "many requests", world.now)
    world.settle(15)
    assert len(world.ready()) == 3
    world.store.scale("app", 0, "idle", world.now)
    world.settle(15)
    assert len(world.ready()) == 1


def test_the_least_busy_replica_goes_first(world: World) -> None:
    world.deploy(min_replica=1, max_replica=2)
    world.settle(10)
    world.store.scale("app", 2, "busy", world.now)
    world.settle(15)
    older, younger = sorted(world.ready(), key=lambda id: world.store.replica(id).created)
    world.traffic = {younger: 1}  # of two alike the younger would go
    world.store.scale("app", 1, "less", world.now)
    world.step()
    assert world.store.replica(older).state is ReplicaState.DRAINING and world.ready() == [younger]


def test_deactivate_ends_every_replica_and_says_so(world: World) -> None:
    world.deploy(min_replica=2, max_replica=2)
    world.settle(15)
    world.store.set_active("app", False, world.now)
    world.settle(15)
    assert world.running() == [] and "puna activate" in world.endpoint().reason
    world.store.set_active("app", True, world.now)
    world.settle(15)
    assert len(world.ready()) == 2 and world.endpoint().reason == ""


def test_deleting_stops_everything_in_whatever_state_it_is(world: World) -> None:
    world.deploy(min_replica=1)
    world.settle(10)
    world.deploy(min_replica=1)
    world.step()
    world.store.delete_endpoint("app", world.now)
    world.settle(10)
    assert world.backend.list() == [] and world.store.replicas() == []


def test_a_name_can_be_used_again_at_once_after_deletion(world: World) -> None:
    world.deploy(min_replica=1)
    world.settle(10)
    old = world.ready()
    world.store.delete_endpoint("app", world.now)
    assert world.deploy(min_replica=1) == 2  # numbers are never used twice
    world.settle(15)
    assert len(world.ready()) == 1 and world.ready() != old


def test_a_newer_revision_supersedes_one_that_is_still_starting(world: World) -> None:
    world.deploy(min_replica=1)
    world.step()
    world.deploy(min_replica=1)
    world.settle(20)
    assert world.revision(1).state is RevisionState.SUPERSEDED
    assert world.endpoint().serving == 2 and world.running() == world.ready(revision=2)


def test_a_rollback_is_a_rollout_of_the_earlier_revision(world: World) -> None:
    world.deploy(min_replica=1)
    world.settle(10)
    world.deploy(min_replica=1)
    world.settle(20)
    world.store.roll_back("app", None, world.now)
    while world.endpoint().serving == 2:
        assert world.ready(revision=2)
        world.step()
    world.settle(20)
    assert world.endpoint().serving == 1 and world.revision(2).state is RevisionState.RETIRED


# ---- placement --------------------------------------------------------------------------------------------------


def test_two_shared_replicas_share_a_gpu_and_a_whole_one_gets_its_own(world: World) -> None:
    gpu_world(world, 2)
    world.deploy("half-a", min_replica=1, is_dedicated=False)
    world.deploy("half-b", min_replica=1, is_dedicated=False)
    world.deploy("whole", min_replica=1)
    world.settle(10)
    placed = {r.endpoint: r.gpu for r in world.store.replicas()}
    assert placed["half-a"] == placed["half-b"] != placed["whole"] and all(placed.values())


def test_a_rollback_goes_to_what_served_last_though_the_clock_was_set_back(world: World) -> None:
    for _ in range(3):
        world.deploy(min_replica=1)
        world.settle(30)
        world.now -= 7200
    assert world.endpoint().serving == 3
    assert world.store.roll_back("app", None, world.now).number == 2


def test_a_rollout_without_room_fails_with_the_reason_and_the_old_one_serves_on(world: World) -> None:
    gpu_world(world, 1)
    world.deploy(min_replica=1)
    world.settle(10)
    old = world.ready()
    world.deploy(min_replica=1)
    world.settle(5)
    assert world.endpoint().reason == "it needs a whole GPU, and GPU 0 has 0 free"
    world.settle(70, seconds=1.0)
    assert world.ready() == old and world.endpoint().serving == 1
    failed = world.revision(2)
    assert failed.state is RevisionState.FAILED and "no room for it" in failed.error
    assert "--replace" in failed.hint


def test_replace_stops_the_old_one_only_when_there_is_no_room(world: World) -> None:
    gpu_world(world, 1)
    world.deploy(min_replica=1, replace=True)
    world.settle(10)
    world.deploy(min_replica=1, replace=True)
    world.settle(30)
    assert world.endpoint().serving == 2 and len(world.ready(revision=2)) == 1
    gpu_world(world, 2)
    world.store.delete_endpoint("app", world.now)
    world.deploy(min_replica=1, replace=True)
    world.settle(10)
    world.deploy(min_replica=1, replace=True)
    while world.endpoint().serving == 1:
        assert world.ready(revision=1)
        world.step()


def test_a_replacement_that_fails_brings_the_old_one_back(world: World) -> None:
    gpu_world(world, 1)
    world.deploy(min_replica=1)
    world.settle(10)
    world.deploy(min_replica=1, replace=True)
    for _ in range(150):
        world.step()
        for replica_id in world.running(revision=2):
            world.backend.kill(replica_id)
    assert world.revision(2).state is RevisionState.FAILED
    assert world.endpoint().serving == 1 and len(world.ready(revision=1)) == 1


def test_a_long_drain_of_the_old_one_is_not_taken_for_a_lack_of_room(world: World) -> None:
    gpu_world(world, 1)
    world.deploy(min_replica=1, inference_time_s=180)
    world.settle(10)
    world.traffic = {world.ready()[0]: 1}
    world.deploy(min_replica=1, inference_time_s=180, replace=True)
    world.settle(100, seconds=1.0)
    assert world.revision(2).state is RevisionState.STARTING
    world.traffic = {}
    world.loads.report(LoadReport("g", world.now, {}))
    world.settle(20)
    assert world.endpoint().serving == 2


def test_an_app_that_fits_nowhere_fails_at_once_with_the_reason(world: World) -> None:
    gpu_world(world, 1, memory_bytes=8 * GIB)
    number = world.deploy(min_replica=1)
    with world.store._write() as connection:
        connection.exec_driver_sql(f"update revisions set weights_bytes = {140 * GIB}")
    world.settle(3)
    failed = world.revision(number)
    assert failed.state is RevisionState.FAILED
    assert "35.0 GiB even in 4 bits, the largest GPU here has 8.0 GiB" in failed.error


def test_a_named_gpu_type_runs_on_the_cpu_where_there_is_no_gpu(world: World) -> None:
    world.deploy(min_replica=1, gpu_type="A100")
    world.settle(10)
    assert len(world.ready()) == 1 and world.store.replicas()[0].gpu == ""


def test_an_app_that_wants_no_gpu_takes_none(world: World) -> None:
    gpu_world(world, 1)
    world.deploy("small", min_replica=1, gpu_type="cpu")
    world.deploy("large", min_replica=1)
    world.settle(10)
    assert {r.endpoint: r.gpu for r in world.store.replicas()} == {"small": "", "large": "0"}


def test_scaling_up_beyond_the_room_says_how_many_run(world: World) -> None:
    gpu_world(world, 2)
    world.deploy(min_replica=1, max_replica=3)
    world.settle(10)
    world.store.scale("app", 3, "busy", world.now)
    world.settle(15)
    assert len(world.ready()) == 2
    assert "needs a whole GPU" in world.endpoint().reason


def die_of_a_request(world: World, number: int, *, told: str) -> None:
    """The one replica dies while it has a request; a gateway tells `before` it is seen, or `after`."""
    (replica,) = world.ready()
    death = DeathReport(replica, number, 1, "k")
    if told == "before":
        world.loads.deaths.report("g", "app", EndpointLoad(deaths=(death,)), world.now)
    world.backend.kill(replica, "ended", 1)
    world.step()
    if told == "after":
        for revision in world.loads.deaths.report("g", "app", EndpointLoad(deaths=(death,)), world.now).uncount:
            world.store.uncount_failure("app", revision)


@pytest.mark.parametrize("told", ["before", "after"])
def test_deaths_of_somebodys_request_hold_no_endpoint_back(world: World, told: str) -> None:
    number = world.deploy(min_replica=1)
    world.settle()
    for _ in range(8):
        die_of_a_request(world, number, told=told)
        assert world.revision(number).failures == 0
        world.step()
        assert [r.state for r in world.store.replicas("app")].count(ReplicaState.STARTING) == 1, "at once"
        world.settle(10)
    assert world.endpoint().reason == "" and len(world.ready()) == 1
    die_of_a_request(world, number, told="never")
    assert world.revision(number).failures == 1, "what nobody explains is counted"
