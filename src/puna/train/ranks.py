"""The processes that train one run together, as torchrun starts them: which one this is, and how they agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar, cast

from puna.errors import MachineError, PunaError, TrainError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""Time that the others wait for rank 0, which may download a base. A rank that dies ends the wait at once."""


@dataclass(frozen=True)
class Ranks:
    """One process among `world`. All of them call the same methods in the same order; alone, each does nothing."""

    rank: int = 0
    world: int = 1
    local: int = 0
    """Which GPU of this machine is this process's."""

    @classmethod
    def here(cls) -> Ranks:
        """This process's place, from torchrun's environment; the first call waits until all have come.

        Raises:
            MachineError: there are more processes than GPUs.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")
        if not all(os.environ.get(name) for name in names) or os.environ["WORLD_SIZE"] == "1":
            return cls()
        found = cls(*(int(os.environ[name]) for name in names[:3]))
        found._join()
        return found

    def _join(self) -> None:
        import torch

        # Before the group is there: its functions take the group as a default, and one kept so would outlive `leave`
        # and end while the interpreter does, whose threads then abort the process now and then.
        import torch.distributed.nn.functional
        from torch import distributed

        if distributed.is_initialized():
            return
        gpus = torch.cuda.device_count()
        if gpus and self.local >= gpus:
            hint = f"torchrun --nproc-per-node {gpus}"
            raise MachineError(f"process {self.local} of this machine finds no GPU: there are {gpus}", hint)
        if gpus:
            torch.cuda.set_device(self.local)
        # Numbers on the CPU go by gloo even then: they are agreed on without waiting for a GPU.
        distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)

    @property
    def leads(self) -> bool:
        """True for rank 0, which writes and reports."""
        return self.rank == 0

    def device(self, device: str) -> str:
        """This process's own GPU, where `device` is a GPU."""
        return f"cuda:{self.local}" if self.world > 1 and device.startswith("cuda") else device

    def sum(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor with its sum over all ranks: one exchange of one flat buffer.

        Raises:
            TrainError: another process has ended.
        """
        if self.world == 1:
            return
        import torch
        from torch import distributed

        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        self._exchange(lambda: distributed.all_reduce(flat))
        pieces = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, piece in zip(tensors, pieces, strict=True):
            tensor.copy_(piece.view_as(tensor))

    def largest(self, value: int) -> int:
        """The largest of all ranks' values, agreed on by the CPUs."""
        if self.world == 1:
            return value
        import torch
        from torch import distributed

        number = torch.tensor(value)
        self._exchange(lambda: distributed.all_reduce(number, distributed.ReduceOp.MAX))
        return int(number)

    def barrier(self) -> None:
        """Wait until every process has come here."""
        self.largest(0)

    def broadcast(self, value: T) -> T:
        """Rank 0's value: a small one, that can be pickled."""
        if self.world == 1:
            return value
        import torch
        from torch import distributed

        holder = [value]
        self._exchange(lambda: distributed.broadcast_object_list(holder, device=torch.device("cpu")))
        return holder[0]

    def lead(self, work: Callable[[], T]) -> T:
        """Rank 0 does this work while the others wait; all return what it returned, or raise what it raised."""
        if self.world == 1:
            return work()
        told: tuple[T | None, Exception | None] = (None, None)
        try:
            if self.leads:
                told = (work(), None)
        except PunaError as error:
            told = (None, error)
        except BaseException as error:  # raised again: its caller sees it, the others only that it came
            self.broadcast((None, TrainError(f"rank 0 has failed: {error!r}", "read rank 0's error")))
            raise
        value, failure = self.broadcast(told)
        if failure is not None:
            raise failure
        return cast(T, value)

    def leave(self) -> None:
        """The work is done: part from the others."""
        if self.world > 1:
            from torch import distributed

            self.barrier()
            distributed.destroy_process_group()

    def _exchange(self, exchange: Callable[[], object]) -> None:
        try:
            exchange()
        except RuntimeError as error:
            said = str(error).split("\n")[0]
            raise TrainError(f"rank {self.rank}: another process of this run has ended: {said}",
                             "read that process's error, then puna train RECIPE --resume RUN") from error  # fmt: skip
