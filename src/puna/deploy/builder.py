"""Builds, one at a time: environment, bundle and validation of a revision, or the environment of a runtime.

A build that was running when the control plane died starts again: its steps find what is there already.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from puna.artifacts import SHORT, Adapter, Bundle, Source
from puna.backends import local, machine, workspace
from puna.backends.base import Capacity, Launch
from puna.build import bundle as bundles
from puna.build import environment as environments
from puna.build import validation
from puna.build.bundle import ModelRef
from puna.build.environment import Environment
from puna.deploy import commands, keys
from puna.deploy.launching import environment_of, mounts_of
from puna.deploy.logs import build_log
from puna.deploy.napping import Sleepers
from puna.deploy.records import Build, Revision, Snapshot
from puna.deploy.room import Room
from puna.deploy.secrets import Secrets
from puna.deploy.states import PENDING, BuildState, RevisionState, StepState
from puna.deploy.store import Store
from puna.errors import BuildError, ConflictError, NotFoundError, PunaError
from puna.home import Home
from puna.publish import adapters
from puna.publish.registry import ModelVersion, Registry
from puna.spec import runtime
from puna.spec.runtime import RuntimeSpec

LOG = logging.getLogger("puna.builder")
IDLE_S = 1.0
ROOM_S, LOOK_S = 30.0, 0.1  # how long, and how often, a validation looks for the room that others are to leave

Log = Callable[[str], None]
Cancelled = Callable[[], bool]


class Tools(Protocol):
    """The three pieces of work; `RealTools` does them."""

    def environment(self, spec: RuntimeSpec, home: Home, log: Log, cancelled: Cancelled) -> Environment:
        """The environment of a runtime."""

    def bundle(self, source: Source, environment: Environment, home: Home, log: Log) -> Bundle:
        """What a replica runs."""

    def validate(self, launch: Launch, report: Path, timeout_s: float, cancelled: Cancelled) -> Mapping[str, Any]:
        """Run the app once on its examples; returns its schema."""


class RealTools:
    """The rooms below, called."""

    def environment(self, spec: RuntimeSpec, home: Home, log: Log, cancelled: Cancelled) -> Environment:
        """The environment, built unless it is there."""
        return environments.build(spec, home, log, cancelled=cancelled)

    def bundle(self, source: Source, environment: Environment, home: Home, log: Log) -> Bundle:
        """The bundle, with the published models that the app names."""
        registry = Registry(home)
        names = bundles.models_named(source, {version.name for version in registry.list()})
        found = [registry.resolve(name) for name in names]
        for version in found:
            log(f"model {version.ref} ({version.digest[:SHORT]})")
        models: Sequence[ModelRef] = [_ref(registry, version) for version in found]
        return bundles.bundle(source, environment, models, home)

    def validate(self, launch: Launch, report: Path, timeout_s: float, cancelled: Cancelled) -> Mapping[str, Any]:
        """One guarded run of the app."""
        local.validate(launch, report, timeout_s, cancelled=cancelled)
        return validation.read(report, launch.log).schema_json


def _ref(registry: Registry, version: ModelVersion) -> ModelRef:
    ref = ModelRef(version.name, version.version, version.digest, version.path)
    if version.kind != Adapter.kind:
        return ref
    return dataclasses.replace(ref, base=registry.serving_base(version), rank=adapters.rank_of(version.path))


class Builder:
    """Takes queued builds in order; `run` is its thread, `build_next` one build for tests."""

    def __init__(
        self,
        store: Store,
        home: Home,
        *,
        tools: Tools | None = None,
        capacity: Callable[[], Capacity] = machine.capacity,
        clock: Callable[[], float] = time.time,
        kinds: Collection[str] = ("revision", "runtime"),
        between: Callable[[], None] = lambda: None,
    ) -> None:
        """Over the store; it takes builds of `kinds` only, and leaves the others to another's thread.

        `between` is called in its thread, when no build is under way in it.
        """
        self.kinds, self.between = kinds, between
        self.store, self.home, self.tools = store, home, tools or RealTools()
        self.secrets = Secrets(store, home.key)
        self.capacity, self.clock = capacity, clock
        self._woken = threading.Event()
        self._stop = threading.Event()

    def wake(self) -> None:
        """Look for a build now."""
        self._woken.set()

    def run(self, stop: threading.Event) -> None:
        """Build until `stop`; what is being built then is left as it is, for the next start."""
        self._stop = stop
        self.requeue()
        while not stop.is_set():
            self._woken.clear()
            try:
                self.between()
                if self.build_next():
                    continue
            except Exception:  # the log has it, and the loop goes on; the build's own errors never come here
                LOG.exception("the builder failed")
            self._woken.wait(IDLE_S)

    def requeue(self) -> None:
        """Put builds that were running when the control plane died back into the queue."""
        for build in self.store.builds(BuildState.RUNNING):
            if build.kind not in self.kinds:
                continue
            self.store.release(build.id)
            for step in build.steps:
                self.store.set_step(build.id, step.name, StepState.PENDING)
            self.store.move_build(build.id, BuildState.QUEUED)
            revision = self._revision(build)
            if revision is not None and revision.state is RevisionState.BUILDING:
                self.store.move_revision(build.subject, build.number, RevisionState.QUEUED, self.clock())

    def build_next(self) -> bool:
        """Build the one that has waited longest, to its end; False when none waits."""
        build = self.store.next_build(self.kinds)
        if build is None:
            return False
        try:
            self.store.move_build(build.id, BuildState.RUNNING)
        except ConflictError:
            return True  # cancelled in between
        work = _Work(self, build)
        try:
            values = work.run()
        except Exception as error:  # noqa: BLE001 - whoever deployed sees it in the build's error, log and detail
            self._ended_badly(build, work, error)
            return True
        self.store.move_build(build.id, BuildState.SUCCEEDED)
        if build.kind == "revision":
            self._mark(build, RevisionState.BUILT, **values)
        return True

    def cancelled(self, build_id: str) -> bool:
        """Whether a build should end: it was cancelled, or the control plane stops."""
        return self._stop.is_set() or self.store.build(build_id).cancel

    def _ended_badly(self, build: Build, work: _Work, error: Exception) -> None:
        if self._stop.is_set():
            return  # the next control plane starts it again
        if self.store.build(build.id).cancel:
            work.log("cancelled")
            self.store.move_build(build.id, BuildState.CANCELLED)
            self._mark(build, RevisionState.CANCELLED)
            return
        if not isinstance(error, PunaError):
            LOG.error("build %s failed", build.id, exc_info=error)
            error = BuildError(f"{type(error).__name__}: {error}", "see the log of `puna up`")
        work.log(
            "\n".join(filter(None, [error.detail, f"error: {error.message}", error.hint and f"hint: {error.hint}"]))
        )
        why = {"error": error.message, "hint": error.hint, "detail": error.detail}
        self.store.move_build(build.id, BuildState.FAILED, **why)
        self._mark(build, RevisionState.FAILED, **why)

    def _mark(self, build: Build, state: RevisionState, **values: Any) -> None:
        revision = self._revision(build)
        if revision is not None and revision.state in PENDING:
            self.store.move_revision(build.subject, build.number, state, self.clock(), **values)

    def _revision(self, build: Build) -> Revision | None:
        """The build's revision; None for a runtime, and for an endpoint that was deleted."""
        with contextlib.suppress(NotFoundError):
            return self.store.revision(build.subject, build.number) if build.kind == "revision" else None
        return None


class _Work:
    """One build under way."""

    def __init__(self, builder: Builder, build: Build) -> None:
        self.builder, self.build = builder, build
        self.store, self.home, self.tools = builder.store, builder.home, builder.tools
        self.path = build_log(self.home, build.id)
        self.path.unlink(missing_ok=True)
        self.path.touch(mode=0o600)

    def log(self, line: str) -> None:
        """A line for whoever follows the build; keys in it are masked."""
        with self.path.open("a") as file:
            file.write(keys.masked(line).rstrip("\n") + "\n")

    def cancelled(self) -> bool:
        """Whether to stop."""
        return self.builder.cancelled(self.build.id)

    def run(self) -> dict[str, Any]:
        """All steps; what they found out about a revision."""
        if self.build.kind in commands.KINDS:
            with self._step(self.build.kind):
                commands.run(self.build, self.home, self.log, self.cancelled)
            return {}
        if self.build.kind == "runtime":
            spec = runtime.parse_text(self.store.runtime(self.build.subject, self.build.number).yaml)
            with self._step("environment"):
                self.tools.environment(spec, self.home, self.log, self.cancelled)
            return {}
        clock = self.builder.clock
        revision = self.store.revision(self.build.subject, self.build.number)
        revision = self.store.move_revision(revision.endpoint, revision.number, RevisionState.BUILDING, clock())
        source = Source.open(self.home.sources / revision.source[:SHORT])
        with self._step("environment"):
            environment = self.tools.environment(self._spec(revision, source), self.home, self.log, self.cancelled)
        with self._step("bundle"):
            bundle = self.tools.bundle(source, environment, self.home, self.log)
        with self._step("validate"):
            schema = self._validate(revision, environment, bundle)
        values = {"environment": environment.digest, "bundle": bundle.digest, "schema": schema}
        return values | {"weights_bytes": _weights_bytes(bundle)}

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[None]:
        if self.cancelled():
            raise BuildError("cancelled")
        begun = time.monotonic()
        self.log(f"== {name}")
        self.store.set_step(self.build.id, name, StepState.RUNNING)
        try:
            yield
        except BaseException:  # raised again: `build_next` writes it down
            self.store.set_step(self.build.id, name, StepState.FAILED, time.monotonic() - begun)
            raise
        self.store.set_step(self.build.id, name, StepState.DONE, time.monotonic() - begun)

    def _spec(self, revision: Revision, source: Source) -> RuntimeSpec:
        """The uploaded runtime; else the file beside the app; else the default one."""
        if revision.runtime is not None:
            return runtime.parse_text(self.store.runtime(revision.runtime, revision.runtime_version).yaml)
        path = runtime.find(source.path / "files")
        if path is None:
            self.log("no runtime file: the default environment is used")
        return runtime.load(path) if path else runtime.default()

    def _validate(self, revision: Revision, environment: Environment, bundle: Bundle) -> Mapping[str, Any] | None:
        """Run the app once; None when no GPU is free for it, then the rollout finds out."""
        gpu = self._place(revision)
        if gpu is None:
            self.log("no GPU is free: the app is not tried here, its first replica will show whether it works")
            return None
        run, settings = f"build-{self.build.id}", revision.settings
        launch = Launch(
            replica_id=run,
            python=environment.python,
            app=workspace.prepare(bundle, run, self.home),
            socket=self.home.replica_socket(run),
            log=self.path,
            env=environment_of(bundle, revision, self.builder.secrets),
            gpu=gpu,
            gpu_fraction=settings.gpu_fraction,
            vcpu=settings.vcpu,
            memory_bytes=int(settings.ram_gib * 2**30),
            concurrency=settings.container_concurrency,
            inference_time_s=settings.inference_time_s,
            startup_timeout_s=settings.startup_timeout_s,
            mounts=mounts_of(self.home, revision),
        )
        report = self.home.folder("logs", "builds") / f"{self.build.id}.json"
        try:
            limit_s = settings.startup_timeout_s + settings.inference_time_s
            return self.tools.validate(launch, report, limit_s, self.cancelled)
        finally:
            workspace.remove(run, self.home)
            self.store.release(self.build.id)

    def _place(self, revision: Revision) -> str | None:
        """A GPU for the validation, an empty text for the CPU; None when even those that sleep leave no room."""
        is_hopeless = False

        def choose(snapshot: Snapshot) -> str | None:
            nonlocal is_hopeless
            room = Room(self.builder.capacity(), snapshot.replicas, snapshot.reserved)
            place, sleepers = room.take(revision), Sleepers(snapshot.replicas, snapshot.endpoints)
            is_hopeless = place is None and room.to_evict(revision.settings.gpu_fraction, sleepers) is None
            return place

        until = time.monotonic() + ROOM_S
        while (place := self.store.reserve(self.build.id, revision.settings.gpu_fraction, choose)) is None:
            if is_hopeless or self.cancelled() or time.monotonic() > until:
                self.store.release(self.build.id)
                break
            time.sleep(LOOK_S)
        return place


def _weights_bytes(bundle: Bundle) -> int:
    return sum(path.stat().st_size for path in (bundle.path / "hub").rglob("*.safetensors"))
