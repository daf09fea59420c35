"""The control plane dies between any two writes, starts again, and everything comes to an end by itself."""

from __future__ import annotations

import contextlib
import copy
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from backends.memory import MemoryBackend
from control.builds.test_builder import FakeTools
from control.conftest import control_of, launch, make_source
from control.rows import move_build
from puna.artifacts import Bundle, Source
from puna.control.builds.builder import Builder
from puna.control.domain.records import Delivery
from puna.control.domain.states import PENDING, UNENDED, BuildState, DeliveryState, RevisionState
from puna.control.operations import deploys
from puna.control.operations import deploys as traffic_split
from puna.control.operations.deploys import DeployRequest
from puna.control.operations.origins import Pulled
from puna.control.operations.rebuilds import Rebuilds
from puna.control.operations.turns import Slots
from puna.control.reconcile.loop import Reconciler
from puna.control.store.store import Store
from puna.control.telemetry.load import Loads
from puna.errors import BuildError, ConflictError, NotFoundError, PunaError
from puna.home import Home
from puna.packaging.environment import Environment

NAMES = ("one", "two")
WALKS, QUICK, SAMPLED = 12, 2, 0.06  # walks, those of the quick part, and how many writes are followed by a death
PROJECT: dict[str, Any] = {"env": {}, "secrets": []}


class WatchedStore(Store):
    """A store that says after each transaction that writes: what is there then is what a killed process leaves."""

    wrote: Callable[[], None] = staticmethod(lambda: None)

    @contextlib.contextmanager
    def _write(self, routes: bool = True, snapshot: bool = True) -> Iterator[Connection]:
        with super()._write(routes, snapshot) as connection:
            yield connection
        self.wrote()


class Tools(FakeTools):
    """As `FakeTools`, with one bundle for each source, and a source that cannot be built."""

    bundles: dict[str, Bundle] = {}
    bad = ""

    def bundle(self, source: Source, environment: Environment, home: Home, log: Callable[[str], None]) -> Bundle:
        if source.digest == self.bad:
            raise BuildError("this one never builds")
        if source.digest not in self.bundles:
            self.bundles[source.digest] = super().bundle(source, environment, home, log)
        return self.bundles[source.digest]


@dataclass
class Life:
    """A control plane over a home, from a start on; what runs outlives it in `backend`."""

    home: Home
    backend: MemoryBackend
    sources: list[str]
    tools: Tools
    now: float = 1000.0
    commit: str = "a" * 40
    asked: dict[str, DeployRequest] = field(default_factory=dict)
    """Endpoint -> the last deploy that somebody tried."""

    def begin(self, database: Path) -> None:
        """As `control_plane.ControlPlane`."""
        self.database = database
        self.store = WatchedStore(f"sqlite:///{database}")
        self.healed = self.store.heal(self.now)
        loads = Loads()
        self.control = control_of(self.store, self.home, loads, pull=self.pull, clock=lambda: self.now)
        self.builder = Builder(
            self.store, self.home, tools=self.tools, clock=lambda: self.now, slots=Slots(building=2, trying=2)
        )
        self.rebuilds = Rebuilds(self.control)
        self.reconciler = Reconciler(self.store, self.backend, self.home, loads=loads, prepare=launch)

    def image(self, path: Path) -> Life:
        """What there is if the process is killed now: the files of the database, and what runs."""
        for end in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{self.database}{end}", f"{path}{end}")
        kept = (copy.deepcopy(self.backend), self.sources, self.tools, self.now, self.commit, dict(self.asked))
        left = Life(self.home, *kept)
        left.database = path
        return left

    def pull(self, git: Any) -> Pulled:
        return Pulled(self.sources[0], self.commit, "one", PROJECT, None, None)

    # ---- what is asked ---------------------------------------------------------------------------------------

    def deploy(self, name: str, source: int, percent: int = 100, **settings: Any) -> None:
        self.asked[name] = DeployRequest(name, self.sources[source], settings=settings, percent=percent)
        deploys.deploy(self.control, self.asked[name])

    def deploy_git(self, name: str) -> None:
        git = {"url": "https://example.com/a.git"}
        self.asked.pop(name, None)
        deploys.deploy(self.control, DeployRequest(name, git=git, settings={"auto_rebuild": True}))

    def push(self, name: str) -> None:
        self.commit = f"{int(self.commit, 16) + 1:040x}"
        self.store.add_delivery(Delivery(name, self.now, "github", DeliveryState.QUEUED, "push", key=self.commit))

    def cancel(self) -> None:
        for build in self.store.unended_builds():
            self.store.cancel_build(build.id, self.now)

    def delete(self, name: str) -> None:
        self.store.delete_endpoint(name, self.now)
        self.asked.pop(name, None)

    def patch(self, name: str, **values: Any) -> None:
        self.asked.pop(name, None)
        deploys.patch(self.control, name, values)

    def work(self, steps: int = 1) -> None:
        """What the loops do for a while."""
        for _ in range(steps):
            self.now += 0.5
            for _name, job in self.rebuilds.due():
                with contextlib.suppress(NotFoundError):
                    job()
            self.builder.build_next()
            self.backend.tick(self.now)
            self.reconciler.step(self.now)

    def settle(self) -> None:
        """Until nothing is left to do; no hand is lent but what deactivates is activated, since that waits for one."""
        store = self.store
        for endpoint in store.endpoints():
            store.set_active(endpoint.name, True, self.now)
        for _ in range(60):
            self.work()
            pending = [r for r in store.snapshot().revisions if r.state in PENDING]
            if not (pending or store.unended_builds() or store.queued_deliveries()):
                return
        raise AssertionError(f"never comes to an end: {pending}, {store.unended_builds()}")

    def check(self) -> None:
        """What must hold when all is quiet."""
        store = self.store
        assert store.heal(self.now) == [], "something was left half done"
        snapshot = store.snapshot()
        assert snapshot.reserved == snapshot.waiting == ()
        for endpoint in snapshot.endpoints:
            revisions = store.revisions(endpoint.name)
            serving = {r.number for r in revisions if r.state is RevisionState.SERVING}
            assert serving == set(endpoint.shares), endpoint
            for revision in revisions:
                build = store.build(revision.build_id) if revision.build_id else None
                assert build is None or build.state not in UNENDED
                assert revision.state is not RevisionState.FAILED or revision.error, revision

    def ask_again(self) -> None:
        """The same deploys once more, then rebuilds: each is done, and `unchanged` is said of what serves only."""
        for name, wanted in self.asked.items():
            again = deploys.deploy(self.control, wanted)
            if again["unchanged"]:
                assert self.store.revision(name, again["revision"]).state is RevisionState.SERVING
        self.settle()
        for endpoint in self.store.endpoints():
            with contextlib.suppress(ConflictError):  # it was never deployed
                deploys.rebuild(self.control, endpoint.name)
        self.settle()
        self.check()


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    """Before the first deploy: sources and bundles are shared by all walks."""
    home = Home(tmp_path_factory.mktemp("crashes") / "home")
    sources = [make_source(home, f"x = {number}\n").digest for number in range(3)]
    tools = Tools()
    tools.bad = sources[2]
    life = Life(home, MemoryBackend(ready_after_s=1.0, stop_takes_s=0.5), sources, tools)
    life.begin(home.database)
    yield life
    life.store.close()


def survives(left: Life, thoroughly: bool) -> list[str]:
    """Start again from an image; what was healed."""
    left.begin(left.database)
    left.settle()
    left.check()
    if thoroughly:
        left.ask_again()
    left.store.close()
    return left.healed


STORY: list[Callable[[Life], object]] = [
    lambda life: life.deploy("one", 0, min_replica=1),
    lambda life: life.work(5),
    lambda life: life.deploy("one", 1, min_replica=1, percent=20),
    lambda life: life.work(5),
    lambda life: life.store.divide("one", {1: 50, 2: 50}, life.now),
    lambda life: traffic_split.promote(life.control, "one"),
    lambda life: life.work(4),
    lambda life: traffic_split.roll_back(life.control, "one"),
    lambda life: life.work(4),
    lambda life: deploys.rebuild(life.control, "one"),
    lambda life: life.cancel(),
    lambda life: life.deploy("one", 2, min_replica=1),
    lambda life: life.work(2),
    lambda life: life.patch("one", env={"A": "1"}, max_replica=2),
    lambda life: life.deploy("one", 1, percent=10),
    lambda life: traffic_split.roll_back(life.control, "one"),
    lambda life: life.deploy_git("two"),
    lambda life: life.work(4),
    lambda life: life.push("two"),
    lambda life: life.work(3),
    lambda life: life.delete("two"),
    lambda life: life.work(2),
]


@pytest.mark.process
def test_the_control_plane_may_die_between_any_two_writes_of_a_long_story(nothing: Life, tmp_path: Path) -> None:
    life = nothing.image(tmp_path / "story.db")
    life.begin(life.database)
    images: list[Life] = []
    life.store.wrote = lambda: images.append(life.image(tmp_path / f"{len(images)}.db"))
    for part in STORY:
        with contextlib.suppress(ConflictError):
            part(life)
    life.store.wrote = lambda: None
    life.settle()
    life.check()
    life.store.close()
    healed = [line for number, left in enumerate(images) for line in survives(left, thoroughly=number % 4 == 0)]
    assert len(images) > 80 and len(healed) > 20
    # A build under way is begun again; nothing else is ever left half done by what is one transaction.
    assert all("was under way" in line for line in healed), healed


def asks(rng: random.Random) -> Callable[[Life], object]:
    name = rng.choice(NAMES)
    number = rng.choice([1, 2, 3, None])
    settings = {"min_replica": rng.choice([0, 1]), "env": {"A": rng.choice("12")}}
    return rng.choice(
        [
            lambda life: life.deploy(name, rng.choice([0, 0, 1, 2]), rng.choice([100, 100, 10]), **settings),
            lambda life: life.deploy(name, rng.choice([0, 1]), 100, **settings),
            lambda life: life.deploy_git(name),
            lambda life: life.push(name),
            lambda life: deploys.rebuild(life.control, name),
            lambda life: life.cancel(),
            lambda life: life.delete(name),
            lambda life: traffic_split.roll_back(life.control, name, number),
            lambda life: traffic_split.promote(life.control, name, number),
            lambda life: traffic_split.divide(life.control, name, {1: 30, 2: 70}),
            lambda life: life.patch(name, env={"B": rng.choice("12")}, scale_down_delay_s=rng.choice([1, 2])),
            lambda life: life.store.scale(name, rng.choice([0, 1, 2]), "asked", life.now),
            lambda life: life.store.set_active(name, rng.random() < 0.5, life.now),
        ]
    )


@pytest.mark.parametrize(
    "seed", [*range(QUICK), *(pytest.param(n, marks=pytest.mark.process) for n in range(QUICK, WALKS))]
)
def test_a_random_walk_may_end_at_any_write(nothing: Life, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    life = nothing.image(tmp_path / "walk.db")
    images: list[Life] = []
    life.begin(life.database)

    def wrote() -> None:
        if rng.random() < SAMPLED:
            images.append(life.image(tmp_path / f"{len(images)}.db"))

    life.store.wrote = wrote
    for _ in range(25):
        with contextlib.suppress(PunaError):
            asks(rng)(life)
        life.work(rng.choice([0, 0, 1, 3]))
    life.store.close()
    for left in images:
        survives(left, thoroughly=rng.random() < 0.2)
    assert images


def test_a_death_in_the_middle_of_healing_leaves_it_to_the_next_start(nothing: Life, tmp_path: Path) -> None:
    life = nothing.image(tmp_path / "healing.db")
    life.begin(life.database)
    life.deploy("one", 0, min_replica=1)
    move_build(life.store, life.store.unended_builds()[0].id, BuildState.RUNNING)
    with pytest.raises(ZeroDivisionError), life.store._write() as connection:
        life.store._heal_builds(connection, life.now)
        raise ZeroDivisionError
    assert survives(life.image(tmp_path / "left.db"), thoroughly=True)
    life.store.close()
