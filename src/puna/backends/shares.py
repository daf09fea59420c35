"""What one replica may use of a machine, and the environment that tells it so: GPU memory, cores, host memory.

A whole GPU comes with its part of the machine, 1/N of the cores and the memory where there are N GPUs; a half comes
with exactly half of that. What is asked for by number wins.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.backends.base import Capacity, Launch

# What CUDA has for itself in each process (its context, loaded kernels) is not torch's to count: half a GiB or so.
CUDA_RESERVE_BYTES = 2**30
CUDA_RESERVE_PART = 1 / 16
"""Of a small share, no more than this is set aside."""
MPS_FOLDER = "/tmp/nvidia-mps"


@dataclass(frozen=True)
class ResourceShare:
    """The limits of one replica."""

    gpu: str = ""
    """The device's index; empty for none."""
    gpu_bytes: int = 0
    gpu_fraction: float = 1.0
    gpu_total_bytes: int = 0
    cores: int = 0
    """0: all."""
    threads: int = 0
    """Of all cores, those that are fair beside the other replicas; 0: not said."""
    memory_bytes: int = 0
    """0: all, and the kernel sees to it."""

    @property
    def is_part(self) -> bool:
        """Somebody else may use the same GPU."""
        return bool(self.gpu_bytes) and self.gpu_fraction < 1

    @property
    def torch_fraction(self) -> float:
        """The part of the whole GPU that torch's allocator may have, so that the process stays within its share."""
        reserve = min(CUDA_RESERVE_BYTES, self.gpu_bytes * CUDA_RESERVE_PART)
        return (self.gpu_bytes - reserve) / self.gpu_total_bytes

    def as_dict(self) -> dict[str, Any]:
        """What a guard keeps, so that the next control plane knows it."""
        return {"gpu": self.gpu, "gpu_bytes": self.gpu_bytes, "gpu_fraction": self.gpu_fraction}


def of(launch: Launch, capacity: Capacity, replicas: int = 0) -> ResourceShare:
    """The share that a launch asks for; `replicas`: how many the machine has with this one, 0 where nobody says."""
    gpu = next((gpu for gpu in capacity.gpus if str(gpu.index) == launch.gpu), None)
    part = launch.gpu_fraction / (max(1, len(capacity.gpus)) if launch.gpu else 1)
    cores = launch.vcpu or (capacity.cpus * part if part < 1 else 0)
    memory = launch.memory_bytes or (int(capacity.memory_bytes * part) if part < 1 else 0)
    held = min(max(1, round(cores)), capacity.cpus) if 0 < cores < capacity.cpus else 0
    return ResourceShare(
        gpu=launch.gpu,
        gpu_bytes=int(gpu.memory_bytes * launch.gpu_fraction) if gpu else 0,
        gpu_fraction=launch.gpu_fraction,
        gpu_total_bytes=gpu.memory_bytes if gpu else 0,
        cores=held,
        threads=max(1, capacity.cpus // replicas) if replicas and not launch.gpu and not held else 0,
        memory_bytes=memory if memory < capacity.memory_bytes else 0,
    )


def environment(share: ResourceShare, own: Mapping[str, str], cores: Iterable[int] = ()) -> dict[str, str]:
    """The whole environment of a replica: the app's `own`, and what tells libraries of the share.

    What the app says of its own threads and of other engines' memory is left as it says.
    """
    told, wished = {"CUDA_VISIBLE_DEVICES": share.gpu}, {}
    if share.gpu:
        told["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # CUDA's own order is by speed; the index is the driver's
    if share.cores or share.threads:
        wished["OMP_NUM_THREADS"] = str(share.cores or share.threads)
    if share.threads:
        # OpenMP's threads wait for each other by spinning, each step of a model many times: where a core is somebody
        # else's meanwhile, that costs all of its time. 32 tokens, two threads, a busy machine: 62 s; asleep: 1.5 s.
        wished["OMP_WAIT_POLICY"] = "PASSIVE"
    if share.cores:
        told["PUNA_CORES"] = ",".join(map(str, cores))  # empty where nobody is to be told apart
    if share.is_part:
        told["PUNA_GPU_FRACTION"] = f"{share.gpu_fraction:g}"
        told["PUNA_GPU_TORCH_FRACTION"] = f"{share.torch_fraction:.6f}"
        # JAX takes three quarters of a GPU at once unless told, TensorFlow all of it.
        wished["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{share.torch_fraction * 0.75:.4f}"
        wished["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
        wished["CUPY_GPU_MEMORY_LIMIT"] = f"{share.torch_fraction:.2%}"
        told |= mps(share)
    return {**wished, **own, **told}


def mps(share: ResourceShare) -> dict[str, str]:
    """What a client of the machine's MPS daemon is told, where one runs: then the driver itself holds it to its share.

    Puna starts none: a client that is killed while the GPU works for it, as guards kill, may take the daemon's other
    clients along.
    """
    folder = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", MPS_FOLDER)
    try:
        pid = int(Path(folder, "nvidia-cuda-mps-control.pid").read_text())
        os.kill(pid, 0)
    except PermissionError:  # another user's daemon: it may serve us all the same
        pass
    except (OSError, ValueError):
        return {}
    return {
        "CUDA_MPS_PIPE_DIRECTORY": folder,
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": f"0={share.gpu_bytes >> 20}M",
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": f"{share.gpu_fraction * 100:.0f}",
    }


class Cores:
    """Which cores each replica is held to; known again after a restart, from the processes themselves."""

    def __init__(self) -> None:
        self._given: dict[str, frozenset[int]] = {}

    def choose(self, replica_id: str, count: int, running: Mapping[str, int]) -> list[int]:
        """The `count` cores that fewest others are held to; `running`: replica -> process id."""
        mine = os.sched_getaffinity(0)
        self._given = {name: cores for name, cores in self._given.items() if name in running}
        load = dict.fromkeys(sorted(mine), 0)
        for name, pid in running.items():
            held = self._given.get(name) or _held(pid)
            if held < mine:  # one that has all cores prefers none
                for core in held & load.keys():
                    load[core] += 1
        chosen = sorted(sorted(load, key=lambda core: (load[core], core))[:count])
        self._given[replica_id] = frozenset(chosen)
        return chosen


def _held(pid: int) -> frozenset[int]:
    with contextlib.suppress(OSError):
        if pid:
            return frozenset(os.sched_getaffinity(pid))
    return frozenset()
