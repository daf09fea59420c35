"""Two endpoints on one GPU, a fake one to real processes: who takes the other's half, or too much memory, is ended."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_gpu import libraries
from stories.conftest import SCHEMA, Callers, Up, family

pytestmark = pytest.mark.process
GIB = 2**30
FAKE = Path(libraries.__file__).parent

APP = """
import torch

class InferlessPythonModel:
    def initialize(self):
        torch.cuda.take(5 * 2**30)

    def infer(self, inputs):
        word, _, size = inputs["prompt"].partition(" ")
        if word == "take":
            torch.cuda.take(int(size) * 2**30)
        if word == "malloc":
            torch.cuda.malloc(int(size) * 2**30)
        return {"out": "v1:" + inputs["prompt"]}
"""
EATER = """
class InferlessPythonModel:
    def initialize(self):
        self.eaten = []

    def infer(self, inputs):
        if inputs["prompt"] == "eat":
            self.eaten = [b"x" * 2**20 for _ in range(400)]
        return {"out": "v1:" + inputs["prompt"]}
"""


@pytest.fixture
def up(monkeypatch: pytest.MonkeyPatch) -> Iterator[Up]:
    """A `puna up` on a machine with one GPU of 16 GiB."""
    with tempfile.TemporaryDirectory(prefix="puna-") as root:
        gpus = Path(root, "gpus")
        gpus.mkdir()
        (gpus / "devices.json").write_text(json.dumps([{"name": "NVIDIA T4", "memory_bytes": 16 * GIB}]))
        monkeypatch.setenv("FAKE_GPUS", str(gpus))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FAKE), os.environ.get("PYTHONPATH", "")]))
        up = Up(Path(root))
        yield up
        up.down()
        assert family(Path(root)) == []


def write(folder: Path, source: str = APP) -> Path:
    libraries.write(folder, 16 * GIB)
    (folder / "app.py").write_text(source)
    (folder / "input_schema.py").write_text(SCHEMA)
    (folder / "inferless-runtime-config.yaml").write_text("build:\n  python_packages: []\n")
    return folder


def events(up: Up, name: str) -> str:
    return "\n".join(event["message"] for event in up.client.events(name))


def half(up: Up, folder: Path, name: str) -> None:
    env = {"FAKE_GPUS": os.environ["FAKE_GPUS"]}
    up.deploy(folder, name, gpu_type="T4", is_dedicated=False, min_replica=1, env=env)


def test_a_neighbour_never_notices_who_took_its_half(up: Up, tmp_path: Path) -> None:
    folder = write(tmp_path / "app")
    for name in ("app", "greedy"):
        half(up, folder, name)
    tile: dict[str, Any] = up.client.machine()["gpus"][0]
    assert (tile["name"], tile["held"], tile["free_bytes"]) == ("NVIDIA T4", 1.0, 6 * GIB)
    (before,) = up.worker_pids("app")
    with Callers(up, "app", 4) as callers:
        refused = up.call("take 3", "greedy")
        assert refused.status_code == 500 and "CUDA out of memory. 7.50 GiB allowed." in refused.text
        assert up.worker_pids("greedy") != [] and "used" not in events(up, "greedy")
        (greedy,) = up.worker_pids("greedy")
        assert up.call("malloc 7", "greedy").status_code == 200
        said = "used 12.0 GiB of its 8.0 GiB half of GPU 0 while it served"
        up.until(lambda: said in events(up, "greedy"), 10, "the end of the greedy one")
        up.until(lambda: up.worker_pids("greedy") not in ([], [greedy]), 20, "a fresh replica")
        callers.more(20)
    assert callers.failed() == [] and up.worker_pids("app") == [before]
    assert "used" not in events(up, "app")


def test_a_replica_with_too_much_memory_is_ended_and_a_fresh_one_comes(up: Up, tmp_path: Path) -> None:
    up.deploy(write(tmp_path / "app", EATER), ram_gib=0.25, min_replica=1)
    (before,) = up.worker_pids()
    assert up.call("hi").status_code == 200
    assert up.call("eat").status_code in (500, 502, 503)
    said = "GiB of memory, its share is 0.25 GiB while it served"
    up.until(lambda: said in events(up, "app"), 10, "the end of the eater")
    up.until(lambda: up.worker_pids() not in ([], [before]), 20, "a fresh replica")
    assert up.call("hi").status_code == 200
