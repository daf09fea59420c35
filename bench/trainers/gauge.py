"""What is measured: the time of each step, real tokens a second, peak memory, the machine and its bf16 ceiling."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import resource
import statistics
import subprocess
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

PACKAGES = ("torch", "triton", "transformers", "trl", "peft", "bitsandbytes", "unsloth", "flash-attn-4")
CEILING_S = {"cuda": 3.0, "cpu": 0.5}
"""After about a second a large chip is at its power limit; the later half is what it sustains."""
CEILING_SIZE = {"cuda": 8192, "cpu": 768}
PRODUCTS = 10
"""Products between two looks at the clock, so that waiting for the device costs nothing measurable."""


def device() -> str:
    """`cuda` where there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class Clock:
    """Marks the end of every optimiser step, without making anybody wait for the device.

    On a GPU the marks are events in its queue: a trainer that keeps the next step queued is not slowed by being
    measured, and one that waits after each step gets the same figures from them as from a clock.
    """

    def __init__(self) -> None:
        """Begins now, and leaves it to the trainer to be the first on the device."""
        self.began, self.first_s = time.perf_counter(), 0.0
        self.marks: list[Any] = []

    def tick(self) -> None:
        """All work of a step has been handed to the device."""
        self.marks.append(self._mark())
        if len(self.marks) == 1:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.first_s = time.perf_counter() - self.began

    def _mark(self) -> Any:
        if not torch.cuda.is_available():
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    @cached_property
    def seconds(self) -> list[float]:
        """What each step took; the first with all that came before it: loading, preparing, compiling."""
        pairs = zip(self.marks, self.marks[1:], strict=False)
        if not torch.cuda.is_available():
            return [self.first_s, *(end - start for start, end in pairs)]
        torch.cuda.synchronize()
        return [self.first_s, *(start.elapsed_time(end) / 1e3 for start, end in pairs)]

    def steps(self, tokens: Sequence[int]) -> list[dict[str, float]]:
        """Each step after the first with its real tokens and its seconds."""
        spans = list(zip(tokens, self.seconds, strict=False))[1:]
        return [{"step": at + 2, "tokens": n, "seconds": round(s, 6)} for at, (n, s) in enumerate(spans)]


def tokens_of_steps(rows: Sequence[Sequence[Any]], rows_per_step: int) -> list[int]:
    """Real tokens of each step, where rows are taken in order."""
    lengths = [len(row[0]) for row in rows]
    return [sum(lengths[at : at + rows_per_step]) for at in range(0, len(lengths), rows_per_step)]


def speed(clock: Clock, tokens: Sequence[int], warm: int) -> dict[str, Any]:
    """The figures of a run, its warm-up left out."""
    steps = clock.steps(tokens)
    measured = [step for step in steps if step["step"] > warm]
    seconds = sum(step["seconds"] for step in measured)
    return {
        "tokens_per_s": sum(step["tokens"] for step in measured) / seconds,
        "seconds_per_step": seconds / len(measured),
        "median_seconds_per_step": statistics.median(step["seconds"] for step in measured),
        "steps_measured": len(measured),
        "start_s": round(clock.seconds[0], 3),
        "steps": measured,
        "warm_up": [step for step in steps if step["step"] <= warm],
    } | peaks()


def peaks() -> dict[str, int | None]:
    """The most memory this process had: by torch's allocator on a GPU, resident on a CPU."""
    if torch.cuda.is_available():
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return {"peak_allocated_bytes": allocated, "peak_reserved_bytes": reserved}
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak_allocated_bytes": resident, "peak_reserved_bytes": None}


def ceiling() -> dict[str, Any]:
    """FLOP/s of a square bf16 product on random data, sustained; float32 on a CPU, which may only emulate bf16."""
    where = device()
    size, dtype = CEILING_SIZE[where], torch.bfloat16 if where == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=where, dtype=dtype) for _ in range(2))
    out, rates = torch.empty_like(a), []
    begin = time.perf_counter()
    while (started := time.perf_counter()) - begin < CEILING_S[where]:
        for _ in range(PRODUCTS):
            torch.mm(a, b, out=out)
        if where == "cuda":
            torch.cuda.synchronize()
        rates.append(PRODUCTS * 2 * size**3 / (time.perf_counter() - started))
    later = rates[len(rates) // 2 :]
    return {
        "flops_per_s": statistics.median(later),
        "first_flops_per_s": max(rates[: max(1, len(rates) // 10)]),
        "size": size,
        "dtype": str(dtype).removeprefix("torch."),
        "seconds": CEILING_S[where],
    }


def versions() -> dict[str, str | None]:
    """What is installed; None for what is not."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def machine() -> dict[str, Any]:
    """The device and what surrounds it."""
    found: dict[str, Any] = {"cpu_cores": len(os.sched_getaffinity(0)), "system": platform.platform()}
    found["memory_bytes"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if not torch.cuda.is_available():
        return found | {"name": f"CPU, {found['cpu_cores']} cores", "slug": "cpu"}
    gpu = torch.cuda.get_device_properties(0)
    return found | {
        "name": gpu.name,
        "slug": re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-"),
        "gpu_memory_bytes": gpu.total_memory,
        "capability": f"{gpu.major}.{gpu.minor}",
        "multiprocessors": gpu.multi_processor_count,
        "cuda": torch.version.cuda,
        "driver_and_power_limit": _asked("driver_version,power.limit"),
    }


def _asked(fields: str) -> str | None:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "--id=0"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    return None
