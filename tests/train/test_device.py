"""The machine that trains, as torch describes it; the GPUs are those of the data sheets, none is asked."""

from __future__ import annotations

import os

import pytest
import torch

from puna.errors import MachineError
from puna.train import device

GIB = 2**30


def gpu(monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int]) -> device.TrainingMachine:
    """What is seen of a GPU with that name and compute capability, half of it free."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (40 * GIB, 80 * GIB))
    return device.look()


@pytest.mark.parametrize(
    ("name", "capability", "bf16", "fp8", "flops"),
    [
        ("Tesla T4", (7, 5), False, False, 65e12),
        ("NVIDIA A100-SXM4-80GB", (8, 0), True, False, 312e12),
        ("NVIDIA A10G", (8, 6), True, False, 125e12),
        ("NVIDIA L4", (8, 9), True, True, 121e12),
        ("NVIDIA H100 PCIe", (9, 0), True, True, 756e12),
        ("NVIDIA H100 80GB HBM3", (9, 0), True, True, 989e12),
        ("a GPU of tomorrow", (12, 0), True, True, device.UNKNOWN_GPU[0]),
    ],
)
def test_a_gpu_is_what_its_name_and_capability_say(
    monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int], bf16: bool, fp8: bool, flops: float
) -> None:
    found = gpu(monkeypatch, name, capability)
    assert (found.device, found.name, found.memory_bytes) == ("cuda", name, 40 * GIB)
    assert (found.native_bf16, found.fp8, found.flops) == (bf16, fp8, flops)
    assert found.is_gpu and found.bandwidth > 0


def test_a_cpu_has_its_free_memory_and_a_measured_speed() -> None:
    found = device.look("cpu")
    assert found.name == f"CPU, {len(os.sched_getaffinity(0))} cores" and not found.is_gpu
    assert 2**28 < found.memory_bytes < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 1e8 < found.flops < 1e15 and found.threads == torch.get_num_threads()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("asked", ["cuda", "cuda:3", "tpu"])
def test_a_device_that_is_not_there_is_named(asked: str) -> None:
    with pytest.raises(MachineError, match=f"there is no device '{asked}' here"):
        device.look(asked)
