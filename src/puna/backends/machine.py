"""What this machine has: cores, memory, NVIDIA devices."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from puna.backends.base import Capacity, Gpu

NVIDIA_SMI_TIMEOUT_S = 20  # a driver that wakes up takes seconds
QUERY = ("--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits")


def capacity() -> Capacity:
    """The cores this process may use, the memory it may use, and the devices that nvidia-smi lists."""
    return Capacity(len(os.sched_getaffinity(0)), _memory_bytes(), _gpus())


def _memory_bytes() -> int:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical


def _gpus() -> tuple[Gpu, ...]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        run = subprocess.run([program, *QUERY], capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return read_gpus(run.stdout) if run.returncode == 0 else ()


def read_gpus(csv: str) -> tuple[Gpu, ...]:
    """Devices from lines such as `0, NVIDIA H200, 143771` (MiB); a line that is none is left out."""
    found = []
    for line in csv.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 3 and parts[0].isdigit() and parts[2].isdigit():
            found.append(Gpu(int(parts[0]), parts[1], int(parts[2]) * 2**20))
    return tuple(found)
