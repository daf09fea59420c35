"""The backend without processes: time by `tick`, deaths on order."""

from __future__ import annotations

from collections.abc import Callable

from backends.memory import MemoryBackend
from puna.backends.base import Launch, Phase

Make = Callable[..., Launch]


def test_time_passes_only_by_tick(launch: Make) -> None:
    backend = MemoryBackend(ready_after_s=10, stop_takes_s=3)
    backend.tick(100)
    backend.start(launch())
    backend.tick(109.9)
    assert backend.list()[0].phase == Phase.STARTING
    backend.tick(110)
    assert backend.list()[0].phase == Phase.READY and backend.list()[0].ready_s == 10
    backend.stop("r1", 60)
    backend.tick(112)
    assert backend.list()[0].phase == Phase.READY
    backend.tick(113)
    assert backend.list()[0].phase == Phase.EXITED


def test_a_replica_dies_on_order_with_its_last_lines(launch: Make) -> None:
    backend = MemoryBackend()
    backend.start(launch())
    backend.kill("r1", "killed by SIGSEGV", -11, "one\ntwo")
    seen = backend.list()[0]
    assert (seen.phase, seen.reason, seen.exit_code, seen.last_lines) == (
        Phase.EXITED,
        "killed by SIGSEGV",
        -11,
        ("one", "two"),
    )
    assert backend.calls == [("start", "r1")]
