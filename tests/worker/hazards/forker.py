"""A process that writes the model, has torch and transformers imported and forks a worker for each line of its input.

It is run with -I.

`{"arguments": [...], "log": path, "env": {...}}` is answered with the worker's process id; `{"end": pid}` with its
status, once it is gone.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main(pyz: str) -> None:
    """Until the input ends; the workers hold a pipe of this process and go with it."""
    write_model(Path(os.environ["HF_HOME"]))
    sys.path.insert(0, pyz)
    import torch
    from transformers import (  # noqa: F401 - found by the forks
        AutoModelForCausalLM,
        AutoTokenizer,
        LogitsProcessorList,
        StoppingCriteriaList,
        TextIteratorStreamer,
        pipeline,
    )

    from puna.worker.main import main as work

    torch.set_num_threads(1)
    torch.nn.modules.module.register_module_forward_pre_hook(note_rows)
    model = AutoModelForCausalLM.from_pretrained(os.environ["HAZARDS_MODEL"])
    tokenizer = AutoTokenizer.from_pretrained(os.environ["HAZARDS_MODEL"])
    model.generate(**tokenizer("tell q0q", return_tensors="pt"), max_new_tokens=2)
    del model, tokenizer
    held, _lifeline = os.pipe()
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "end" in asked:
            os.kill(asked["end"], signal.SIGKILL)
            print(os.waitpid(asked["end"], 0)[1], flush=True)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads and forks: there are none here
            pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        os.close(_lifeline)
        become_worker(asked, held, work)


def write_model(hub: Path) -> None:
    """By the file beside this one, which no worker finds afterwards."""
    sys.path.insert(0, str(Path(__file__).parent))
    importlib.import_module("copying_llama").write(hub)
    del sys.path[0], sys.modules["copying_llama"]


def note_rows(module: object, arguments: tuple[Any, ...]) -> None:
    """Each time that a model looks tokens up: the most rows so far are written where the test reads them."""
    if type(module).__name__ == "Embedding" and "HAZARDS_WIDEST" in os.environ:
        from vllm import widest

        widest.note(arguments[0].shape[0])


def become_worker(asked: dict[str, Any], held: int, work: Callable[[list[str]], object]) -> None:
    """What a fresh process has: its own session, streams, environment."""
    try:
        os.setsid()
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for origin, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(origin, target)
        os.environ.update(asked["env"])
        work([*asked["arguments"], "--parent-fd", str(held)])
    finally:
        os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
