"""What this machine has: cores, memory, NVIDIA devices."""

from __future__ import annotations

import os
from pathlib import Path

from puna.backends.base import Capacity
from puna.backends.devices import NVML, Devices


def capacity(devices: Devices = NVML) -> Capacity:
    """The cores this process may use, the memory it may use, and the devices that the driver lists."""
    return Capacity(len(os.sched_getaffinity(0)), _memory_bytes(), devices.gpus())


def _memory_bytes() -> int:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical
