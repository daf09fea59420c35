"""This machine: its cores, its memory, and NVIDIA devices as their driver's library (NVML) shows them."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from puna.backends.base import Capacity, GpuDevice

LOG = logging.getLogger("puna.devices")


class Devices(Protocol):
    """The part of a driver that Puna asks."""

    def gpus(self) -> tuple[GpuDevice, ...]:
        """The devices, by index."""

    def free_bytes(self) -> Mapping[int, int]:
        """Unused memory of each."""

    def used_bytes(self) -> Mapping[int, Mapping[int, int]] | None:
        """By device, then by process id; None where the driver does not tell."""


class Nvml:
    """The library of the installed driver, opened once; a machine without one has no devices."""

    def __init__(self) -> None:
        """Nothing is opened yet."""
        self._lock = threading.Lock()
        self._library: Any = None
        self._is_there: bool | None = None

    def gpus(self) -> tuple[GpuDevice, ...]:
        """The devices, by index."""
        return tuple(
            GpuDevice(index, str(self._library.nvmlDeviceGetName(handle)), self._memory(handle).total)
            for index, handle in self._handles()
        )

    def free_bytes(self) -> Mapping[int, int]:
        """Unused memory of each."""
        return {index: int(self._memory(handle).free) for index, handle in self._handles()}

    def used_bytes(self) -> Mapping[int, Mapping[int, int]] | None:
        """By device, then by process id; None where the driver does not tell."""
        found: dict[int, dict[int, int]] = {}
        for index, handle in self._handles():
            mine = found.setdefault(index, {})
            # Clients of an MPS daemon stand in a list of their own with some drivers, in both with others.
            for name in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetMPSComputeRunningProcesses"):
                for process in self._ask(getattr(self._library, name), handle):
                    if process.usedGpuMemory is None:
                        return None
                    mine[process.pid] = max(mine.get(process.pid, 0), int(process.usedGpuMemory))
        return found

    def _ask(self, function: Callable[[Any], list[Any]], handle: Any) -> list[Any]:
        try:
            return function(handle)
        except self._library.NVMLError:  # an older driver lacks the list of MPS clients
            return []

    def _memory(self, handle: Any) -> Any:
        return self._library.nvmlDeviceGetMemoryInfo(handle)

    def _handles(self) -> list[tuple[int, Any]]:
        if not self._open():
            return []
        count = self._library.nvmlDeviceGetCount()
        return [(index, self._library.nvmlDeviceGetHandleByIndex(index)) for index in range(count)]

    def _open(self) -> bool:
        with self._lock:
            if self._is_there is None:
                try:
                    import pynvml

                    pynvml.nvmlInit()
                    self._library, self._is_there = pynvml, True
                except ImportError:
                    LOG.warning("no GPU is looked for: nvidia-ml-py is not installed (`pip install puna[server]`)")
                    self._is_there = False
                except pynvml.NVMLError as error:
                    LOG.info("no GPU: %s", error)
                    self._is_there = False
            return self._is_there


NVML = Nvml()
"""This machine's."""


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
