"""The loop around the plan: restarts, strangers, starts that fail, and what happens while it is not looking."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

from control.conftest import World, launch
from puna.backends.base import Launch
from puna.control.domain.records import Replica
from puna.control.domain.states import ReplicaState, RevisionState
from puna.errors import NotFoundError


def test_a_restarted_control_plane_adopts_the_replicas_that_live(world: World) -> None:
    world.deploy(min_replica=2, max_replica=2)
    world.settle(15)
    before, starts = world.ready(), len([c for c in world.backend.calls if c[0] == "start"])
    world.restart()
    world.settle(15)
    assert world.ready() == before
    assert len([c for c in world.backend.calls if c[0] == "start"]) == starts


def test_what_died_while_the_control_plane_was_away_is_replaced(world: World) -> None:
    world.deploy(min_replica=1)
    world.settle(10)
    (old,) = world.ready()
    world.backend.kill(old)
    world.backend.forget(old)
    world.restart()
    world.settle(20)
    assert len(world.ready()) == 1 and world.ready() != [old]


def test_a_replica_that_the_store_does_not_know_is_stopped(world: World) -> None:
    stranger = Replica("stranger-1", 1, "app", 1, ReplicaState.STARTING, "", 0.0, 0.0, 0.0)
    world.backend.start(launch(stranger))
    world.settle(10)
    assert ("stop", "stranger-1") in world.backend.calls and world.backend.list() == []


def test_a_start_that_raises_counts_as_a_failure_with_its_reason(world: World) -> None:
    def broken(_: Replica) -> Launch:
        raise NotFoundError("the bundle is gone", "`puna rebuild app`")

    world.reconciler.prepare = broken
    world.deploy(min_replica=1)
    world.settle(60)
    failed = world.revision(1)
    assert failed.state is RevisionState.FAILED
    assert "it could not be started: the bundle is gone `puna rebuild app`" in failed.error
    assert world.backend.list() == []


def test_an_action_that_came_too_late_is_left_for_the_next_plan(world: World) -> None:
    world.deploy(min_replica=1)
    world.settle(3)
    kept = world.store.snapshot()
    world.store.delete_endpoint("app", world.now)
    world.store._kept = (world.store.writes, kept)  # the snapshot that was read just before the deletion
    world.settle(1, seconds=2.0)
    world.settle(10)
    assert world.store.replicas() == [] and world.backend.list() == []


def test_a_ready_replica_tells_its_pid_and_concurrency_and_the_schema_that_the_build_left_open(world: World) -> None:
    world.backend.schema = {"concurrency": 16, "schema": {"inputs": [{"name": "prompt"}]}}
    world.deploy(min_replica=1)
    world.settle(10)
    (replica,) = world.store.replicas("app")
    assert replica.concurrency == 16 and replica.pid > 0
    assert world.revision(1).schema == {"inputs": [{"name": "prompt"}]}


def test_the_thread_steps_at_once_after_a_change_and_survives_a_bad_step(world: World) -> None:
    stop, stepped = threading.Event(), threading.Event()
    fails = iter([True, False])
    inner = world.backend.list

    def listing() -> list[object]:
        stepped.set()
        if next(fails, False):
            raise RuntimeError("a bad step")
        return inner()  # type: ignore[return-value]

    world.backend.list = listing  # type: ignore[assignment, method-assign]
    thread = threading.Thread(target=world.reconciler.run, args=(stop,))
    thread.start()
    stepped.wait(5)
    world.now = time.time()
    world.deploy(min_replica=1)
    for _ in range(500):
        if world.backend.calls:
            break
        time.sleep(0.01)
    stop.set()
    thread.join(5)
    assert world.backend.calls[0][0] == "start" and not thread.is_alive()


def test_a_thousand_scale_cycles_leave_no_rows_behind(world: World) -> None:
    world.backend.ready_after_s = world.backend.stop_takes_s = 0.0
    world.deploy(max_replica=1)
    world.settle(5, seconds=2.0)
    for _ in range(25):
        world.store.scale("app", 0, "idle", world.now)
        world.settle(4, seconds=2.0)
        world.store.scale("app", 1, "busy", world.now)
        world.settle(3, seconds=2.0)
    assert len(world.store.replicas()) == len(world.backend.list()) == 1
    assert replace(world.endpoint(), desired_replicas=1) == world.endpoint()
