"""Builds, side by side: environment, bundle and validation of a revision, or the environment of a runtime.

A build that was running when the control plane died starts again: its steps find what is there already.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from puna.artifacts import SHORT, Adapter, Bundle, Source
from puna.backends import local, machine, workspace
from puna.backends.base import Capacity, Launch
from puna.config import runtime
from puna.config.runtime import RuntimeSpec
from puna.control.builds import jobs
from puna.control.domain import api_keys
from puna.control.domain.records import Build, Revision, Snapshot, concurrency
from puna.control.domain.states import BuildState, StepState
from puna.control.operations.turns import Slots, is_free, next_build, subject
from puna.control.reconcile.launch import launch_of
from puna.control.reconcile.placement import Placement, SleepPolicy
from puna.control.resources.secrets import Secrets
from puna.control.store.store import Store
from puna.control.telemetry.log_files import build_log
from puna.errors import BuildError, ConflictError, NotFoundError, PunaError
from puna.home import Home
from puna.packaging import bundle as bundles
from puna.packaging import environment as environments
from puna.packaging import validation
from puna.packaging.bundle import ModelRef
from puna.packaging.environment import Environment
from puna.publish import registry as adapters
from puna.publish.registry import RegisteredVersion, Registry

LOG = logging.getLogger("puna.builder")
IDLE_S = 1.0
ROOM_S, LOOK_S = 30.0, 0.1  # how long, and how often, a validation looks for the room that others are to leave
OTHERS_S = 300.0
"""So long it waits for a GPU on which another build tries its app; then its first replica shows whether it works."""
ONE_BY_ONE = Slots(building=1, trying=1, guests=0)
MODELS = Slots(jobs.KINDS, building=1, trying=1, guests=0)
"""Merges and publishings: each takes the memory of a model."""

T = TypeVar("T")

Log = Callable[[str], None]
Cancelled = Callable[[], bool]


class BuildTools:
    """The three pieces of work, done by the rooms below."""

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

    def validate(
        self, launch: Launch, home: Home, report: Path, timeout_s: float, cancelled: Cancelled
    ) -> Mapping[str, Any]:
        """One guarded run of the app."""
        local.validate(launch, home, report, timeout_s, cancelled=cancelled)
        return validation.read(report, launch.log).schema_json


def _ref(registry: Registry, version: RegisteredVersion) -> ModelRef:
    ref = ModelRef(version.name, version.version, version.digest, version.path)
    if version.kind != Adapter.kind:
        return ref
    return dataclasses.replace(ref, base=registry.serving_base(version), rank=adapters.rank_of(version.path))


class Builder:
    """Takes queued builds; `run` is the loop that begins them, `build_next` one whole build for tests."""

    def __init__(
        self,
        store: Store,
        home: Home,
        *,
        tools: BuildTools | None = None,
        capacity: Callable[[], Capacity] = machine.capacity,
        clock: Callable[[], float] = time.time,
        between: Callable[[Collection[str]], None] = lambda _: None,
        slots: Slots = ONE_BY_ONE,
    ) -> None:
        """Over the store; builds of other kinds than its slots' are left to another.

        `between` is called when no bundle is being made, with those that builds under way have made already.
        """
        self.between, self.slots = between, slots
        self.store, self.home, self.tools = store, home, tools or BuildTools()
        self.secrets = Secrets(store, home.key)
        self.capacity, self.clock = capacity, clock
        self._woken = threading.Event()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._making = 0
        """Bundles that are being made."""
        self._made: dict[str, str] = {}
        """Build -> its bundle, until the store names that."""
        self._tried: dict[str, str] = {}
        """Build -> its owner, of those whose app is being tried."""
        self._digests: dict[str, str] = {}
        self._turns: dict[str, int] = {}
        self._turn = 0

    def wake(self) -> None:
        """Look for a build now."""
        self._woken.set()

    def run(self, stop: threading.Event) -> None:
        """Build until `stop`; what is being built then is left as it is, for the next start."""
        self._stop = stop
        while not stop.is_set():
            self._woken.clear()
            try:
                self._look_between()
                while not stop.is_set() and (build := self._claim()) is not None:
                    self._begin(build)
            except Exception:  # the log has it, and the loop goes on: a full disk is empty again one day
                LOG.exception("the builder failed")
            self._woken.wait(IDLE_S)

    def build_next(self) -> bool:
        """Build the one whose turn it is, to its end; False when none may begin."""
        build = self._claim()
        if build is not None:
            self._build(build)
        return build is not None

    def _claim(self) -> Build | None:
        """Begin the build whose turn it is, in the store."""
        queued = [b for b in self.store.unended_builds() if b.kind in self.slots.kinds]
        self._digests = {build.id: self._digest(build) for build in queued}

        def choose(queued: Sequence[Build], running: Sequence[Build]) -> Build | None:
            mine, others = ([b for b in builds if b.kind in self.slots.kinds] for builds in (queued, running))
            return next_build(mine, others, self.slots, self._digests, self._turns)

        build = self.store.claim_build(choose, self.clock()) if queued else None
        if build is not None:
            self._turn += 1
            waiting = {subject(one) for one in queued}
            self._turns = {one: turn for one, turn in self._turns.items() if one in waiting}
            self._turns[subject(build)] = self._turn
        return build

    def _digest(self, build: Build) -> str:
        """The environment of a build, empty when that cannot be said: then its own step says why."""
        if build.id not in self._digests and build.kind not in jobs.KINDS:
            with contextlib.suppress(PunaError, OSError):
                return self.spec(build, lambda line: None).digest
        return self._digests.get(build.id, "")

    def _begin(self, build: Build) -> None:
        thread = threading.Thread(target=self._build, args=(build,), name=f"build {build.id}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the machine has no thread to give
            self._end(build, _BuildWork(self, build), error)

    def _build(self, build: Build) -> None:
        """Build to the end, whatever comes: whoever deployed reads it in the build's error, log and detail."""
        work = _BuildWork(self, build)
        try:
            values = work.run()
        except Exception as error:  # noqa: BLE001 - `_end` writes it down
            self._end(build, work, error)
        else:
            self._insist(lambda: self.store.end_build(build.id, BuildState.SUCCEEDED, self.clock(), **values))
        finally:
            with self._lock:
                self._made.pop(build.id, None)
            self.wake()

    def _end(self, build: Build, work: _BuildWork, error: Exception) -> None:
        if self._stop.is_set():
            return  # the next control plane starts it again
        if not isinstance(error, PunaError):
            LOG.error("build %s failed", build.id, exc_info=error)
            error = BuildError(f"{type(error).__name__}: {error}", "see the log of `puna up`")
        why = {"error": error.message, "hint": error.hint, "detail": error.detail}
        is_cancelled = self._insist(lambda: self.store.build(build.id).cancel)
        lines = [error.detail, f"error: {error.message}", error.hint and f"hint: {error.hint}"]
        work.log("cancelled" if is_cancelled else "\n".join(filter(None, lines)))
        self._insist(lambda: self.store.end_build(build.id, BuildState.FAILED, self.clock(), **why))

    def _insist(self, call: Callable[[], T]) -> T | None:
        """Ask the store until it answers: a disk that is full keeps the end of a build waiting, and loses none."""
        is_told = False
        while True:
            try:
                return call()
            except (ConflictError, NotFoundError) as error:  # somebody else has ended or dropped it
                LOG.warning("%s", error.message)
                return None
            except Exception:  # the log has it, once
                if not is_told:
                    LOG.exception("the end of a build cannot be written; trying again until it can")
                is_told = True
            if self._stop.wait(IDLE_S):
                return None

    def cancelled(self, build_id: str) -> bool:
        """True when a build should end: it was cancelled, or the control plane stops."""
        return self._stop.is_set() or self.store.build(build_id).cancel

    def spec(self, build: Build, log: Log) -> RuntimeSpec:
        """The runtime of a build: the uploaded one; else the file beside the app; else the default one."""
        if build.kind == "runtime":
            return runtime.parse_text(self.store.runtime(build.subject, build.number).yaml)
        revision = self.store.revision(build.subject, build.number)
        if revision.runtime is not None:
            return runtime.parse_text(self.store.runtime(revision.runtime, revision.runtime_version).yaml)
        path = runtime.find(self.home.sources / revision.source[:SHORT] / "files")
        if path is None:
            log("no runtime file: the default environment is used")
        return runtime.load(path) if path else runtime.default()

    # ---- what builds side by side share -----------------------------------------------------------------------

    @contextlib.contextmanager
    def bundling(self, build: Build) -> Iterator[Callable[[str], None]]:
        """While a bundle is made, nothing is swept; then it is kept until the store names it."""
        with self._lock:
            self._making += 1
        try:
            yield partial(self._made.__setitem__, build.id)
        finally:
            with self._lock:
                self._making -= 1

    def _look_between(self) -> None:
        with self._lock:  # a bundle that is about to be made waits for the sweep
            if not self._making:
                self.between(set(self._made.values()))

    @contextlib.contextmanager
    def trying(self, build: Build, log: Log) -> Iterator[None]:
        """A place among the apps that are tried at once, waited for."""
        if not self._take_place(build):
            log("many apps are being tried: waiting for a place among them")
            while not self._take_place(build):
                if self.cancelled(build.id):
                    raise BuildError("cancelled")
                time.sleep(LOOK_S)
        try:
            yield
        finally:
            with self._lock:
                del self._tried[build.id]

    def _take_place(self, build: Build) -> bool:
        with self._lock:
            has_place = is_free(self.slots.trying, list(self._tried.values()), build.owner, self.slots.guests)
            if has_place:
                self._tried[build.id] = build.owner
            return has_place


class _BuildWork:
    """One build under way."""

    def __init__(self, builder: Builder, build: Build) -> None:
        self.builder, self.build = builder, build
        self.store, self.home, self.tools = builder.store, builder.home, builder.tools
        self._is_silent = False

    @property
    def path(self) -> Path:
        """Its log."""
        return build_log(self.home, self.build.id)

    def log(self, line: str) -> None:
        """A line for whoever follows the build, keys in it masked; a log that takes none ends no build."""
        try:
            with self.path.open("a") as file:
                file.write(api_keys.masked(line).rstrip("\n") + "\n")
        except OSError as error:
            if not self._is_silent:
                LOG.warning("the log of build %s cannot be written: %s", self.build.id, error)
            self._is_silent = True

    def cancelled(self) -> bool:
        """True when it is to stop."""
        return self.builder.cancelled(self.build.id)

    def run(self) -> dict[str, Any]:
        """All steps; what they found out about a revision."""
        self.path.unlink(missing_ok=True)
        self.path.touch(mode=0o600)
        if self.build.kind in jobs.KINDS:
            with self._step(self.build.kind):
                jobs.run(self.build, self.home, self.log, self.cancelled)
            return {}
        if self.build.kind == "runtime":
            self._environment()
            return {}
        revision = self.store.revision(self.build.subject, self.build.number)
        source = Source.open(self.home.sources / revision.source[:SHORT])
        environment = self._environment()
        with self._step("bundle"), self.builder.bundling(self.build) as keep:
            bundle = self.tools.bundle(source, environment, self.home, self.log)
            keep(bundle.digest)
        with self.builder.trying(self.build, self.log), self._step("validate"):
            schema = self._validate(revision, environment, bundle)
        values = {"environment": environment.digest, "bundle": bundle.digest, "schema": schema}
        return values | {"weights_bytes": _weights_bytes(bundle)}

    def _environment(self) -> Environment:
        with self._step("environment"):
            spec = self.builder.spec(self.build, self.log)
            return self.tools.environment(spec, self.home, self.log, self.cancelled)

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

    def _validate(self, revision: Revision, environment: Environment, bundle: Bundle) -> Mapping[str, Any] | None:
        """Run the app once; None when no GPU is free for it, then the rollout finds out."""
        gpu = self._place(revision)
        if gpu is None:
            self.log("no GPU is free: the app is not tried here, its first replica will show whether it works")
            return None
        run, settings = self.build.workspace, revision.settings
        launch = launch_of(run, revision, bundle, self.home, self.builder.secrets, self.path)
        launch = dataclasses.replace(launch, gpu=gpu)
        report = self.home.folder("logs", "builds") / f"{self.build.id}.json"
        try:
            limit_s = settings.startup_timeout_s + settings.inference_time_s
            schema = self.tools.validate(launch, self.home, report, limit_s, self.cancelled)
            told = concurrency(schema, settings.container_concurrency)
            if told is not None:
                self.log(f"concurrency: {told['text']}")
            return schema
        finally:
            workspace.remove(run, self.home)
            self.store.release(self.build.id)

    def _place(self, revision: Revision) -> str | None:
        """A GPU for the validation, an empty text for the CPU; None when even those that sleep leave no room."""
        is_hopeless = waits_for_builds = False

        def choose(snapshot: Snapshot) -> str | None:
            nonlocal is_hopeless, waits_for_builds
            room = Placement(self.builder.capacity(), snapshot.replicas, snapshot.reserved)
            place, sleep_policy = room.allocate(revision), SleepPolicy(snapshot.replicas, snapshot.endpoints)
            waits_for_builds = Placement(self.builder.capacity(), snapshot.replicas).allocate(revision) is not None
            can_come = waits_for_builds or room.to_evict(revision.settings.gpu_fraction, sleep_policy) is not None
            is_hopeless = place is None and not can_come
            return place

        begun = time.monotonic()
        while (place := self.store.reserve(self.build.id, revision.settings.gpu_fraction, choose)) is None:
            is_late = time.monotonic() > begun + (OTHERS_S if waits_for_builds else ROOM_S)
            if is_hopeless or is_late or self.cancelled():
                self.store.release(self.build.id)
                break
            time.sleep(LOOK_S)
        return place


def _weights_bytes(bundle: Bundle) -> int:
    return sum(path.stat().st_size for path in (bundle.path / "hub").rglob("*.safetensors"))
