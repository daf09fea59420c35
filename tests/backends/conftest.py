"""A home, an app, a backend whose owner is a pipe of the test, and ways to see what is left of a process tree."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import fake_gpu.pynvml
from backends.replicas import ECHO, SCHEMA, Owner, listens, wait_until
from puna.backends.base import Launch
from puna.backends.local import LocalBackend
from puna.home import Home


@pytest.fixture
def home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="puna") as folder:
        yield Home(Path(folder))


@pytest.fixture
def launch(home: Home) -> Callable[..., Launch]:
    """`launch("r1", source, field=value...)` -> a Launch of an app with that app.py."""

    def make(replica_id: str = "r1", source: str = ECHO, **fields: object) -> Launch:
        app = home.workspaces / replica_id
        app.mkdir(exist_ok=True)
        (app / "app.py").write_text(textwrap.dedent(source))
        (app / "input_schema.py").write_text(SCHEMA)
        made = Launch(
            replica_id=replica_id,
            python=Path(sys.executable),
            app=app,
            socket=home.replica_socket(replica_id),
            log=home.logs / f"{replica_id}.log",
            env={"PATH": os.environ["PATH"]},
            concurrency=1,
        )
        return replace(made, **fields)  # type: ignore[arg-type]

    return make


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A driver's library that finds two devices of 16 GiB; the folder that says what processes use."""
    folder = tmp_path / "gpus"
    folder.mkdir()
    monkeypatch.setitem(sys.modules, "pynvml", fake_gpu.pynvml)
    monkeypatch.setenv("FAKE_GPUS", str(folder))
    (folder / "devices.json").write_text(json.dumps([{"name": "NVIDIA T4", "memory_bytes": 2**34}] * 2))
    return folder


@pytest.fixture
def owner() -> Iterator[Owner]:
    owner = Owner()
    yield owner
    owner.die()
    os.close(owner.read)


@pytest.fixture
def local(home: Home, owner: Owner) -> Iterator[LocalBackend]:
    """A LocalBackend; the owner dies with the test, and then nothing may be left."""
    yield LocalBackend(home, owner.read)
    owner.die()
    wait_until(lambda: not [p for p in home.sockets.glob("*.guard") if listens(p)], 5, "guards live on")
