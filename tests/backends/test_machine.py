"""What nvidia-smi prints becomes devices."""

from __future__ import annotations

from puna.backends.base import Gpu
from puna.backends.machine import capacity, read_gpus


def test_devices_come_from_the_csv() -> None:
    text = "0, NVIDIA H200, 143771\n1, NVIDIA H200, 143771\n"
    assert read_gpus(text) == (Gpu(0, "NVIDIA H200", 143771 * 2**20), Gpu(1, "NVIDIA H200", 143771 * 2**20))


def test_lines_that_are_no_devices_are_left_out() -> None:
    assert read_gpus("No devices were found\n\n0, Odd, [N/A]\n") == ()


def test_this_machine_has_cores_and_memory() -> None:
    assert capacity().cpus >= 1 and capacity().memory_bytes > 2**20
