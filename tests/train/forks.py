"""Processes that train, forked from one that has torch and the trainer imported: longer work than a tiny run's."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "puna.train.run",
        "torch.distributed.nn.functional",
        "torch._dynamo",  # by the first step of an optimiser
        "transformers.models.llama.modeling_llama",
        "bitsandbytes",
        "matplotlib.pyplot",
    ]
)


class Forks:
    """The processes of one run; a single one trains alone, several are ranks as torchrun makes them."""

    def __init__(self, log: Path, given: Sequence[Any], world: int = 1) -> None:
        self._log = log
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if world > 1 else None
        places = [self._place(rank, world) for rank in range(world)]
        self.processes = [CONTEXT.Process(target=_become, args=(place, str(log), given)) for place in places]
        for process in self.processes:
            process.start()

    def _place(self, rank: int, world: int) -> dict[str, str]:
        if self._store is None:
            return {}
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "TORCHELASTIC_RESTART_COUNT": 0}
        agent = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self._store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
        return {name: str(value) for name, value in (place | agent).items()}

    @property
    def said(self) -> str:
        """What they wrote so far."""
        return self._log.read_text() if self._log.exists() else ""

    def running(self) -> bool:
        """All of them."""
        return all(process.exitcode is None for process in self.processes)

    def wait(self, timeout_s: float) -> list[int]:
        """The exit codes, in the order of ranks."""
        for process in self.processes:
            process.join(timeout_s)
        codes = [process.exitcode for process in self.processes]
        assert None not in codes, f"runs for more than {timeout_s} s: {self.said}"
        return [code for code in codes if code is not None]

    def kill(self) -> None:
        """Whatever still runs."""
        for process in self.processes:
            process.kill()
            process.join()


def _become(place: dict[str, str], log: str, given: Sequence[Any]) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(place)
    from train import rank

    rank.main(*given)
