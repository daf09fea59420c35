"""One process that trains, alone or as a rank: torchrun runs this file, other tests fork it (train.forks)."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from puna.artifacts import Dataset
from puna.config import recipe as recipes
from puna.errors import PunaError
from puna.train import checkpoint, loop
from puna.train.run import train


def main(
    recipe: dict[str, Any], base: str, dataset: str, run: str, resume: bool = False, slow_s: float = 0, breaks: str = ""
) -> None:
    """Train on the CPU, with a rest after each step; say this process's id, and what ended the run."""
    torch.set_num_threads(1)
    rank, real = int(os.environ.get("RANK", "0")), loop.one_step
    say(f"pid {rank} {os.getpid()}")

    def one_step(*given: Any) -> Any:
        done = real(*given)
        time.sleep(slow_s)
        if breaks == "rank 1 dies" and rank == 1 and given[1].step == 3:
            os._exit(9)
        return done

    def full(*given: Any) -> None:
        raise PunaError("no space left", "free some")

    loop.one_step = one_step  # type: ignore[assignment]
    if breaks == "rank 0's disk is full":
        checkpoint.save = full  # type: ignore[assignment]
    try:
        train(recipes.parse(recipe), Path(base), Dataset.open(Path(dataset)), Path(run), resume=resume, device="cpu")
    except PunaError as error:
        say(f"said {rank} {error.message} | {error.hint}")
        sys.exit(error.exit_code)
    threads = [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    if any("gloo" in name for name in threads):  # they would end with the interpreter, and abort the process at times
        sys.exit(f"the group of processes outlives the run: {threads}")


def say(text: str) -> None:
    """A line at once: ranks share a pipe, without buffers."""
    os.write(1, f"{text}\n".encode())


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
