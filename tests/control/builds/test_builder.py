"""Builds: steps with seconds, a log that can be followed, failures with their line, cancelling, starting again."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from control.conftest import gpus, make_source
from control.rows import add_revision, build_revision, save_endpoint
from puna.artifacts import Bundle, Source, drafting
from puna.backends.base import Capacity, Launch, Observed, Phase
from puna.config.runtime import RuntimeSpec
from puna.config.settings import Settings
from puna.control.builds import builder
from puna.control.builds.builder import Builder, BuildTools
from puna.control.domain.records import Build, Replica, RevisionSpec
from puna.control.domain.states import BuildState, ReplicaState, RevisionState, StepState
from puna.control.operations.turns import Slots
from puna.control.reconcile.actions import Drain
from puna.control.reconcile.plan import Actual, plan
from puna.control.store.store import Store
from puna.control.telemetry.log_files import build_log
from puna.errors import AppError, BuildError, ConflictError
from puna.home import Home
from puna.packaging.environment import Environment

SCHEMA = {"inputs": [{"name": "prompt"}]}


@dataclass
class FakeTools(BuildTools):
    """Tools that only write down what they were asked; `fails` names the step that raises."""

    fails: dict[str, Exception] = field(default_factory=dict)
    hang: threading.Event | None = None
    specs: list[RuntimeSpec] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    during: Callable[[], None] = lambda: None

    def environment(
        self, spec: RuntimeSpec, home: Home, log: Callable[[str], None], cancelled: Callable[[], bool]
    ) -> Environment:
        self.specs.append(spec)
        log("installing numpy")
        while self.hang is not None and not cancelled():
            self.hang.set()
        if cancelled():
            raise BuildError("cancelled")
        self._raise("environment")
        return Environment(home.environments / "e", "e" * 64, Path("/python"), ("numpy==1",))

    def bundle(self, source: Source, environment: Environment, home: Home, log: Callable[[str], None]) -> Bundle:
        self._raise("bundle")
        with drafting("bundle", home.bundles) as draft:
            (draft.path / "app").mkdir()
            (draft.path / "app" / "app.py").write_bytes((source.path / "files" / "app.py").read_bytes())
            (draft.path / "hub").mkdir()
            (draft.path / "hub" / "w.safetensors").write_bytes(b"x" * 100)
            draft.made_from["environment"] = environment.digest
        return Bundle.open(draft.final)

    def validate(
        self, launch: Launch, home: Home, report: Path, timeout_s: float, cancelled: Callable[[], bool]
    ) -> Mapping[str, Any]:
        self.launches.append(launch)
        assert (launch.app / "app.py").exists() and timeout_s > 0
        self.during()
        self._raise("validate")
        return SCHEMA

    def _raise(self, step: str) -> None:
        if step in self.fails:
            raise self.fails[step]


@dataclass
class Site:
    """A builder in a home, with one endpoint's revision waiting."""

    store: Store
    home: Home
    tools: FakeTools = field(default_factory=FakeTools)
    capacity: Capacity = field(default_factory=lambda: gpus(0))

    def __post_init__(self) -> None:
        self.builder = Builder(self.store, self.home, tools=self.tools, capacity=lambda: self.capacity)

    def queue(self, name: str = "app", **spec: Any) -> Build:
        settings = spec.pop("settings", Settings(env={"A": "1"}))
        source = spec.pop("source", None) or make_source(self.home)
        save_endpoint(self.store, name, settings, 1.0)
        revision = add_revision(self.store, name, RevisionSpec(source.digest, spec.get("runtime"), 1, settings), 1.0)
        return build_revision(self.store, name, revision.number, 1.0)

    def log(self, build: Build) -> str:
        return build_log(self.home, build.id).read_text()


@pytest.fixture
def site(store: Store, home: Home) -> Site:
    return Site(store, home)


def test_a_build_ends_with_a_revision_that_can_start(site: Site) -> None:
    build = site.queue()
    assert site.builder.build_next() and not site.builder.build_next()
    done, revision = site.store.build(build.id), site.store.revision("app", 1)
    assert done.state is BuildState.SUCCEEDED
    assert [(s.name, str(s.state), s.seconds is not None) for s in done.steps] == [
        ("environment", "done", True),
        ("bundle", "done", True),
        ("validate", "done", True),
    ]
    assert (revision.state, revision.environment, revision.weights_bytes) == (RevisionState.BUILT, "e" * 64, 100)
    assert Bundle.open(site.home.bundles / revision.bundle[:16]).digest == revision.bundle
    assert revision.schema == SCHEMA
    (launch,) = site.tools.launches
    assert launch.env["A"] == "1" and not launch.app.exists()
    log = site.log(build)
    assert log.index("== environment") < log.index("installing numpy") < log.index("== validate")


@pytest.mark.parametrize("step", ["environment", "bundle", "validate"])
def test_a_step_that_fails_names_its_line_and_fails_the_revision(site: Site, step: str) -> None:
    error = AppError("app.py line 3: No module named 'nump'", "add nump to the runtime", "Traceback ...\nline 3")
    site.tools.fails[step] = error
    build = site.queue()
    site.builder.build_next()
    failed, revision = site.store.build(build.id), site.store.revision("app", 1)
    assert failed.state is BuildState.FAILED and revision.state is RevisionState.FAILED
    for thing in (failed, revision):
        assert (thing.error, thing.hint, thing.detail) == (error.message, error.hint, error.detail)
    assert {s.name: str(s.state) for s in failed.steps}[step] == "failed"
    assert site.log(build).endswith("error: app.py line 3: No module named 'nump'\nhint: add nump to the runtime\n")


def test_an_error_of_our_own_is_seen_by_whoever_deployed(site: Site) -> None:
    site.tools.fails["bundle"] = ZeroDivisionError("oops")
    build = site.queue()
    site.builder.build_next()
    assert site.store.build(build.id).error == "ZeroDivisionError: oops"
    assert site.store.revision("app", 1).state is RevisionState.FAILED


def test_builds_run_in_the_order_they_were_asked_for(site: Site) -> None:
    runtime = site.store.add_runtime("rt", "d", "build:\n  python_packages: [numpy]\n", 0.5)
    site.queue(runtime="rt")
    site.builder.build_next()
    assert site.store.runtime("rt").state is BuildState.SUCCEEDED
    assert [s.name for s in site.store.build(runtime.build_id).steps] == ["environment"]
    site.builder.build_next()
    assert [spec.python_packages for spec in site.tools.specs] == [("numpy",), ("numpy",)]


def test_the_runtime_file_beside_the_app_is_used_else_the_default_one(site: Site) -> None:
    with drafting("source", site.home.sources) as draft:
        (draft.path / "files").mkdir()
        (draft.path / "files" / "app.py").write_text("")
        (draft.path / "files" / "inferless-runtime-config.yaml").write_text("build:\n  python_packages: [scipy]\n")
    site.queue(source=Source.open(draft.final))
    site.queue()
    site.builder.build_next()
    site.builder.build_next()
    assert site.tools.specs[0].python_packages == ("scipy",)
    assert "torch" in str(site.tools.specs[1].python_packages)


def test_a_running_build_is_cancelled(site: Site) -> None:
    site.tools.hang = threading.Event()
    build = site.queue()
    thread = threading.Thread(target=site.builder.build_next)
    thread.start()
    assert site.tools.hang.wait(5)
    site.store.cancel_build(build.id, 2.0)
    thread.join(5)
    assert site.store.build(build.id).state is BuildState.CANCELLED
    assert site.store.revision("app", 1).state is RevisionState.CANCELLED
    assert site.log(build).endswith("cancelled\n")


def test_a_waiting_build_is_cancelled_before_it_begins(site: Site) -> None:
    build = site.queue()
    site.store.cancel_build(build.id, 2.0)
    assert not site.builder.build_next()
    assert site.store.revision("app", 1).state is RevisionState.CANCELLED and site.tools.specs == []


def test_a_build_that_ran_when_the_control_plane_died_starts_again(site: Site) -> None:
    build = site.queue()
    stop = threading.Event()
    site.tools.during = stop.set  # the control plane ends in the middle of validation
    site.tools.fails["validate"] = AppError("ended")
    site.builder.run(stop)
    assert site.store.build(build.id).state is BuildState.RUNNING
    assert site.store.revision("app", 1).state is RevisionState.BUILDING
    after = Site(site.store, site.home)
    site.store.heal(2.0)
    again = site.store.build(build.id)
    assert again.state is BuildState.QUEUED and {str(s.state) for s in again.steps} == {"pending"}
    after.builder.build_next()
    assert site.store.revision("app", 1).state is RevisionState.BUILT


def test_a_deletion_during_a_build_ends_it_quietly(site: Site) -> None:
    build = site.queue()
    site.tools.during = lambda: site.store.delete_endpoint("app", 2.0)
    site.builder.build_next()
    assert site.store.build(build.id).state is BuildState.CANCELLED and site.store.endpoints() == []


def test_validation_takes_a_gpu_and_gives_it_back(site: Site) -> None:
    site.capacity = gpus(1)
    held: list[object] = []
    site.tools.during = lambda: held.append(site.store.snapshot().reserved)
    site.queue()
    site.builder.build_next()
    assert held == [(("0", 1.0),)] and site.store.snapshot().reserved == ()
    assert site.tools.launches[0].gpu == "0"


def test_without_a_free_gpu_the_rollout_has_to_show_whether_it_works(site: Site) -> None:
    site.capacity = gpus(1)
    save_endpoint(site.store, "other", Settings(), 1.0)
    site.store.add_replica("other", 1, "0", 1.0, 1.0)
    build = site.queue()
    site.builder.build_next()
    assert site.tools.launches == [] and "no GPU is free" in site.log(build)
    revision = site.store.revision("app", 1)
    assert revision.state is RevisionState.BUILT and revision.schema is None


def test_keys_in_a_build_log_are_masked(site: Site) -> None:
    site.tools.fails["bundle"] = BuildError("curl -H puna_0123abcd_" + "x" * 43)
    build = site.queue()
    site.builder.build_next()
    assert "puna_0123abcd_***" in site.log(build) and "x" * 43 not in site.log(build)


@pytest.mark.parametrize(
    ("asked", "said"),
    [(0, "one at a time: app.py:14 keeps self.prompt"), (8, "8 at once: container_concurrency says so")],
)
def test_how_many_calls_run_at_once_stands_in_the_log(
    site: Site, monkeypatch: pytest.MonkeyPatch, asked: int, said: str
) -> None:
    told = {"limit": 1, "text": "one at a time: app.py:14 keeps self.prompt"}
    monkeypatch.setitem(SCHEMA, "concurrency", told)
    build = site.queue(settings=Settings(container_concurrency=asked))
    site.builder.build_next()
    assert f"concurrency: {said}" in site.log(build)


def test_the_real_bundle_carries_the_app(site: Site) -> None:
    source = make_source(site.home)
    environment = Environment(site.home.environments / "e", "e" * 64, Path("/python"), ())
    bundle = BuildTools().bundle(source, environment, site.home, lambda line: None)
    assert (bundle.path / "app" / "app.py").read_text() == (source.path / "files" / "app.py").read_text()


def sleeping(site: Site) -> Replica:
    """Another endpoint's replica that sleeps on the only GPU."""
    site.capacity = gpus(1)
    save_endpoint(site.store, "other", Settings(), 1.0)
    add_revision(site.store, "other", RevisionSpec("s", None, None, Settings()), 1.0)
    for state in (RevisionState.BUILDING, RevisionState.BUILT, RevisionState.STARTING):
        site.store.move_revision("other", 1, state, 1.0)
    site.store.swap("other", 1, 1.0)
    site.store.scale("other", 0, "no request", 1.0)
    sleeper = site.store.add_replica("other", 1, "0", 1.0, 1.0)
    site.store.move_replica(sleeper.id, ReplicaState.READY, 1.0)
    site.store.move_replica(sleeper.id, ReplicaState.ASLEEP, 1.0)
    return sleeper


def test_room_that_a_sleeper_does_not_leave_is_not_waited_for_as_long_as_that_of_another_build(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "ROOM_S", 0.2)
    sleeping(site)
    build = site.queue()
    begun = time.monotonic()
    site.builder.build_next()
    assert 0.2 <= time.monotonic() - begun < builder.OTHERS_S / 10
    assert site.tools.launches == [] and "no GPU is free" in site.log(build)
    assert site.store.snapshot().waiting == site.store.snapshot().reserved == ()


def test_a_replica_that_sleeps_makes_room_for_validation(site: Site) -> None:
    sleeper = sleeping(site)
    build = site.queue()
    thread = threading.Thread(target=site.builder.build_next)
    thread.start()
    while not site.store.snapshot().waiting:
        time.sleep(0.01)
    snapshot, seen = site.store.snapshot(), Observed(sleeper.id, Phase.READY, schema={"tier": "asleep"})
    asked = plan(snapshot, Actual(site.capacity, {sleeper.id: seen}), 2.0)
    assert [(a.replica_id, a.reason) for a in asked if isinstance(a, Drain)] == [
        (sleeper.id, "makes room for a build of app")
    ]
    for gone in (ReplicaState.DRAINING, ReplicaState.STOPPING, ReplicaState.GONE):
        site.store.move_replica(sleeper.id, gone, 3.0)
    thread.join()
    assert [launch.gpu for launch in site.tools.launches] == ["0"]
    assert site.store.build(build.id).state is BuildState.SUCCEEDED
    assert site.store.snapshot().waiting == site.store.snapshot().reserved == ()


def test_one_that_sleeps_on_too_small_a_share_is_left_asleep(site: Site) -> None:
    site.capacity = gpus(1)
    save_endpoint(site.store, "other", Settings(), 1.0)
    for _ in range(2):
        half = site.store.add_replica("other", 1, "0", 0.5, 1.0)
        site.store.move_replica(half.id, ReplicaState.READY, 1.0)
    site.store.move_replica(half.id, ReplicaState.ASLEEP, 1.0)
    build = site.queue()
    site.builder.build_next()
    assert "no GPU is free" in site.log(build) and site.store.snapshot().waiting == ()
    assert site.store.replica(half.id).state is ReplicaState.ASLEEP


def test_a_log_that_cannot_be_written_ends_the_build_as_failed_and_nothing_else(site: Site) -> None:
    build = site.queue()
    build_log(site.home, build.id).mkdir()  # nobody writes there
    other = site.queue("other")
    site.builder.build_next()
    site.builder.build_next()
    failed = site.store.build(build.id)
    assert failed.state is BuildState.FAILED and "Error" in failed.error
    assert site.store.revision("app", 1).state is RevisionState.FAILED
    assert site.store.build(other.id).state is BuildState.SUCCEEDED


def test_a_log_that_takes_no_more_lines_ends_no_build(site: Site) -> None:
    build = site.queue()
    path = build_log(site.home, build.id)

    def breaks() -> None:
        path.unlink()
        path.mkdir()

    site.tools.during = breaks
    site.builder.build_next()
    assert site.store.build(build.id).state is BuildState.SUCCEEDED


class Disk:
    """SQLite's own `database or disk is full`: while it is full, no page more than there are."""

    def __init__(self, store: Store) -> None:
        self._store, self._is_full = store, False
        event.listen(store.engine, "connect", self._limit)

    def _limit(self, connection: Any, _: object) -> None:
        if self._is_full:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages}")

    def fill(self) -> None:
        """From now on there is no free page."""
        self._is_full = True
        self._store.engine.dispose()
        with contextlib.suppress(OperationalError):
            while True:
                self._store.add_event("x", "x", "x" * 500, 1.0)

    def clear(self) -> None:
        """There is room again."""
        self._is_full = False
        self._store.engine.dispose()


def test_the_builder_goes_on_when_a_full_disk_has_room_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "IDLE_S", 0.05)
    builds = [site.queue(), site.queue("other")]
    stop, is_full, disk = threading.Event(), threading.Event(), Disk(site.store)
    detail = "x" * 50_000  # what needs no new page may be written on a full disk, too
    site.tools.fails["validate"] = AppError("it raised", "", detail)

    def during() -> None:
        if not is_full.is_set():
            disk.fill()
            is_full.set()

    def now() -> list[Build]:
        return [site.store.build(build.id) for build in builds]

    site.tools.during = during
    thread = threading.Thread(target=site.builder.run, args=(stop,))
    thread.start()
    try:
        assert is_full.wait(20)
        with pytest.raises(OperationalError, match="full"):
            site.store.add_event("app", "x", "x" * 5000, 1.0)
        assert BuildState.RUNNING in [build.state for build in now()]
        disk.clear()
        until(lambda: not site.store.unended_builds())
    finally:
        disk.clear()
        stop.set()
        thread.join()
    assert {build.state for build in now()} == {BuildState.FAILED}
    assert ("it raised", detail) in [(build.error, build.detail) for build in now()]
    assert all(build.error == "it raised" or "full" in build.error for build in now())
    assert {revision.state for revision in site.store.revisions()} == {RevisionState.FAILED}


def until(condition: Callable[[], bool], limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def test_an_initialize_that_hangs_keeps_no_other_endpoint_from_being_built(site: Site) -> None:
    site.builder.slots = Slots(building=2)
    hangs, stop = threading.Event(), threading.Event()

    def during() -> None:
        if site.tools.launches[-1].env.get("HANGS"):
            hangs.wait(30)

    site.tools.during = during
    hanging = [site.queue(f"hanging-{n}", settings=Settings(env={"HANGS": "1"})) for n in range(4)]
    thread = threading.Thread(target=site.builder.run, args=(stop,))
    thread.start()
    try:
        until(lambda: len(site.tools.launches) == 4)
        other, again = site.queue("other"), site.queue("hanging-0")
        site.builder.wake()
        until(lambda: site.store.build(other.id).state is BuildState.SUCCEEDED)
        assert {site.store.build(one.id).state for one in hanging} == {BuildState.RUNNING}
        assert site.store.build(again.id).state is BuildState.QUEUED, "an endpoint's builds take turns"
        hangs.set()
        until(lambda: not site.store.unended_builds())
    finally:
        hangs.set()
        stop.set()
        thread.join()
    assert site.store.build(again.id).state is BuildState.SUCCEEDED


def test_a_place_to_be_tried_is_waited_for_and_the_wait_can_be_cancelled(site: Site) -> None:
    site.builder.slots = Slots(building=2, trying=1, guests=0)
    hangs, stop = threading.Event(), threading.Event()
    site.tools.during = lambda: hangs.wait(30) and None
    site.queue("hanging")
    thread = threading.Thread(target=site.builder.run, args=(stop,))
    thread.start()
    try:
        until(lambda: len(site.tools.launches) == 1)
        waiting = site.queue("waiting")
        until(lambda: "waiting for a place" in (site.log(waiting) if build_log(site.home, waiting.id).exists() else ""))
        site.store.cancel_build(waiting.id, 2.0)
        until(lambda: site.store.build(waiting.id).state is BuildState.CANCELLED)
    finally:
        hangs.set()
        until(lambda: not site.store.unended_builds())
        stop.set()
        thread.join()


def test_a_validation_waits_for_a_gpu_that_another_build_has(site: Site) -> None:
    site.builder.slots, site.capacity = Slots(building=2), gpus(1)
    stop, first = threading.Event(), threading.Event()
    site.tools.during = lambda: first.wait(30) and None if len(site.tools.launches) == 1 else None
    builds = [site.queue("one"), site.queue("two")]
    thread = threading.Thread(target=site.builder.run, args=(stop,))
    thread.start()
    try:
        until(lambda: any(fraction for _, fraction in site.store.snapshot().waiting))
        assert [gpu for gpu, _ in site.store.snapshot().reserved] == ["0"] and len(site.tools.launches) == 1
        first.set()
        until(lambda: not site.store.unended_builds())
    finally:
        first.set()
        stop.set()
        thread.join()
    assert [launch.gpu for launch in site.tools.launches] == ["0", "0"]
    assert {site.store.build(one.id).state for one in builds} == {BuildState.SUCCEEDED}


def test_nothing_is_swept_while_a_bundle_is_made_and_what_was_made_is_in_use(site: Site) -> None:
    told: list[set[str]] = []
    site.builder.between = lambda in_use: told.append(set(in_use))
    build = site.queue()
    site.tools.during = site.builder._look_between
    with site.builder.bundling(build):
        site.builder._look_between()
    assert told == []
    site.builder.build_next()
    site.builder._look_between()
    assert told == [{site.store.revision("app", 1).bundle}, set()]


def test_a_build_that_is_cancelled_at_its_last_moment_ends_cancelled(site: Site) -> None:
    build = site.queue()
    site.tools.during = lambda: site.store.cancel_build(build.id, 2.0) and None
    site.builder.build_next()
    assert site.store.build(build.id).state is BuildState.CANCELLED
    assert site.store.revision("app", 1).state is RevisionState.CANCELLED


def test_a_step_moves_as_the_table_says(site: Site) -> None:
    build = site.queue()
    with pytest.raises(ConflictError, match="step bundle of build .* cannot go from `pending` to `done`"):
        site.store.set_step(build.id, "bundle", StepState.DONE)
