"""Ends whoever takes another's part of a GPU: what the driver says each process uses, held against its replica's share.

Libraries are told of the share (backends/shares.py) and keep to it; this is for those that do not. Every two seconds,
in a thread of its own: a driver may take its time to answer.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from puna.backends import guards
from puna.backends.devices import Devices
from puna.home import Home
from puna.process.tree import Process, descendants, stat

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
                told = guards.ask(path, {"command": "status"})
                if told is None or not told.get("share") or told["phase"] == "exited":
                    continue
                mine = of_tree(used or {}, descendants(told["pid"], quick=True))
                use[path.stem] = sum(mine.values())
                why = excess(told["share"], mine)
                if why:
                    LOG.warning("%s is ended: it %s", path.stem, why)
                    guards.ask(path, {"command": "end", "why": why})
                    ended[path.stem] = why
        self._use = use
        return ended


def is_foreign(used: Used) -> bool:
    """The process ids are of another namespace: somebody uses a GPU, and nobody listed is there."""
    pids = {pid for processes in used.values() for pid in processes}
    return bool(pids) and not any(map(stat, pids))


def of_tree(used: Used, processes: Iterable[Process]) -> dict[int, int]:
    """GPU -> bytes that these processes use together."""
    mine = {one.pid for one in processes}
    sums = {gpu: sum(size for pid, size in processes.items() if pid in mine) for gpu, processes in used.items()}
    return {gpu: size for gpu, size in sums.items() if size}


def excess(share: Mapping[str, Any], mine: Mapping[int, int]) -> str:
    """What of a GPU is taken that is not its own; empty when nothing is."""
    for gpu, size in mine.items():
        own = share["gpu_bytes"] if str(gpu) == share["gpu"] else 0
        if size > own:
            what = "half" if share["gpu_fraction"] == 0.5 else "share"
            of = f"of its {own / 2**30:.1f} GiB {what} of GPU {gpu}" if own else f"of GPU {gpu}, which is not its own"
            return f"used {size / 2**30:.1f} GiB {of}"
    return ""
