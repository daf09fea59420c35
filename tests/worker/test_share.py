"""What a worker that has a part of a GPU lets torch and vLLM take, in its own process and in those that it starts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fake_gpu import libraries

Write = Callable[..., Path]
Start = Callable[..., Any]
process = pytest.mark.process

CHILD = """
import os, sys
sys.path.insert(0, {folder!r})
import torch
torch.cuda.set_per_process_memory_fraction(1.0)
try:
    torch.cuda.take(9 * 2**30)
    print("took it")
except torch.cuda.OutOfMemoryError as error:
    print(error)
from vllm.engine.arg_utils import EngineArgs
print(EngineArgs().create_engine_config(), "puna" in sys.modules)
"""
APP = """
    import multiprocessing, os, subprocess, sys
    import torch

    def take(gib):
        try:
            torch.cuda.take(int(gib * 2**30))
            return "ok"
        except torch.cuda.OutOfMemoryError as error:
            return str(error)

    def report(queue):
        queue.put(take(9))

    def in_child(method):
        context = multiprocessing.get_context(method)
        queue = context.SimpleQueue()
        child = context.Process(target=report, args=(queue,))
        child.start()
        child.join()
        return queue.get()

    class InferlessPythonModel:
        def infer(self, inputs):
            asked = inputs["prompt"]
            if asked == "begun":
                return {"text": str(torch.cuda.is_initialized())}
            if asked in ("fork", "spawn"):
                return {"text": in_child(asked)}
            if asked == "raise it":
                torch.cuda.set_per_process_memory_fraction(0.95)
                torch.cuda.memory.set_per_process_memory_fraction(0.95, 0)
                return {"text": str(torch.cuda.state["fraction"])}
            if asked == "lower it":
                torch.cuda.set_per_process_memory_fraction(0.1)
                return {"text": str(torch.cuda.state["fraction"])}
            if asked == "vllm":
                from vllm.engine.arg_utils import EngineArgs
                first, full = EngineArgs(), EngineArgs(gpu_memory_utilization=1.0)
                values = [first.create_engine_config(), first.create_engine_config(), full.create_engine_config()]
                return {"text": " ".join("%.4g" % value for value in values)}
            return {"text": take(float(asked))}
"""


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Half of a GPU of 16 GiB, of which torch may have 7.5."""
    (tmp_path / "gpus").mkdir()
    told = {"PUNA_GPU_FRACTION": "0.5", "PUNA_GPU_TORCH_FRACTION": str(7.5 / 16), "CUDA_VISIBLE_DEVICES": "0"}
    for name, value in (told | {"FAKE_GPUS": str(tmp_path / "gpus")}).items():
        monkeypatch.setenv(name, value)


def write(app: Write) -> Path:
    folder = app(APP)
    libraries.write(folder)
    return folder


def asks(client: Any, *prompts: str) -> list[str]:
    answers = [client.call({"prompt": prompt}) for prompt in prompts]
    assert all(status == 200 for status, _ in answers), answers
    return [body["outputs"][0]["data"][0] for _, body in answers]


@process
@pytest.mark.usefixtures("half")
def test_torch_keeps_to_its_part_and_cuda_is_not_begun_for_that(app: Write, start: Start, python: str) -> None:
    client = start(write(app), python=python).ready()
    begun, small, large, begun_after = asks(client, "begun", "7", "1", "begun")
    assert (begun, small, begun_after) == ("False", "ok", "True")
    assert large == "CUDA out of memory. 7.50 GiB allowed."


@process
@pytest.mark.usefixtures("half")
def test_an_app_may_ask_for_less_and_not_for_more(app: Write, start: Start) -> None:
    worker = start(write(app))
    assert asks(worker.ready(), "raise it", "lower it") == [str(7.5 / 16), "0.1"]
    assert "torch may have 0.469 of the GPU, not 0.95: this replica has 0.5 of it" in worker.text()


@process
@pytest.mark.usefixtures("half")
def test_processes_that_the_app_starts_keep_to_it_too(app: Write, start: Start, python: str) -> None:
    client = start(write(app), python=python).ready()
    assert asks(client, "fork", "spawn") == ["CUDA out of memory. 7.50 GiB allowed."] * 2


@process
@pytest.mark.usefixtures("half")
def test_vllm_is_given_that_part_of_the_share_which_it_asks_for(app: Write, start: Start, python: str) -> None:
    worker = start(write(app), python=python)
    assert asks(worker.ready(), "vllm") == ["0.45 0.45 0.4688"]
    assert "gpu_memory_utilization 0.9 is lowered to 0.45: this replica has 0.5 of the GPU" in worker.text()


@process
def test_a_whole_gpu_is_left_as_it_is(
    app: Write, start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("FAKE_GPUS", str(tmp_path))
    client = start(write(app)).ready()
    assert asks(client, "raise it", "vllm", "14") == ["0.95", "0.9 0.9 1", "ok"]


@process
def test_a_sitecustomize_of_the_environments_own_is_run_and_nothing_of_puna_stays(
    tmp_path: Path, pyz: Path, python: str
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "sitecustomize.py").write_text("import builtins; builtins.own = 'ran'")
    libraries.write(tmp_path / "app")
    told = {"PUNA_GPU_FRACTION": "0.5", "CUDA_VISIBLE_DEVICES": "0", "FAKE_GPUS": str(tmp_path)}
    path = os.pathsep.join([f"{pyz}/puna/worker/children", str(tmp_path / "own")])
    code = CHILD.format(folder=str(tmp_path / "app")) + "print(own)"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": path, **told}
    run = subprocess.run([python, "-c", code], env=env, capture_output=True, text=True, timeout=30, check=True)
    assert run.stdout.split("\n")[:3] == ["CUDA out of memory. 8.00 GiB allowed.", "0.45 False", "ran"]
    assert "torch may have 0.5 of the GPU, not 1" in run.stderr


@process
def test_a_worker_is_held_to_its_cores(app: Write, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    core = max(os.sched_getaffinity(0))
    monkeypatch.setenv("PUNA_CORES", str(core))
    source = """
        import os, subprocess, sys
        class InferlessPythonModel:
            def infer(self, inputs):
                code = "import os; print(os.sched_getaffinity(0))"
                told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
                return {"text": str(os.sched_getaffinity(0)) + told}
    """
    assert asks(start(app(source)).ready(), "x") == [f"{{{core}}}{{{core}}}"]
