"""What the deploy room's tests share: a real SQLite store in a temporary home, and a small world around it."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from backends.memory import MemoryBackend
from control.rows import add_revision, save_endpoint
from puna.artifacts import Source, drafting
from puna.backends.base import Capacity, GpuDevice, Launch
from puna.config.settings import Settings
from puna.control.domain.records import Endpoint, Replica, Revision, RevisionSpec
from puna.control.domain.states import ReplicaState, RevisionState
from puna.control.operations.context import Control
from puna.control.reconcile.actions import Action
from puna.control.reconcile.loop import Reconciler
from puna.control.resources.secrets import Secrets
from puna.control.store.store import Store
from puna.control.telemetry.load import Loads
from puna.control.wire import EndpointLoad, LoadReport
from puna.errors import MachineError
from puna.home import Home

GIB = 2**30


def gpus(count: int, memory_bytes: int = 80 * GIB) -> Capacity:
    return Capacity(8, 64 * GIB, tuple(GpuDevice(i, "H", memory_bytes) for i in range(count)))


def launch(replica: Replica) -> Launch:
    nowhere = Path("/nonexistent")
    return Launch(replica.id, nowhere / "python", nowhere / "app", nowhere / "s", nowhere / "log", gpu=replica.gpu)


def control_of(store: Store, home: Home, loads: Loads | None = None, **parts: Any) -> Control:
    """A control plane's parts, without other machines and loops; `parts` are those that a test has of its own."""

    def refuse(_: object) -> Any:
        raise MachineError("nothing is fetched here", "`puna up` can")

    quiet: dict[str, Any] = {"wake": lambda: None, "wake_rebuilds": lambda: None, "warm": lambda *_: None}
    without = {"base_url": "http://127.0.0.1:8000", "pull": refuse, "head": refuse, "make": refuse, **quiet}
    return Control(store, home, loads or Loads(), Secrets(store, home.key), **without | parts)


@dataclass
class World:
    """A store, a reconciler on a backend without processes, and a clock that only `step` moves."""

    store: Store
    home: Home
    backend: MemoryBackend
    loads: Loads = field(default_factory=Loads)
    now: float = 1000.0
    traffic: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.reconciler = Reconciler(self.store, self.backend, self.home, loads=self.loads, prepare=launch)

    def deploy(self, name: str = "app", **settings: Any) -> int:
        """A revision that has been built, without a builder."""
        spec = RevisionSpec("a" * 64, None, None, Settings(**settings))
        save_endpoint(self.store, name, spec.settings, self.now)
        revision = add_revision(self.store, name, spec, self.now)
        self.store.move_revision(name, revision.number, RevisionState.BUILDING, self.now)
        self.store.move_revision(name, revision.number, RevisionState.BUILT, self.now, bundle="b" * 64)
        return revision.number

    def step(self, seconds: float = 0.2) -> list[Action]:
        self.now += seconds
        self.backend.tick(self.now)
        if self.traffic:
            self.loads.report(LoadReport("g", self.now, {"app": EndpointLoad(replicas=self.traffic)}))
        return self.reconciler.step(self.now)

    def settle(self, steps: int = 40, seconds: float = 0.2) -> None:
        for _ in range(steps):
            self.step(seconds)

    def endpoint(self, name: str = "app") -> Endpoint:
        return self.store.endpoint(name)

    def revision(self, number: int, name: str = "app") -> Revision:
        return self.store.revision(name, number)

    def ready(self, name: str = "app", revision: int | None = None) -> list[str]:
        return [
            r.id for r in self.store.replicas(name) if r.state is ReplicaState.READY and revision in (None, r.revision)
        ]

    def running(self, name: str = "app", revision: int | None = None) -> list[str]:
        return [r.id for r in self.store.replicas(name) if revision in (None, r.revision)]


@functools.cache
def _empty() -> bytes:
    """A database whose tables are there and that holds nothing: making one takes ten times as long as copying it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.db"
        Store(f"sqlite:///{path}").close()
        return path.read_bytes()


def fresh_store(home: Home) -> Store:
    """The store of a home that has none."""
    home.database.write_bytes(_empty())
    return Store(f"sqlite:///{home.database}")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    store = fresh_store(home)
    yield store
    store.close()


@pytest.fixture
def world(store: Store, home: Home) -> World:
    return World(store, home, MemoryBackend(ready_after_s=1.0, stop_takes_s=0.5))


def gpu_world(world: World, count: int, memory_bytes: int = 80 * GIB) -> World:
    world.backend = MemoryBackend(gpus(count, memory_bytes), ready_after_s=1.0, stop_takes_s=0.5)
    world.restart()
    return world


@pytest.fixture
def source(home: Home) -> Source:
    return make_source(home)


def make_source(home: Home, text: str = "class InferlessPythonModel: ...\n") -> Source:
    with drafting("source", home.sources) as draft:
        (draft.path / "files").mkdir()
        (draft.path / "files" / "app.py").write_text(text)
    return Source.open(draft.final)
