"""The interface of a place that runs replicas: start, stop, list, and its capacity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from puna.config.settings import DEFAULTS


class Phase(StrEnum):
    """State of a replica's process as a backend sees it."""

    STARTING = "starting"
    """The process runs; `initialize` has not ended."""
    READY = "ready"
    EXITED = "exited"
    """The process has ended and so have its descendants; `exit_code`, `reason` and `last_lines` say why."""


@dataclass(frozen=True)
class Launch:
    """Everything needed to start one replica. Handed over whole, never read from elsewhere."""

    replica_id: str
    python: Path
    """The interpreter of the runtime's environment."""
    app: Path
    """The writable working copy of the app's folder; the worker's working directory."""
    socket: Path
    """The worker's listening socket."""
    log: Path
    """The file that takes the worker's stdout and stderr, appended."""
    env: Mapping[str, str] = field(default_factory=dict)
    """The whole environment of the app: nothing of Puna's own leaks in."""
    gpu: str = ""
    """`CUDA_VISIBLE_DEVICES`; empty for none."""
    gpu_fraction: float = 1.0
    """Of the GPU, and of the machine's part that comes with it (backends/shares.py)."""
    vcpu: float = 0.0
    """Cores; 0: those of its share."""
    memory_bytes: int = 0
    """Host memory that it may have; 0: that of its share."""
    concurrency: int = 0
    """Threads that run `infer`; 0 lets the worker choose."""
    inference_time_s: float = DEFAULTS.inference_time_s
    startup_timeout_s: float = DEFAULTS.startup_timeout_s
    warm: str = ""
    """The zygote that it may be forked from: one name for each bundle and environment; empty for none."""
    mounts: Mapping[str, str] = field(default_factory=dict)
    """Path -> folder that only this process sees there (process/namespace.py)."""


@dataclass(frozen=True)
class Observed:
    """One replica as the backend sees it now."""

    replica_id: str
    phase: Phase
    pid: int = 0
    exit_code: int | None = None
    reason: str = ""
    last_lines: tuple[str, ...] = ()
    ready_s: float | None = None
    """Seconds from start to ready, once ready."""
    schema: Mapping[str, object] = field(default_factory=dict)
    """The worker's own description of its inputs and concurrency (protocol.HELLO), once ready."""

    @property
    def born(self) -> str:
        """`zygote` when it was forked, `spawn` when it began afresh; empty until its worker has said so."""
        return str(self.schema.get("born") or "")

    @property
    def is_asleep(self) -> bool:
        """It has said that it sleeps, or is waking."""
        return self.schema.get("tier") == "asleep"

    @property
    def can_sleep(self) -> bool:
        """Its app can give memory back, and has not failed to."""
        return bool(self.schema.get("can_sleep"))


@dataclass(frozen=True)
class Zygote:
    """A process with an app's imports done, as the backend sees it now."""

    name: str
    phase: Phase
    pid: int = 0
    reason: str = ""
    """The reason why it has exited."""
    refused: bool = False
    """It has exited because an import makes forks unsafe: another one would do the same."""
    memory_bytes: int = 0


@dataclass(frozen=True)
class Capacity:
    """The room of a machine."""

    cpus: int
    memory_bytes: int
    gpus: tuple[GpuDevice, ...] = ()


@dataclass(frozen=True)
class GpuDevice:
    """One device."""

    index: int
    name: str
    memory_bytes: int


class Backend(Protocol):
    """A place that runs replicas. Calls return at once; what came of them is seen in `list`."""

    def capacity(self) -> Capacity:
        """The room there is, used or not."""

    def start(self, launch: Launch) -> None:
        """Begin to start a replica; the same id twice starts one."""

    def sleep(self, replica_id: str) -> None:
        """Ask a ready replica to sleep; what came of it is seen in `list`. An unknown id is fine."""

    def wake(self, replica_id: str) -> None:
        """Ask a replica that sleeps to wake; an unknown id is fine."""

    def stop(self, replica_id: str, grace_s: float) -> None:
        """Drain, finalize, then end the process tree after `grace_s` at the latest; an unknown id is fine."""

    def list(self) -> list[Observed]:
        """Every replica that this backend started and nobody has forgotten, survivors of a restart included."""

    def forget(self, replica_id: str) -> None:
        """Drop what is remembered of a replica that has exited."""

    def warm(self, launch: Launch) -> None:
        """Begin the zygote `launch.warm`, which later launches of that name are forked from; twice begins one."""

    def cool(self, name: str) -> None:
        """End a zygote and forget it, whatever state it is in; its forks go on. An unknown name is fine."""

    def zygotes(self) -> tuple[Zygote, ...]:
        """Every zygote that this backend began and nobody has cooled, survivors of a restart included."""
