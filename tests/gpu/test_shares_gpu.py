"""Two replicas on one NVIDIA GPU: real torch, real driver; neither gets the other's half, and who takes it is ended."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backends.replicas import SCHEMA, Owner, call, wait_for, wait_until
from puna.backends.base import Launch, Phase
from puna.backends.local import LocalBackend
from puna.backends.machine import NVML
from puna.backends.shares import GpuEnforcer
from puna.home import Home

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]
GIB = 2**30
START_S = 120.0

# `take` and `fork` are polite, `raise` tries to be less so, `driver` asks the driver itself.
APP = """
    import ctypes, json, multiprocessing, os, subprocess, sys
    import torch

    CHILD = "import torch; n = %d; t = torch.empty(n, dtype=torch.uint8, device='cuda'); print('took it')"

    def take(part):
        size = int(part * torch.cuda.get_device_properties(0).total_memory)
        try:
            tensor = torch.full((size,), 7, dtype=torch.uint8, device="cuda")
        except torch.cuda.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            return None, "refused: " + str(error)
        return tensor, "took it"

    def in_child(part, answers):
        answers.put(take(part)[1])

    class InferlessPythonModel:
        def initialize(self):
            self.kept, self.begun = [], torch.cuda.is_initialized()

        def infer(self, inputs):
            word, _, part = inputs["prompt"].partition(" ")
            return {"text": getattr(self, word + "_")(float(part or 0))}

        def take_(self, part):
            tensor, said = take(part)
            self.kept += [tensor] if tensor is not None else []
            return said

        def raise_(self, part):
            torch.cuda.set_per_process_memory_fraction(part)
            return self.take_(part)

        def spawn_(self, part):
            answers = multiprocessing.get_context("spawn").SimpleQueue()
            child = multiprocessing.get_context("spawn").Process(target=in_child, args=(part, answers))
            child.start()
            child.join()
            return answers.get()

        def command_(self, part):
            size = int(part * torch.cuda.get_device_properties(0).total_memory)
            run = subprocess.run([sys.executable, "-c", CHILD % size], capture_output=True, text=True)
            return run.stdout.strip() or run.stderr.strip().splitlines()[-1]

        def driver_(self, part):
            torch.zeros(1, device="cuda")
            size = int(part * torch.cuda.get_device_properties(0).total_memory)
            pointer = ctypes.c_uint64()
            return str(ctypes.CDLL("libcuda.so.1").cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size)))

        def sound_(self, _):
            return str(all(bool((tensor[:: 1 << 12] == 7).all()) for tensor in self.kept))

        def facts_(self, _):
            torch.cuda.synchronize()
            free, total = torch.cuda.mem_get_info()
            return json.dumps([self.begun, torch.cuda.memory_reserved(), total])
"""


@pytest.fixture
def home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="puna") as folder:
        yield Home(Path(folder))


@pytest.fixture
def local(home: Home) -> Iterator[LocalBackend]:
    owner = Owner()
    yield LocalBackend(home, owner.read)
    owner.die()
    wait_until(lambda: not list(home.sockets.glob("*.guard")), 10, "guards live on")
    os.close(owner.read)


@pytest.fixture
def started(local: LocalBackend, home: Home) -> Callable[..., Launch]:
    """`started("name", warm=...)` -> the launch of a replica that is ready, on half of GPU 0."""

    def begin(name: str, warm: str = "") -> Launch:
        made = launch(home, name, warm)
        local.start(made)
        wait_for(local, Phase.READY, name, START_S)
        return made

    return begin


def launch(home: Home, name: str, warm: str = "") -> Launch:
    app = home.workspaces / name
    app.mkdir()
    (app / "app.py").write_text(textwrap.dedent(APP))
    (app / "input_schema.py").write_text(SCHEMA)
    env = {key: os.environ[key] for key in ("PATH", "HOME", "LD_LIBRARY_PATH") if key in os.environ}
    return Launch(
        name, Path(sys.executable), app, home.replica_socket(name), home.logs / f"{name}.log", env,
        gpu="0", gpu_fraction=0.5, concurrency=1, warm=warm,
    )  # fmt: skip


def ask(launch: Launch, prompt: str) -> str:
    return call(launch, prompt, START_S)


def test_neither_gets_the_others_half_and_who_takes_it_is_ended(
    local: LocalBackend, started: Callable[..., Launch], home: Home
) -> None:
    greedy, modest = started("greedy"), started("modest")
    assert json.loads(ask(greedy, "facts"))[0] is False  # CUDA was not begun for the limit's sake
    for attempt in ("take 0.6", "raise 0.6", "spawn 0.6", "command 0.6"):
        said = ask(greedy, attempt)
        assert "out of memory" in said and "took it" not in said, (attempt, said)
    assert "torch may have" in greedy.log.read_text()
    assert (ask(modest, "take 0.45"), ask(greedy, "take 0.45")) == ("took it", "took it")
    watch = GpuEnforcer(home, NVML)
    assert watch.look() == {}
    facts = {made.replica_id: json.loads(ask(made, "facts")) for made in (greedy, modest)}
    half = NVML.gpus()[0].memory_bytes / 2
    for name, (_, reserved, total) in facts.items():
        beside = watch.use().get(name, 0) - reserved
        sizes = {"torch": reserved, "beside it": beside, "half": half, "CUDA's total": total}
        print(name, ", ".join(f"{what} {size / GIB:.2f} GiB" for what, size in sizes.items()))
    if watch.is_blind:
        pytest.skip("this driver does not tell which process uses what")
    assert all(0 < watch.use()[name] <= half for name in facts)
    assert ask(greedy, "driver 0.08") == "0"  # the driver gives what there is
    begun = time.monotonic()
    (why,) = watch.look().values()
    seen = wait_for(local, Phase.EXITED, "greedy")
    print(f"ended within {time.monotonic() - begun:.2f} s of the look: {seen.reason}")
    assert seen.reason == why and why.startswith("used ") and why.endswith("half of GPU 0")
    assert ask(modest, "sound") == "True" and watch.look() == {}
    assert wait_for(local, Phase.READY, "modest").phase is Phase.READY


def test_a_fork_of_a_zygote_that_has_imported_torch_keeps_to_its_half(
    local: LocalBackend, started: Callable[..., Launch], home: Home
) -> None:
    local.warm(launch(home, "zygote", "zygote"))
    wait_until(lambda: local.zygotes()[0].phase is not Phase.STARTING, START_S, "the zygote is not ready")
    assert local.zygotes()[0].phase is Phase.READY, local.zygotes()
    made = started("forked", "zygote")
    assert wait_for(local, Phase.READY, "forked").born == "zygote"
    assert "out of memory" in ask(made, "take 0.6") and ask(made, "take 0.45") == "took it"
    local.cool("zygote")


@pytest.mark.parametrize("library", ["jax", "cupy"])
def test_other_libraries_are_told_of_the_half_too(library: str, home: Home, local: LocalBackend) -> None:
    pytest.importorskip(library)
    code = {
        "jax": "import jax; print(jax.devices()[0].memory_stats()['bytes_limit'])",
        "cupy": "import cupy; print(cupy.get_default_memory_pool().get_limit())",
    }[library]
    made = launch(home, library)
    source = f"""
        import subprocess, sys
        class InferlessPythonModel:
            def infer(self, inputs):
                run = subprocess.run([sys.executable, "-c", {code!r}], capture_output=True, text=True)
                return {{"text": run.stdout.strip().splitlines()[-1] if run.stdout.strip() else run.stderr}}
    """
    (made.app / "app.py").write_text(textwrap.dedent(source))
    local.start(made)
    wait_for(local, Phase.READY, library, START_S)
    allowed = int(ask(made, "x"))
    print(f"{library}: {allowed / GIB:.2f} GiB")
    assert 0 < allowed <= NVML.gpus()[0].memory_bytes / 2
