"""What this machine and its driver's library say becomes a capacity."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import fake_gpu.pynvml
from puna.backends.base import GpuDevice
from puna.backends.machine import Nvml, capacity


def test_devices_come_from_the_driver(driver: Path) -> None:
    found = capacity(Nvml())
    assert found.gpus == (GpuDevice(0, "NVIDIA T4", 2**34), GpuDevice(1, "NVIDIA T4", 2**34))
    assert found.cpus >= 1 and found.memory_bytes > 2**20


def test_who_uses_what_comes_from_it_too(driver: Path) -> None:
    (driver / "1.pid").write_text(json.dumps({"1": 2**33}))
    (driver / "999999999.pid").write_text(json.dumps({"1": 2**33}))  # it has ended
    devices = Nvml()
    assert devices.used_bytes() == {0: {}, 1: {1: 2**33}}
    assert devices.free_bytes() == {0: 2**34, 1: 2**34 - 2**33}


def test_a_machine_without_a_driver_has_no_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_gpu.pynvml)
    monkeypatch.delenv("FAKE_GPUS", raising=False)
    devices = Nvml()
    assert capacity(devices).gpus == () and devices.used_bytes() == {} and devices.free_bytes() == {}


def test_without_the_package_no_gpu_is_found_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Nvml().gpus() == () and "nvidia-ml-py is not installed" in caplog.text
