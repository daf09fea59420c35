"""What every backend must do, asked of each of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from backends.memory import SCHEMA, MemoryBackend
from puna.backends.base import Backend, Launch, Observed, Phase

Make = Callable[..., Launch]
NAPPER = """
    class InferlessPythonModel:
        def initialize(self):
            self.is_awake = True
        def sleep(self):
            assert self.is_awake
            self.is_awake = False
        def wake(self):
            assert not self.is_awake
            self.is_awake = True
        def infer(self, inputs):
            return {"text": "x"}
"""


@pytest.fixture(params=["memory", pytest.param("local", marks=pytest.mark.process)])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "memory":
        return MemoryBackend()
    found: Backend = request.getfixturevalue("local")
    return found


def until(backend: Backend, is_so: Callable[[list[Observed]], Any]) -> list[Observed]:
    """What the backend lists once it is so."""
    end = time.monotonic() + 10
    while True:
        if isinstance(backend, MemoryBackend):
            backend.tick(time.monotonic())
        seen = backend.list()
        if is_so(seen):
            return seen
        assert time.monotonic() < end, seen
        time.sleep(0.01)


def phases(seen: list[Observed]) -> dict[str, Phase]:
    return {one.replica_id: one.phase for one in seen}


def ready(backend: Backend, *ids: str) -> list[Observed]:
    return until(backend, lambda seen: phases(seen) == dict.fromkeys(ids, Phase.READY))


def test_nothing_was_started(backend: Backend) -> None:
    assert backend.list() == []


def test_the_machine_has_room(backend: Backend) -> None:
    room = backend.capacity()
    assert room.cpus >= 1 and room.memory_bytes > 0


def test_a_replica_starts_and_becomes_ready(backend: Backend, launch: Make) -> None:
    backend.start(launch())
    assert phases(backend.list())["r1"] in (Phase.STARTING, Phase.READY)
    (seen,) = ready(backend, "r1")
    assert seen.pid > 0 and seen.ready_s is not None and seen.exit_code is None
    assert seen.schema["concurrency"] == 1 and "inputs" in seen.schema["schema"]  # type: ignore[operator]


def test_the_same_id_twice_starts_one(backend: Backend, launch: Make) -> None:
    backend.start(launch())
    (before,) = ready(backend, "r1")
    backend.start(launch())
    (after,) = ready(backend, "r1")
    assert before.pid == after.pid


def test_two_replicas_are_two(backend: Backend, launch: Make) -> None:
    backend.start(launch("r1"))
    backend.start(launch("r2"))
    one, two = ready(backend, "r1", "r2")
    assert one.pid != two.pid


def test_stop_ends_a_replica_which_stays_listed_until_forgotten(backend: Backend, launch: Make) -> None:
    backend.start(launch())
    ready(backend, "r1")
    backend.stop("r1", 5)
    backend.stop("r1", 5)
    (seen,) = until(backend, lambda seen: phases(seen) == {"r1": Phase.EXITED})
    assert seen.reason == "stopped" and seen.exit_code == 0
    backend.forget("r1")
    until(backend, lambda seen: seen == [])


def test_forget_leaves_a_living_replica_alone(backend: Backend, launch: Make) -> None:
    backend.start(launch())
    ready(backend, "r1")
    backend.forget("r1")
    ready(backend, "r1")


def test_a_replica_sleeps_and_wakes_when_told_and_both_are_seen(backend: Backend, launch: Make) -> None:
    if isinstance(backend, MemoryBackend):
        backend.schema = {**SCHEMA, "can_sleep": True}
    backend.start(launch(source=NAPPER))
    (seen,) = ready(backend, "r1")
    assert seen.can_sleep and not seen.is_asleep
    for _ in range(2):
        backend.sleep("r1")
        until(backend, lambda seen: seen[0].is_asleep)
        backend.sleep("r1")
        backend.wake("r1")
        (seen,) = until(backend, lambda seen: not seen[0].is_asleep)
        backend.wake("r1")
        assert seen.can_sleep and seen.phase is Phase.READY


def test_a_replica_whose_app_cannot_sleep_stays_awake(backend: Backend, launch: Make) -> None:
    backend.start(launch())
    ready(backend, "r1")
    backend.sleep("r1")
    time.sleep(0.2)
    (seen,) = backend.list()
    assert not seen.can_sleep and not seen.is_asleep


def test_a_replica_that_sleeps_can_be_stopped(backend: Backend, launch: Make) -> None:
    if isinstance(backend, MemoryBackend):
        backend.schema = {**SCHEMA, "can_sleep": True}
    backend.start(launch(source=NAPPER))
    ready(backend, "r1")
    backend.sleep("r1")
    until(backend, lambda seen: seen[0].is_asleep)
    backend.stop("r1", 5)
    (seen,) = until(backend, lambda seen: phases(seen) == {"r1": Phase.EXITED})
    assert seen.reason == "stopped" and seen.exit_code == 0


def test_an_unknown_id_is_fine(backend: Backend) -> None:
    backend.sleep("nobody")
    backend.wake("nobody")
    backend.stop("nobody", 1)
    backend.forget("nobody")
    assert backend.list() == []


def test_a_forgotten_id_can_be_started_again(backend: Backend, launch: Make) -> None:
    for _ in range(2):
        backend.start(launch())
        ready(backend, "r1")
        backend.stop("r1", 5)
        until(backend, lambda seen: phases(seen) == {"r1": Phase.EXITED})
        backend.forget("r1")
        until(backend, lambda seen: seen == [])


def test_a_start_that_takes_too_long_is_ended(backend: Backend, launch: Make) -> None:
    source = "import time; time.sleep(60)"
    if isinstance(backend, MemoryBackend):
        backend.ready_after_s = 60
    backend.start(launch(source=source, startup_timeout_s=0.3))
    (seen,) = until(backend, lambda seen: phases(seen) == {"r1": Phase.EXITED})
    assert seen.reason == "initialize did not end within 0.3 s" and seen.exit_code == -9


def test_launches_of_a_zygotes_name_are_forked_from_it_and_outlive_it(backend: Backend, launch: Make) -> None:
    made = launch("zygote-1", warm="zygote-1")
    backend.warm(made)
    backend.warm(made)

    def is_ready() -> bool:
        if isinstance(backend, MemoryBackend):
            backend.tick(backend.now + 1)
        return [(z.name, z.phase) for z in backend.zygotes()] == [("zygote-1", Phase.READY)]

    deadline = time.monotonic() + 10
    while not is_ready():
        assert time.monotonic() < deadline, backend.zygotes()
        time.sleep(0.01)
    backend.start(launch("r1", warm="zygote-1"))
    backend.start(launch("r2", warm="zygote-2"))
    one, two = ready(backend, "r1", "r2")
    assert (one.born, two.born) == ("zygote", "spawn")
    backend.cool("zygote-1")
    backend.cool("zygote-1")
    assert backend.zygotes() == ()
    ready(backend, "r1", "r2")
