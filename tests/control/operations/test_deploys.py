"""Stories of two revisions that share an endpoint's requests: plan, store and reconciler, without processes."""

from __future__ import annotations

import pytest

from control.conftest import World, gpu_world
from control.rows import save_endpoint
from puna.config.settings import Settings
from puna.control.domain.records import Endpoint, TrafficSplit
from puna.control.domain.states import RevisionState
from puna.control.reconcile.plan import PLACE_S
from puna.errors import ConflictError


def canary(world: World, percent: int = 10, **settings: object) -> int:
    """A second revision, built and asked to have a share."""
    number = world.deploy(**settings)
    world.store.divide("app", {number: percent}, world.now)
    return number


def split_world(world: World, percent: int = 10, **settings: object) -> World:
    world.deploy(**settings)
    world.settle(10)
    canary(world, percent, **settings)
    world.settle(10)
    assert world.endpoint().shares == {1: 100 - percent, 2: percent}
    return world


def events(world: World) -> str:
    return "\n".join(event.message for event in world.store.events_page("app", None, 10_000))


def test_a_revision_that_is_to_have_a_share_joins_once_it_is_ready_and_the_old_one_stays(world: World) -> None:
    world.deploy(min_replica=1, max_replica=2)
    world.settle(10)
    old = world.ready()
    canary(world, 10, min_replica=1, max_replica=2)
    while not world.endpoint().split:
        assert world.endpoint().shares == {1: 100}
        world.step()
    assert world.ready(revision=2) and world.revision(2).state is RevisionState.SERVING
    world.settle(20)
    assert world.endpoint().shares == {1: 90, 2: 10} and world.ready(revision=1) == old
    assert len(world.ready(revision=2)) == 1 and "revision 1 has 90 %, revision 2 10 %" in events(world)


def test_the_first_revision_of_all_takes_every_request_whatever_share_it_was_to_have(world: World) -> None:
    number = world.deploy(min_replica=1)
    with world.store._write() as connection:
        connection.exec_driver_sql("update revisions set percent = 10")
    world.settle(10)
    assert world.endpoint().shares == {number: 100}


@pytest.mark.parametrize(
    ("low", "high", "percent", "first", "second"),
    [
        (0, 1, 10, (0, 1), (0, 1)),  # one each, one more than max_replica says, as in a rollout
        (1, 1, 50, (1, 1), (1, 1)),
        (1, 2, 10, (1, 1), (1, 1)),
        (0, 10, 10, (0, 9), (0, 1)),
        (4, 10, 25, (3, 8), (1, 2)),
        (2, 3, 99, (1, 1), (1, 2)),
    ],
)
def test_replicas_are_divided_as_the_requests_are(
    low: int, high: int, percent: int, first: tuple[int, int], second: tuple[int, int]
) -> None:
    settings = Settings(min_replica=low, max_replica=high)
    endpoint = Endpoint("app", True, settings, 3, "", 0.0, 0, split=TrafficSplit(4, percent))
    assert (endpoint.limits(3), endpoint.limits(4)) == (first, second)
    assert endpoint.limits(7) == (low, high)  # one that shares in nothing


def test_each_of_two_follows_its_own_scaling_and_goes_to_zero_by_itself(world: World) -> None:
    split_world(world, 25, max_replica=4, scale_down_delay_s=1)
    world.store.scale("app", 9, "busy", world.now)
    world.settle(15)
    assert (len(world.ready(revision=1)), len(world.ready(revision=2))) == (3, 1)
    world.store.scale("app", 0, "nobody calls", world.now, 2)
    world.settle(15)
    assert (len(world.ready(revision=1)), len(world.ready(revision=2))) == (3, 0)
    assert world.endpoint().shares == {1: 75, 2: 25}  # a request wakes it
    world.store.scale("app", 1, "a request came", world.now, 2)
    world.settle(10)
    assert len(world.ready(revision=2)) == 1


def test_both_keep_a_replica_where_one_must_stay_and_a_patch_of_the_limits_acts_on_both(world: World) -> None:
    split_world(world, 10, min_replica=1, max_replica=1)
    for revision in (1, 2):
        world.store.scale("app", 0, "nobody calls", world.now, revision)
    world.settle(15)
    assert (len(world.ready(revision=1)), len(world.ready(revision=2))) == (1, 1)
    settings = world.endpoint().settings.replaced(min_replica=5, max_replica=10)
    save_endpoint(world.store, "app", settings, world.now)
    world.settle(15)
    assert (len(world.ready(revision=1)), len(world.ready(revision=2))) == (4, 1)


def test_a_promoted_revision_gets_the_replicas_for_all_requests_before_it_gets_the_requests(world: World) -> None:
    split_world(world, 25, min_replica=1, max_replica=4)
    world.store.scale("app", 3, "busy", world.now)
    world.settle(15)
    assert (len(world.ready(revision=1)), len(world.ready(revision=2))) == (3, 1)
    world.store.promote("app", 2, world.now)
    while world.endpoint().split:
        assert len(world.ready(revision=1)) == 3 and world.endpoint().shares == {1: 75, 2: 25}
        world.step()
    assert world.endpoint().serving == 2 and len(world.ready(revision=2)) == 4
    world.settle(20)
    assert world.running(revision=1) == [] and world.revision(1).state is RevisionState.RETIRED
    assert "revision 2 has all requests" in events(world)


def test_a_promotion_takes_what_room_there_is_and_without_any_keeps_the_share_and_says_why(world: World) -> None:
    gpu_world(world, 2)
    split_world(world, 50, max_replica=2, scale_down_delay_s=1, evict_after_s=0)
    world.store.promote("app", 2, world.now)
    world.settle(10)  # two are wanted, and there is room for one
    assert world.endpoint().shares == {2: 100}
    world.store.scale("app", 1, "few calls", world.now)
    world.settle(20)
    canary(world, 50, max_replica=2, scale_down_delay_s=1, evict_after_s=0)
    world.settle(20)
    world.store.scale("app", 0, "nobody calls", world.now, 3)
    world.settle(20)
    world.deploy("other", min_replica=1)
    world.settle(20)
    world.store.promote("app", 3, world.now)
    world.settle(int(PLACE_S) - 1, seconds=1.0)
    assert world.revision(3).percent == 100, "given up before its time"
    world.settle(3, seconds=1.0)
    assert world.endpoint().shares == {2: 50, 3: 50} and world.revision(3).percent == 50
    assert "no room to promote it: it needs a whole GPU" in world.revision(3).error
    assert "revision 3 keeps 50 %: no room" in events(world)


def test_a_split_without_room_for_both_is_refused_and_the_old_one_serves_on(world: World) -> None:
    gpu_world(world, 1)
    world.deploy(min_replica=1, replace=True)
    world.settle(10)
    old = world.ready()
    canary(world, 10, min_replica=1, replace=True)  # `replace` is for rollouts: nothing is stopped for a share
    world.settle(80, seconds=1.0)
    failed = world.revision(2)
    assert failed.state is RevisionState.FAILED and "no room for it: it needs a whole GPU" in failed.error
    assert "room for a replica of both" in failed.hint
    assert world.ready() == old and world.endpoint().shares == {1: 100}


def test_a_revision_that_keeps_dying_gives_its_share_back_and_says_why(world: World) -> None:
    split_world(world, 40, min_replica=1)
    killed: set[str] = set()
    for _ in range(100):
        world.step()
        for replica_id in set(world.running(revision=2)) - killed:
            killed.add(replica_id)
            world.backend.kill(replica_id, "CUDA error", 1, "line 1\nCUDA error: no kernel image")
        assert world.ready(revision=1)
    assert world.endpoint().shares == {1: 100} and world.revision(2).state is RevisionState.RETIRED
    assert "its replicas keep dying: CUDA error" in world.revision(2).error
    assert world.revision(2).detail.endswith("no kernel image")
    assert "revision 2 gives its 40 % back to revision 1: its replicas keep dying: CUDA error" in events(world)
    world.store.divide("app", {2: 10}, world.now)  # mended: it may have a share again
    world.settle(10)
    assert world.endpoint().shares == {1: 90, 2: 10} and world.revision(2).error == ""


def test_the_second_one_takes_all_when_the_first_keeps_dying(world: World) -> None:
    split_world(world, 40, min_replica=1)
    for _ in range(100):
        world.step()
        for replica_id in world.ready(revision=1) + world.running(revision=1)[:1]:
            world.backend.kill(replica_id, "killed")
    assert world.endpoint().shares == {2: 100} and world.revision(1).state is RevisionState.RETIRED
    assert len(world.ready(revision=2)) == 1 and world.endpoint().reason == ""


def test_one_death_takes_no_share_away(world: World) -> None:
    split_world(world, 40, min_replica=1)
    world.backend.kill(world.ready(revision=2)[0], "killed by SIGKILL")
    world.settle(20)
    assert world.endpoint().shares == {1: 60, 2: 40} and len(world.ready(revision=2)) == 1


def test_a_rollout_that_crashes_gets_no_share(world: World) -> None:
    world.deploy(min_replica=1)
    world.settle(10)
    canary(world, 40, min_replica=1)
    for _ in range(100):
        world.step()
        for replica_id in world.running(revision=2):
            world.backend.kill(replica_id, "initialize failed")
    assert world.revision(2).state is RevisionState.FAILED and world.endpoint().shares == {1: 100}


def test_a_share_is_changed_at_once_and_taken_away_at_once(world: World) -> None:
    split_world(world, 10, min_replica=1, max_replica=4)
    world.store.divide("app", {2: 50}, world.now)
    assert world.endpoint().shares == {1: 50, 2: 50}
    world.store.promote("app", 1, world.now)
    assert world.endpoint().shares == {1: 100}
    world.settle(20)
    assert world.running(revision=2) == [] and world.revision(2).state is RevisionState.RETIRED
    world.store.promote("app", 1, world.now)
    assert world.endpoint().shares == {1: 100}  # nothing is left to take away


def test_taking_the_split_away_ends_a_rollout_that_was_to_have_a_share(world: World) -> None:
    world.deploy(min_replica=1)
    world.settle(10)
    canary(world, 10, min_replica=1)
    world.step()
    world.store.promote("app", 1, world.now)
    world.settle(20)
    assert world.revision(2).state is RevisionState.SUPERSEDED and world.running() == world.ready(revision=1)


def test_a_deploy_takes_the_place_of_both_and_another_canary_that_of_the_first(world: World) -> None:
    split_world(world, 10, min_replica=1)
    canary(world, 20, min_replica=1)
    world.settle(20)
    assert world.endpoint().shares == {1: 80, 3: 20} and world.revision(2).state is RevisionState.RETIRED
    world.deploy(min_replica=1)
    world.settle(20)
    assert world.endpoint().shares == {4: 100}
    assert {world.revision(n).state for n in (1, 2, 3)} == {RevisionState.RETIRED}
    assert world.running() == world.ready(revision=4)


def test_a_promotion_while_another_revision_is_rolled_out_is_the_later_word(world: World) -> None:
    split_world(world, 10, min_replica=1)
    world.deploy(min_replica=1)
    world.step()
    world.store.promote("app", 2, world.now)
    world.settle(20)
    assert world.endpoint().shares == {2: 100} and world.revision(3).state is RevisionState.SUPERSEDED


def test_deactivating_ends_both_and_activating_brings_both_back(world: World) -> None:
    split_world(world, 10, min_replica=1)
    world.store.scale("app", 1, "busy", world.now, 2)
    world.store.set_active("app", False, world.now)
    assert [world.endpoint().desired_of(number) for number in (1, 2)] == [(0, "deactivated")] * 2
    world.settle(15)
    assert world.running() == []
    world.store.set_active("app", True, world.now)
    world.settle(15)
    assert (len(world.ready(revision=1)), len(world.ready(revision=2))) == (1, 1)


def test_what_cannot_have_a_share_is_refused(world: World) -> None:
    number = world.deploy(min_replica=1)
    with pytest.raises(ConflictError, match="nothing of `app` serves"):
        world.store.divide("app", {number: 10}, world.now)
    world.settle(10)
    bad = world.deploy(min_replica=1)
    world.store.move_revision("app", bad, RevisionState.FAILED, world.now, error="it fits nowhere")
    with pytest.raises(ConflictError, match="from `failed` to `built`"):
        world.store.divide("app", {bad: 10}, world.now)
    with pytest.raises(ConflictError, match="shares its requests with none"):
        world.store.abort_canary("app", 1, "no reason", "", world.now)
    with pytest.raises(ConflictError, match="shares its requests with none"):
        world.store.cancel_promotion("app", 1, "no reason", world.now)
