"""Stands in for nvidia-ml-py: devices from `$FAKE_GPUS/devices.json`, processes from one file each beside it."""

import json
import os
from pathlib import Path
from types import SimpleNamespace


class NVMLError(Exception):
    """There is no driver."""


def _folder() -> Path:
    if "FAKE_GPUS" not in os.environ:
        raise NVMLError("NVML Shared Library Not Found")
    return Path(os.environ["FAKE_GPUS"])


def _used(index: int) -> dict[int, int]:
    found: dict[int, int] = {}
    for path in _folder().glob("*.pid"):
        if Path("/proc", path.stem).exists():  # a driver takes the memory of the dead back
            size = json.loads(path.read_text() or "{}").get(str(index), 0)
            found |= {int(path.stem): size} if size else {}
    return found


def nvmlInit() -> None:
    _folder()


def nvmlDeviceGetCount() -> int:
    return len(json.loads((_folder() / "devices.json").read_text()))


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlDeviceGetName(index: int) -> str:
    return str(json.loads((_folder() / "devices.json").read_text())[index]["name"])


def nvmlDeviceGetMemoryInfo(index: int) -> SimpleNamespace:
    total = json.loads((_folder() / "devices.json").read_text())[index]["memory_bytes"]
    return SimpleNamespace(total=total, free=total - sum(_used(index).values()))


def nvmlDeviceGetComputeRunningProcesses(index: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in _used(index).items()]


def nvmlDeviceGetMPSComputeRunningProcesses(_: int) -> list[SimpleNamespace]:
    raise NVMLError("Not Supported")
