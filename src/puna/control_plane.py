"""The control plane put together: every part of it is built here once, and its loops are started and stopped."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial

from starlette.concurrency import run_in_threadpool

from puna.backends.base import Phase
from puna.backends.local import LocalBackend
from puna.control.api.app import create_app
from puna.control.builds.builder import MODELS, Builder
from puna.control.builds.cleanup import Sweeper
from puna.control.domain.states import REPLICA_MOVES, ReplicaState
from puna.control.domain.timeline import Timeline
from puna.control.operations.context import Control
from puna.control.operations.origins import Repositories, make_app
from puna.control.operations.rebuilds import Rebuilds
from puna.control.operations.turns import Slots
from puna.control.reconcile.autoscaler import Autoscaler
from puna.control.reconcile.launch import Launching
from puna.control.reconcile.loop import Reconciler
from puna.control.reconcile.zygotes import ZygoteKeeper
from puna.control.resources.secrets import Secrets
from puna.control.store.store import Store
from puna.control.telemetry import log_limits
from puna.control.telemetry.history import History
from puna.control.telemetry.load import Loads
from puna.control.telemetry.usage_report import metering
from puna.control.telemetry.vitals import Vitals
from puna.control.wire import Memories
from puna.home import Home
from puna.packaging import command
from puna.process.liveness import HeartbeatSender

LOOP_AGAIN_S = 1.0
LOG = logging.getLogger("puna.server")
Loop = Callable[[threading.Event], None]


class ControlPlane:
    """The parts of a running control plane: `app` is its API, `start` and `stop` are its loops'."""

    def __init__(self, home: Home, owner_fd: int, url: str, memories: Memories) -> None:
        """`owner_fd` ends with the supervisor, and every replica with it; `url` is where the gateways listen.

        Raises:
            MachineError: the database was written by a newer Puna.
            UsageError: PUNA_DATABASE_URL names no database.
        """
        self.store = store = Store(os.environ.get("PUNA_DATABASE_URL") or f"sqlite:///{home.database}")
        store.timeline = Timeline()
        self.backend = backend = LocalBackend(home, owner_fd)
        settle(store, backend, time.time())
        secrets, loads = Secrets(store, home.key), Loads()
        autoscaler = Autoscaler(store, loads)
        loads.on_waiting = autoscaler.poke
        launching = Launching(store, home, secrets)
        zygotes = ZygoteKeeper(store, backend, launching)
        reconciler = Reconciler(store, backend, home, loads=loads, prepare=launching, zygotes=zygotes)
        # One builder for endpoints and runtimes, one for models: a merge of minutes keeps no deploy waiting.
        builder = Builder(store, home, between=Sweeper(store, home).look, slots=Slots(building=command.slots()))
        models = Builder(store, home, slots=MODELS)
        history, repositories = History(memories, loads, store.snapshot), Repositories(secrets, home)
        self.vitals = Vitals(store, home, loads, [_name(autoscaler.run), _name(reconciler.run)])
        self.vitals.silent_guards = backend.silent
        rebuilds_due = threading.Event()

        def wake_builders() -> None:
            builder.wake()
            models.wake()

        control = Control(
            store,
            home,
            loads,
            secrets,
            url,
            wake=wake_builders,
            pull=repositories.pull,
            head=repositories.head,
            make=partial(make_app, home, secrets.open),
            wake_rebuilds=rebuilds_due.set,
            warm=zygotes.view,
            gpu_use=backend.watch.use,
            memories=memories,
            history=history,
            vitals=self.vitals,
        )
        self.app = create_app(control)
        rebuilds = Rebuilds(control, rebuilds_due)
        logs = partial(log_limits.keep, home, self._logging, store.timeline)
        # The first two start replicas.
        self._loops: list[Loop] = [autoscaler.run, reconciler.run, builder.run, history.run, models.run, rebuilds.run]
        self._loops += [backend.watch.run, partial(metering, store), logs]
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._asked: set[asyncio.Task[None]] = set()  # kept: the event loop itself does not

    def start(self) -> None:
        """Run every loop in a thread of its own."""
        turns = [(loop, self.vitals.turns(_name(loop), self._stopped)) for loop in self._loops]
        self._threads = [threading.Thread(target=keep_on, args=turn, daemon=True) for turn in turns]
        self._threads.append(threading.Thread(target=keep_on, args=(self.vitals.run, self._stopped), daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self, grace_s: float) -> None:
        """End the loops, then every replica, which has `grace_s` for `finalize`; the store is closed."""
        self._stopped.set()
        for thread in self._threads[:2]:
            thread.join(grace_s / 2)  # neither may start a replica that nobody would stop
        try:
            self._stop_replicas(grace_s)
        finally:
            self.store.close()

    def beat(self, heart: HeartbeatSender) -> None:
        """From the event loop: say how it is, and see whether handlers still get a thread."""
        now = time.monotonic()
        heart.beat(self.vitals.illness(now))
        if self.vitals.handlers_asked(now):
            asked = asyncio.get_running_loop().create_task(run_in_threadpool(self.vitals.handlers_answered))
            self._asked.add(asked)
            asked.add_done_callback(self._asked.discard)

    def _logging(self) -> set[str]:
        """The replicas and zygotes whose logs stay."""
        return {replica.id for replica in self.store.replicas()} | {one.name for one in self.backend.zygotes()}

    def _stop_replicas(self, grace_s: float) -> None:
        """Let every replica run `finalize`; what takes longer ends with the supervisor's pipe."""
        deadline = time.monotonic() + grace_s
        for seen in self.backend.list():
            self.backend.stop(seen.replica_id, grace_s)
        while time.monotonic() < deadline:
            if all(seen.phase is Phase.EXITED for seen in self.backend.list()):
                return
            time.sleep(0.05)


def settle(store: Store, backend: LocalBackend, now: float) -> None:
    """Put right what the last `puna up` left half done; replicas that ended with it have not failed."""
    for line in store.heal(now):
        logging.getLogger("puna.store").warning("healed: %s", line)
    alive = {seen.replica_id for seen in backend.list()}
    ended = [replica for replica in store.replicas() if replica.id not in alive]
    store.skip_usage([replica.id for replica in ended], now)
    for replica in ended:
        if ReplicaState.STOPPING in REPLICA_MOVES[replica.state]:
            store.move_replica(replica.id, ReplicaState.STOPPING, now, reason="`puna up` had ended")


def keep_on(loop: Loop, stopped: threading.Event) -> None:
    """Run one of the control plane's loops until `stopped`: no error of its own ends it for good."""
    while not stopped.is_set():
        try:
            loop(stopped)
            return
        except Exception:  # the log has it, and the loop begins anew
            name = getattr(loop, "__qualname__", loop)
            LOG.exception("a loop of the control plane ended (%s) and begins again", name)
            stopped.wait(LOOP_AGAIN_S)


def _name(loop: Loop) -> str:
    owner = getattr(loop, "__self__", None)
    return type(owner).__name__.lower() if owner is not None else getattr(loop, "func", loop).__name__
