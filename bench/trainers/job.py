"""A job: what one process does, handed over as a file.

A process for each, because memory that one trainer's allocator holds, kernels it has compiled and functions it has
patched would all be the next one's.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.artifacts import write_json
from trainers.variants import Variant
from trainers.workload import Workload


@dataclass(frozen=True)
class Job:
    """What is to be done, and in which folder."""

    folder: Path
    """The job's own: everything it makes lies there."""
    task: str
    """`prepare`, `speed`, `extrapolate` or `losses`."""
    workload: Workload
    work: Path
    """Where the base lies, or is to be made."""
    base_dir: Path | None = None
    variant: Variant | None = None

    def write(self) -> None:
        """Leave it for the process that does it."""
        write_json(self.folder / "job.json", dataclasses.asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Job:
        """What `write` left."""
        values = json.loads((folder / "job.json").read_text())
        base_dir, variant = values["base_dir"], values["variant"]
        return cls(
            folder,
            values["task"],
            Workload(**values["workload"]),
            Path(values["work"]),
            Path(base_dir) if base_dir else None,
            Variant(**variant) if variant else None,
        )

    @property
    def result(self) -> Path:
        """The file that is there once the job is done."""
        return self.folder / "result.json"


def prepare(job: Job) -> dict[str, Any]:
    """Make the base; say what the machine is, what it can do at most, and what a token costs."""
    from trainers import gauge
    from trainers.workload import flops_per_token, make_base

    if gauge.device() == "cpu" and job.workload.shape != "tiny":
        raise SystemExit("there is no GPU here; a dry run on the CPU: --shape tiny")
    base_dir = make_base(job.work, job.workload, gauge.device())
    loads = [dataclasses.replace(job.workload, loss_on=loss_on) for loss_on in ("all", "assistant")]
    return {
        "base_dir": str(base_dir),
        "machine": gauge.machine(),
        "versions": gauge.versions(),
        "flops_per_token": {load.loss_on: flops_per_token(base_dir, load.rows()) for load in loads},
        "ceiling": gauge.ceiling(),
    }


def do(job: Job) -> dict[str, Any]:
    """The job's result."""
    if job.task == "prepare":
        return prepare(job)
    assert job.variant is not None
    if job.variant.trainer == "puna":
        from trainers import with_puna

        return with_puna.TASKS[job.task](job)
    from trainers import with_trl

    return with_trl.TRAINERS[job.variant.trainer](job)
