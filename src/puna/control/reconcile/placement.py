"""Where a replica fits: GPU slots (1.0 a whole GPU, 0.5 a half), and the reason when it fits nowhere. No I/O."""

from __future__ import annotations

from collections.abc import Iterable

from puna.backends.base import Capacity
from puna.control.domain.records import Replica, Revision
from puna.control.reconcile import sleep
from puna.control.reconcile.sleep import Sleepers

CPU = ""
NEAR_ZERO = 1e-6
# Weights are counted as if an app loaded them in 4 bits: the least that any app does. What does not fit so never fits.
LEAST_BITS_SHARE = 0.25


class Room:
    """A machine's GPUs and what is taken of them; `take` books, so that one plan does not give a slot twice."""

    def __init__(
        self, capacity: Capacity, replicas: Iterable[Replica], reserved: Iterable[tuple[str, float]] = ()
    ) -> None:
        self._capacity = capacity
        self._free = {str(gpu.index): 1.0 for gpu in capacity.gpus}
        for gpu, share in [*((r.gpu, r.fraction) for r in replicas), *reserved]:
            if gpu in self._free:
                self._free[gpu] -= share

    def never(self, revision: Revision) -> str:
        """Why this machine can never run a revision, or an empty text."""
        least = int(revision.weights_bytes * LEAST_BITS_SHARE)
        if self._on_gpu(revision):
            share = revision.settings.gpu_fraction
            largest = max(gpu.memory_bytes for gpu in self._capacity.gpus) * share
            what = "the largest GPU" if share == 1.0 else "half of the largest GPU"
            if largest and least > largest:
                return f"its models need at least {_gib(least)} even in 4 bits, {what} here has {_gib(largest)}"
        elif self._capacity.memory_bytes and least > self._capacity.memory_bytes:
            memory = _gib(self._capacity.memory_bytes)
            return f"its models need at least {_gib(least)} even in 4 bits, this machine has {memory} of memory"
        return ""

    def take(self, revision: Revision) -> str | None:
        """Book a place: the GPU's index, an empty text for the CPU, None when everything is taken.

        The fullest GPU that still has room: halves share a GPU, so that whole ones stay free.
        """
        if not self._on_gpu(revision):
            return CPU
        share = revision.settings.gpu_fraction
        fitting = [(free, index) for index, free in self._free.items() if free + NEAR_ZERO >= share]
        if not fitting:
            return None
        _, index = min(fitting)
        self._free[index] -= share
        return index

    def to_evict(self, share: float, sleepers: Sleepers) -> list[Replica] | None:
        """Which replicas that sleep must go so that `take` will find so much of a GPU.

        Empty when what leaves already is enough; None when that and all that sleep are not.
        """
        return sleep.to_evict(share - NEAR_ZERO, self._free, sleepers.leaving, sleepers.evictable)

    def shortage(self, revision: Revision) -> str:
        """What is missing when `take` gave None."""
        wanted = "a whole GPU" if revision.settings.gpu_fraction == 1.0 else "half a GPU"
        free = ", ".join(f"GPU {index} has {max(free, 0):.2g} free" for index, free in sorted(self._free.items()))
        return f"it needs {wanted}, and {free}"

    def _on_gpu(self, revision: Revision) -> bool:
        # A named GPU type is what the author had, not a condition: without any GPU the app runs on the CPU.
        return revision.settings.needs_gpu and bool(self._free)


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
