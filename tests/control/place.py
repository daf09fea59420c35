"""A control plane with one of everything in it, for tests that call every operation."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient

from backends.memory import MemoryBackend
from control.conftest import World, control_of, make_source
from control.rows import build_revision, move_build
from control.runs import make_run
from puna.control.api import openapi
from puna.control.api.app import create_app
from puna.control.domain.records import Delivery
from puna.control.domain.states import BuildState, DeliveryState
from puna.control.operations import origins
from puna.control.operations.origins import Repositories
from puna.control.resources.secrets import Secrets
from puna.control.resources.volumes import Volumes
from puna.control.store.store import Store
from puna.control.telemetry.log_files import build_log, replica_log
from puna.home import Home
from puna.packaging import source

APP = """
class InferlessPythonModel:
    def initialize(self):
        pass
    def infer(self, inputs):
        return {}
    def finalize(self):
        pass
"""
SCHEMA = 'INPUT_SCHEMA = {"prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["a"]}}\n'


@dataclass
class Place:
    """An application with one of everything in it, and the names of what is there."""

    app: FastAPI
    names: dict[str, dict[str, Any]]

    def real(self, path: str) -> dict[str, Any]:
        """The parameters with which `path` of the document names something that is there."""
        return next((names for part, names in self.names.items() if f"/api/v1{part}" in path), {})


def furnished(root: Path) -> Iterator[Place]:
    """A place in `root`: a copy of one that was furnished before, since that takes a while."""
    model, names = _furnished_once()
    shutil.copytree(model, root / "home", symlinks=True)
    home = Home(root / "home")
    store = Store(f"sqlite:///{home.database}")
    secrets = Secrets(store, home.key)
    repositories = Repositories(secrets, home)
    make = functools.partial(origins.make_app, home, secrets.open)
    control = control_of(store, home, pull=repositories.pull, head=repositories.head, make=make)
    yield Place(create_app(control), names)
    store.close()


@functools.cache
def _furnished_once() -> tuple[Path, dict[str, dict[str, Any]]]:
    root = Path(tempfile.mkdtemp(prefix="puna-place-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    home = Home(root / "home")
    store = Store(f"sqlite:///{home.database}")
    world = World(store, home, MemoryBackend(ready_after_s=1.0, stop_takes_s=0.5))
    names = _endpoints(world) | _kept(world, Secrets(store, home.key))
    with TestClient(create_app(control_of(store, home))) as api:
        key = api.post("/api/v1/keys", json={"scope": ["infer"], "name": "ci"}).json()
        names |= {"/keys/": {"key_id": key["id"]}}
    folder = root / "project"
    folder.mkdir()
    (folder / "app.py").write_text(APP)
    (folder / "input_schema.py").write_text(SCHEMA)
    names["/sources/"]["archive"] = source.pack(folder)
    store.close()
    return home.root, names


def _endpoints(world: World) -> dict[str, dict[str, Any]]:
    store, home = world.store, world.home
    pulled: dict[str, Any] = {"min_replica": 1, "git": {"url": "https://example.com/a.git"}, "auto_rebuild": True}
    world.deploy(**pulled)
    world.deploy("plain", min_replica=1)
    world.settle(10)
    world.deploy("plain", min_replica=1)
    world.settle(20)
    world.deploy(**pulled, env={"A": "1", "HF_TOKEN": "x"})
    build = build_revision(store, "app", 2, 1.0)
    for state in (BuildState.RUNNING, BuildState.FAILED):
        move_build(store, build.id, state, error="no such package", hint="fix it", detail="line 1")
    build_log(home, build.id).write_text("one\n")
    replica_log(home, "app", "app-1").write_text("ready\n")
    told = Delivery("app", 1.0, "github", DeliveryState.IGNORED, "push", message="another branch")
    return {
        "/endpoints/": {"name": "app", "number": store.add_delivery(told).id, "a": 1, "b": 2},
        "/hooks/": {"name": "app"},
        "/builds/": {"build_id": build.id},
    }


def _kept(world: World, secrets: Secrets) -> dict[str, dict[str, Any]]:
    store, home = world.store, world.home
    old = store.add_runtime("old", "d" * 64, "build: {}\n", 1.0)
    for state in (BuildState.RUNNING, BuildState.SUCCEEDED):
        move_build(store, old.build_id, state)
    store.add_runtime("rt", "d" * 64, "build:\n  python_packages: [numpy]\n", 1.0)
    volumes = Volumes(home)
    volumes.create("data")
    with volumes.writing("data", "a/b.txt") as file:
        file.write(b"text")
    secrets.save("hub", {"HF_TOKEN": "hf_x"}, 1.0)
    run = make_run(home)
    version = {"version": 1, "digest": "e" * 64, "created": "2026-01-01T00:00:00+00:00", "lineage": {"base": "b"}}
    version |= {"verification": None, "kind": "model"}
    entry = {"name": "acme/chat", "next": 2, "versions": [version], "aliases": {"latest": 1}}
    (home.registry / "acme").mkdir(parents=True)
    (home.registry / "acme" / "chat.json").write_text(json.dumps(entry))
    return {
        "/sources/": {"digest": make_source(home).digest},
        "/runtimes/": {"name": "rt", "version": 1, "a": 1, "b": 1},
        "/secrets/": {"name": "hub"},
        "/volumes/": {"name": "data", "path": "a/b.txt"},
        "/runs/": {"name": run.name},
        "/models/": {"owner": "acme", "model": "chat", "alias": "latest", "version": 1},
    }


@functools.cache
def document() -> dict[str, Any]:
    """The document of an application that holds nothing."""
    with tempfile.TemporaryDirectory() as root:
        home = Home(Path(root) / "home")
        store = Store(f"sqlite:///{home.database}")
        made: dict[str, Any] = create_app(control_of(store, home)).openapi()
        store.close()
    return made


ENDLESS = {"get_stream"}
"""What never ends, whatever is sent."""


@functools.cache
def operations() -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Path, method and description of each operation of the document, by its id."""
    return {
        operation["operationId"]: (path, method, operation)
        for path, method, operation in openapi.operations(document())
    }


def ending() -> list[str]:
    """The operations whose replies come to an end."""
    return sorted(set(operations()) - ENDLESS)


def own_place(operation_id: str, read: Place, root: Path) -> Iterator[Place]:
    """A place in which an operation can do what it does: one of its own, in `root`, when it changes something."""
    if operations()[operation_id][1] == "get":
        yield read
    else:
        yield from furnished(root)
