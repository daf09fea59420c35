"""The share of a machine that one replica may use: computed, told to its libraries, and enforced on GPUs.

A whole GPU comes with its part of the machine, 1/N of the cores and the memory where there are N GPUs; a half comes
with exactly half of that. What is asked for by number wins.

Libraries are told of the share and keep to it; who takes another's part of a GPU all the same, by what the driver says,
is ended. That is looked at every two seconds in a thread of its own: a driver may take its time to answer.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.backends import guards
from puna.backends.base import Capacity, Launch
from puna.backends.machine import Devices
from puna.home import Home
from puna.process.tree import Process, descendants, stat

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
        """The part that a guard keeps, so that the next control plane knows it."""
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
    fixed, defaults = {"CUDA_VISIBLE_DEVICES": share.gpu}, {}
    if share.gpu:
        fixed["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # CUDA's own order is by speed; the index is the driver's
    if share.cores or share.threads:
        defaults["OMP_NUM_THREADS"] = str(share.cores or share.threads)
    if share.threads:
        # OpenMP's threads wait for each other by spinning, each step of a model many times: where a core is somebody
        # else's meanwhile, that costs all of its time. 32 tokens, two threads, a busy machine: 62 s; asleep: 1.5 s.
        defaults["OMP_WAIT_POLICY"] = "PASSIVE"
    if share.cores:
        fixed["PUNA_CORES"] = ",".join(map(str, cores))  # empty where nobody is to be told apart
    if share.is_part:
        fixed["PUNA_GPU_FRACTION"] = f"{share.gpu_fraction:g}"
        fixed["PUNA_GPU_TORCH_FRACTION"] = f"{share.torch_fraction:.6f}"
        # JAX takes three quarters of a GPU at once unless told, TensorFlow all of it.
        defaults["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{share.torch_fraction * 0.75:.4f}"
        defaults["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
        defaults["CUPY_GPU_MEMORY_LIMIT"] = f"{share.torch_fraction:.2%}"
        fixed |= mps(share)
    return {**defaults, **own, **fixed}


def mps(share: ResourceShare) -> dict[str, str]:
    """Variables for a client of the machine's MPS daemon, where one runs: then the driver itself holds it to its share.

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
    """The cores that each replica is held to; known again after a restart, from the processes themselves."""

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


LOG = logging.getLogger("puna.watch")
LOOK_EVERY_S = 2.0
DRIVERS_OWN_BYTES = 2 * 2**30  # an idle GPU has some hundred MiB in use
BLIND = (
    "the driver does not tell this process who uses a GPU's memory (a container with process ids of its own?): shares "
    "of a GPU are held by what torch, vLLM and MPS are told, and nobody is ended for more; docker: --pid=host"
)

Used = Mapping[int, Mapping[int, int]]
"""GPU -> process id -> bytes."""


class GpuEnforcer:
    """Over the guards of a home; remembers the last look only."""

    def __init__(self, home: Home, devices: Devices) -> None:
        """Nothing is looked at yet."""
        self._home, self._devices = home, devices
        self.is_blind = False
        """The driver does not say which process uses what."""
        self._use: Mapping[str, int] = {}

    def run(self, stop: threading.Event) -> None:
        """Look until `stop`; returns at once on a machine without GPUs."""
        while self._devices.gpus() and not stop.wait(LOOK_EVERY_S):
            try:
                self.look()
            except Exception:  # the log has it, and the loop goes on: the driver may answer the next time
                LOG.exception("a look at the GPUs failed")

    def use(self) -> Mapping[str, int]:
        """Replica -> bytes of GPU memory that it used at the last look."""
        return self._use

    def _is_hidden(self, used: Used) -> bool:
        """A GPU is well used, and the driver lists nobody."""
        free = self._devices.free_bytes()
        taken = {gpu.index: gpu.memory_bytes - free.get(gpu.index, 0) for gpu in self._devices.gpus()}
        return any(size > DRIVERS_OWN_BYTES and not used.get(gpu) for gpu, size in taken.items())

    def look(self) -> dict[str, str]:
        """One look; whom it ended, and why."""
        used = self._devices.used_bytes()
        was_blind, self.is_blind = self.is_blind, used is None or is_foreign(used) or self._is_hidden(used)
        if self.is_blind and not was_blind:
            LOG.warning(BLIND)
        use, ended = {}, {}
        for path in sorted(self._home.sockets.glob("*.guard")):
            with contextlib.suppress(TimeoutError):  # one that is too busy is looked at the next time
                status = guards.ask(path, {"command": "status"})
                if status is None or not status.get("share") or status["phase"] == "exited":
                    continue
                mine = used_by(used or {}, descendants(status["pid"], quick=True))
                use[path.stem] = sum(mine.values())
                why = gpu_excess(status["share"], mine)
                if why:
                    LOG.warning("%s is ended: it %s", path.stem, why)
                    guards.ask(path, {"command": "end", "why": why})
                    ended[path.stem] = why
        self._use = use
        return ended


def is_foreign(used: Used) -> bool:
    """True when the process ids are of another namespace: somebody uses a GPU, and nobody listed is there."""
    pids = {pid for processes in used.values() for pid in processes}
    return bool(pids) and not any(map(stat, pids))


def used_by(used: Used, processes: Iterable[Process]) -> dict[int, int]:
    """GPU -> bytes that these processes use together."""
    mine = {one.pid for one in processes}
    sums = {gpu: sum(size for pid, size in processes.items() if pid in mine) for gpu, processes in used.items()}
    return {gpu: size for gpu, size in sums.items() if size}


def gpu_excess(share: Mapping[str, Any], mine: Mapping[int, int]) -> str:
    """The reason to end a replica that takes what is not its own of a GPU; empty when it does not."""
    for gpu, size in mine.items():
        own = share["gpu_bytes"] if str(gpu) == share["gpu"] else 0
        if size > own:
            what = "half" if share["gpu_fraction"] == 0.5 else "share"
            of = f"of its {own / 2**30:.1f} GiB {what} of GPU {gpu}" if own else f"of GPU {gpu}, which is not its own"
            return f"used {size / 2**30:.1f} GiB {of}"
    return ""
