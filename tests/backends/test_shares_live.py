"""Real processes on a fake GPU: who takes another's half, or too much memory, is ended, and the other never knows."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backends.replicas import Owner, call, listens, wait_for, wait_until
from fake_gpu import libraries
from puna.backends.base import Launch, Phase
from puna.backends.local import LocalBackend, validate
from puna.backends.machine import Nvml
from puna.backends.shares import GpuEnforcer
from puna.home import Home
from puna.process.tree import descendants, own_bytes

pytestmark = pytest.mark.process
Make = Callable[..., Launch]
Caplog = pytest.LogCaptureFixture

TAKES = """
    import torch
    class InferlessPythonModel:
        def initialize(self):
            torch.cuda.take(3 * 2**30)
        def infer(self, inputs):
            torch.cuda.malloc(int(inputs["prompt"]) * 2**30)
            return {"text": str(torch.cuda.state["own"] >> 30)}
"""
# The memory is taken by a child in a session of its own, and once more by its fork: each page counts once.
EATS = """
    import os, subprocess, sys, threading, time
    SIZE = %d << 20
    CODE = "import os, time; data = b'x' * %%d; os.fork(); time.sleep(60)" %% SIZE
    class InferlessPythonModel:
        def initialize(self): pass
        def infer(self, inputs):
            subprocess.Popen([sys.executable, "-c", CODE], start_new_session=True)
            return {"text": "x"}
"""


@pytest.fixture
def local(home: Home, owner: Owner, driver: Path) -> Iterator[LocalBackend]:
    """A backend on the fake GPUs, or on none."""
    yield LocalBackend(home, owner.read, Nvml())
    owner.die()
    wait_until(lambda: not [p for p in home.sockets.glob("*.guard") if listens(p)], 5, "guards live on")


def half(launch: Make, driver: Path, replica_id: str, source: str = TAKES) -> Launch:
    env = {"PATH": os.environ["PATH"], "FAKE_GPUS": str(driver)}
    made = launch(replica_id, source, gpu="0", gpu_fraction=0.5, env=env)
    libraries.write(made.app)
    return made


def test_who_takes_the_others_half_is_ended_and_the_other_never_knows(
    local: LocalBackend, launch: Make, driver: Path, home: Home
) -> None:
    greedy, modest = half(launch, driver, "greedy"), half(launch, driver, "modest")
    for made in (greedy, modest):
        local.start(made)
        wait_for(local, Phase.READY, made.replica_id)
    before = wait_for(local, Phase.READY, "modest")
    watch = GpuEnforcer(home, Nvml())
    assert (call(greedy, "5"), call(modest, "2")) == ("8", "5")  # all of its half, and not more
    assert watch.look() == {} and watch.use() == {"greedy": 8 << 30, "modest": 5 << 30}
    assert call(greedy, "1") == "9"
    why = "used 9.0 GiB of its 8.0 GiB half of GPU 0"
    assert watch.look() == {"greedy": why}
    seen = wait_for(local, Phase.EXITED, "greedy")
    assert (seen.reason, seen.exit_code) == (why, -9)
    assert watch.look() == {} and watch.use() == {"modest": 5 << 30}
    assert call(modest, "3") == "8" and wait_for(local, Phase.READY, "modest") == before


def test_a_gpu_that_was_not_given_may_not_be_used(local: LocalBackend, launch: Make, driver: Path, home: Home) -> None:
    source = """
        import torch
        class InferlessPythonModel:
            def initialize(self):
                torch.cuda.malloc(2**29, "1")
            def infer(self, inputs): return {}
    """
    local.start(half(launch, driver, "r1", source))
    wait_for(local, Phase.READY)
    assert GpuEnforcer(home, Nvml()).look() == {"r1": "used 0.5 GiB of GPU 1, which is not its own"}
    wait_for(local, Phase.EXITED)


def test_a_validation_keeps_to_its_half_too(local: LocalBackend, launch: Make, driver: Path, home: Home) -> None:
    source = """
        import time, torch
        class InferlessPythonModel:
            def initialize(self):
                torch.cuda.malloc(12 * 2**30)
                time.sleep(60)
            def infer(self, inputs): return {}
    """
    validate(half(launch, driver, "build-1", source), home, home.root / "report.json", 30, devices=Nvml())
    report = json.loads((home.root / "report.json").read_text())
    assert (report["ok"], report["phase"]) == (False, "initialize")
    assert report["error"] == "used 12.0 GiB of its 8.0 GiB half of GPU 0"


def test_a_driver_that_hides_who_uses_what_ends_nobody_and_the_log_says_so_once(
    local: LocalBackend, launch: Make, driver: Path, home: Home, monkeypatch: pytest.MonkeyPatch, caplog: Caplog
) -> None:
    local.start(half(launch, driver, "r1"))
    wait_for(local, Phase.READY)
    devices = Nvml()
    watch = GpuEnforcer(home, devices)
    for used in ({0: {999_999_999: 2**34}}, {0: {}}, None):  # another namespace's, nobody's, not told
        with monkeypatch.context() as patch:
            patch.setattr(devices, "used_bytes", lambda used=used: used)
            assert watch.look() == {} and watch.is_blind
    assert caplog.text.count("the driver does not tell") == 1
    assert watch.look() == {} and not watch.is_blind


def test_a_tree_that_takes_too_much_memory_is_ended_and_says_so(local: LocalBackend, launch: Make) -> None:
    made = launch("r1", EATS % 300, memory_bytes=256 << 20)
    local.start(made)
    wait_for(local, Phase.READY)
    call(made, "x")
    seen = wait_for(local, Phase.EXITED)
    assert seen.reason.endswith("GiB of memory, its share is 0.25 GiB") and seen.exit_code == -9


def test_pages_that_a_fork_shares_count_once(local: LocalBackend, launch: Make) -> None:
    limit = 320 << 20
    made = launch("r1", EATS % 200, memory_bytes=limit)
    local.start(made)
    seen = wait_for(local, Phase.READY)
    call(made, "x")
    wait_until(lambda: sum(own_bytes(one.pid) for one in descendants(seen.pid)) > limit, 10, "the child did not fork")
    time.sleep(2.5)  # the guard looks once a second at least
    assert wait_for(local, Phase.READY).pid == seen.pid
    local.stop("r1", 0)
    wait_for(local, Phase.EXITED)


def test_a_launch_that_asks_for_cores_gets_them_and_the_next_one_others(local: LocalBackend, launch: Make) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core cannot be shared out")
    for name in ("r1", "r2"):
        local.start(launch(name, vcpu=1))
        wait_for(local, Phase.READY, name)
    first, second = (os.sched_getaffinity(wait_for(local, Phase.READY, name).pid) for name in ("r1", "r2"))
    assert len(first) == len(second) == 1 and first != second
