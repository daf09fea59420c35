"""Load for a long time, and the memory of every Puna process meanwhile."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers.contenders import Puna
from servers.load import wrk

EVERY_S = 10.0
SKIPPED = 0.2
"""The first fifth is warm-up: allocators fill their pools, and tables grow to their bounds."""


@dataclass
class Memory:
    """The resident bytes of a family of processes, over time."""

    puna: Puna

    def __post_init__(self) -> None:
        self.seen: dict[str, list[tuple[float, int]]] = {}
        self._began = time.monotonic()

    def look(self) -> None:
        """Note everybody's resident memory now."""
        now = time.monotonic() - self._began
        for name, pid in self.puna.processes().items():
            with contextlib.suppress(OSError):
                self.seen.setdefault(name, []).append((round(now, 1), resident_bytes(pid)))

    def grown(self) -> dict[str, dict[str, Any]]:
        """For each process its first and last figures, and least-squares slopes after the warm-up and at the end.

        A pool that fills in steps has a slope; what leaks has it in the last third too.
        """
        found = {}
        for name, points in self.seen.items():
            kept = points[int(len(points) * SKIPPED) :]
            if len(kept) > 1:
                found[name] = {
                    "mib_at_first": kept[0][1] / 2**20,
                    "mib_at_last": kept[-1][1] / 2**20,
                    "mib_at_most": max(size for _, size in kept) / 2**20,
                    "kib_per_minute": slope(kept) * 60 / 1024,
                    "kib_per_minute_last_third": slope(points[-max(len(points) // 3, 2) :]) * 60 / 1024,
                    "points": points,
                }
        return found


def soak(puna: Puna, minutes: float, connections: int) -> dict[str, Any]:
    """Drive it for so long, looking every ten seconds; what was served and what grew."""
    memory, served, stop = Memory(puna), list[dict[str, Any]](), threading.Event()

    def drive() -> None:
        end = time.monotonic() + minutes * 60
        try:
            while (left := end - time.monotonic()) > 1:
                served.append(wrk(puna.target, connections, min(left, 60)))
        finally:
            stop.set()

    driver = threading.Thread(target=drive)
    driver.start()
    while not stop.wait(EVERY_S):
        memory.look()
    driver.join()
    total = sum(one["requests"] for one in served)
    seconds = sum(one["seconds"] for one in served)
    if not served or seconds < minutes * 60 * 0.9:
        raise RuntimeError(f"the load ended after {seconds:.0f} s of {minutes * 60:.0f}")
    return {
        "minutes": minutes,
        "connections": connections,
        "requests": total,
        "requests_per_s": total / seconds,
        "p99_ms_worst_minute": max(one["p99_ms"] for one in served),
        "processes": memory.grown(),
    }


def slope(points: list[tuple[float, int]]) -> float:
    """Least squares: units of the second per unit of the first."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
