"""How much of a machine a replica may use, and how it is told."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from puna.backends import shares
from puna.backends.base import Capacity, GpuDevice, Launch
from puna.backends.shares import Cores, ResourceShare

GIB = 2**30
H100 = GpuDevice(0, "NVIDIA H100", 80 * GIB)
ONE = Capacity(16, 128 * GIB, (H100,))
FOUR = Capacity(64, 512 * GIB, tuple(replace(H100, index=index) for index in range(4)))
LAUNCH = Launch("r1", Path("python"), Path("app"), Path("socket"), Path("log"))


def share(capacity: Capacity, gpu: str = "0", fraction: float = 1.0, **more: float) -> ResourceShare:
    return shares.of(replace(LAUNCH, gpu=gpu, gpu_fraction=fraction, **more), capacity)  # type: ignore[arg-type]


def test_a_half_is_half_of_everything() -> None:
    half = share(ONE, fraction=0.5)
    assert (half.gpu_bytes, half.cores, half.memory_bytes) == (40 * GIB, 8, 64 * GIB)
    assert half.is_part and half.torch_fraction == pytest.approx(39 / 80)


def test_the_only_gpu_comes_with_the_whole_machine_and_one_of_four_with_a_quarter() -> None:
    whole, quarter, eighth = share(ONE), share(FOUR, "3"), share(FOUR, "2", 0.5)
    assert (whole.gpu_bytes, whole.cores, whole.memory_bytes, whole.is_part) == (80 * GIB, 0, 0, False)
    assert (quarter.gpu_bytes, quarter.cores, quarter.memory_bytes) == (80 * GIB, 16, 128 * GIB)
    assert (eighth.gpu_bytes, eighth.cores, eighth.memory_bytes) == (40 * GIB, 8, 64 * GIB)


def test_on_a_cpu_a_dedicated_one_has_all_and_a_shared_one_half() -> None:
    assert share(ONE, "") == ResourceShare()
    half = share(ONE, "", 0.5)
    assert (half.gpu_bytes, half.cores, half.memory_bytes, half.is_part) == (0, 8, 64 * GIB, False)


def test_numbers_that_were_asked_for_win_up_to_what_there_is() -> None:
    asked = share(ONE, fraction=0.5, vcpu=3, memory_bytes=20 * GIB)
    assert (asked.cores, asked.memory_bytes) == (3, 20 * GIB)
    more = share(ONE, fraction=0.5, vcpu=100, memory_bytes=500 * GIB)
    assert (more.cores, more.memory_bytes) == (0, 0)
    assert share(ONE, "", vcpu=0.2).cores == 1


def test_a_small_gpu_sets_less_aside_for_cuda() -> None:
    small = shares.of(replace(LAUNCH, gpu="0", gpu_fraction=0.5), Capacity(4, GIB, (GpuDevice(0, "T4", 15 * GIB),)))
    assert small.torch_fraction == pytest.approx(0.5 * 15 / 16)


def test_the_environment_of_a_half(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    env = shares.environment(share(ONE, fraction=0.5), {"A": "1"}, [0, 1, 2])
    assert env == {
        "A": "1", "CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "OMP_NUM_THREADS": "8",
        "PUNA_CORES": "0,1,2", "PUNA_GPU_FRACTION": "0.5", "PUNA_GPU_TORCH_FRACTION": "0.487500",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.3656", "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "CUPY_GPU_MEMORY_LIMIT": "48.75%",
    }  # fmt: skip


def test_what_the_app_says_of_threads_stays_and_what_it_says_of_its_share_does_not() -> None:
    own = {"OMP_NUM_THREADS": "2", "PUNA_GPU_FRACTION": "1", "CUDA_VISIBLE_DEVICES": "0,1"}
    env = shares.environment(share(ONE, fraction=0.5), own)
    assert (env["OMP_NUM_THREADS"], env["PUNA_GPU_FRACTION"], env["CUDA_VISIBLE_DEVICES"]) == ("2", "0.5", "0")


@pytest.mark.parametrize(("replicas", "threads"), [(1, "16"), (2, "8"), (5, "3"), (40, "1")])
def test_replicas_without_a_gpu_share_the_cores_by_number_and_do_not_spin(replicas: int, threads: str) -> None:
    found = shares.of(replace(LAUNCH, gpu=""), Capacity(16, GIB), replicas)
    env = shares.environment(found, {})
    assert env == {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
    own = {"OMP_NUM_THREADS": "5", "OMP_WAIT_POLICY": "ACTIVE"}
    assert shares.environment(found, own) == own | {"CUDA_VISIBLE_DEVICES": ""}
    some = shares.of(replace(LAUNCH, gpu="", vcpu=4), Capacity(16, GIB), replicas)
    assert shares.environment(some, {})["OMP_NUM_THREADS"] == "4"
    on_a_gpu = shares.of(replace(LAUNCH, gpu="0"), Capacity(16, GIB, (GpuDevice(0, "T4", 15 * GIB),)), replicas)
    assert "OMP_NUM_THREADS" not in shares.environment(on_a_gpu, {})


def test_a_whole_machine_is_told_nothing_but_its_gpu() -> None:
    assert shares.environment(share(ONE), {}) == {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert shares.environment(share(ONE, ""), {}) == {"CUDA_VISIBLE_DEVICES": ""}


def test_a_running_mps_daemon_holds_its_clients(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    (tmp_path / "nvidia-cuda-mps-control.pid").write_text(f"{os.getpid()}\n")
    told = shares.mps(share(ONE, fraction=0.5))
    assert told == {
        "CUDA_MPS_PIPE_DIRECTORY": str(tmp_path),
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=40960M",
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "50",
    }
    (tmp_path / "nvidia-cuda-mps-control.pid").write_text("999999999")
    assert shares.mps(share(ONE, fraction=0.5)) == {}


def test_cores_are_those_that_fewest_are_held_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares.os, "sched_getaffinity", lambda pid: {7: {0, 1}}.get(pid, {0, 1, 2, 3}))
    cores = Cores()
    assert cores.choose("a", 2, {"old": 7}) == [2, 3]  # `old` was started by an earlier control plane
    assert cores.choose("b", 2, {"old": 7, "a": 9}) == [0, 1]
    assert cores.choose("c", 2, {"b": 10}) == [2, 3]  # `old` and `a` have gone
    assert cores.choose("d", 1, {"whole": 11}) == [0]


@pytest.mark.parametrize(
    ("mine", "why"),
    [
        ({}, ""),
        ({0: 40 * GIB}, ""),
        ({0: 52 * GIB}, "used 52.0 GiB of its 40.0 GiB half of GPU 0"),
        ({0: GIB, 1: GIB // 2}, "used 0.5 GiB of GPU 1, which is not its own"),
    ],
)
def test_what_is_too_much(mine: dict[int, int], why: str) -> None:
    assert shares.gpu_excess(share(ONE, fraction=0.5).as_dict(), mine) == why


def test_a_replica_without_a_gpu_may_use_none() -> None:
    assert shares.gpu_excess(ResourceShare().as_dict(), {0: GIB}) == "used 1.0 GiB of GPU 0, which is not its own"


def test_processes_of_another_namespace_say_that_nobody_can_be_told_apart() -> None:
    assert shares.is_foreign({0: {999_999_999: GIB}})
    assert not shares.is_foreign({0: {999_999_999: GIB, os.getpid(): GIB}}) and not shares.is_foreign({0: {}})
