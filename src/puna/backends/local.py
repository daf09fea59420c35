"""Replicas on this machine: a guard each, found again by their sockets after a restart."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from puna.artifacts import write_json
from puna.backends import guards, machine, shares, workspace
from puna.backends.base import Capacity, Launch, Observed, Phase, Zygote
from puna.backends.machine import NVML, Devices
from puna.backends.shares import LOOK_EVERY_S, GpuEnforcer, ResourceShare, gpu_excess, used_by
from puna.backends.zygotes import Zygotes
from puna.home import Home
from puna.process import tree
from puna.process.guard import tail
from puna.process.tree import Process, descendants

LOG = logging.getLogger("puna.backend")
WORKER = Path(__file__).parent.parent / "worker"
GO_ALONG = ("__init__.py", "renewal.py", "tree.py")
"""Modules of process/ that the worker uses: they import nothing of Puna's."""
WORKER_ENTRY = "import sys\nfrom puna.worker.main import main\nsys.exit(main(sys.argv[1:]))\n"
REPLICA_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class LocalBackend:
    """Starts a guard for each replica; remembers nothing that the guards do not know."""

    def __init__(self, home: Home, owner_fd: int | None = None, devices: Devices = NVML) -> None:
        """`owner_fd` is the read end of the owner's pipe; without it, this process is the owner."""
        self._home, self._devices, self._cores = home, devices, shares.Cores()
        if owner_fd is None:
            owner_fd, self._lifeline = os.pipe()  # the write end closes when this process ends
        self._owner_fd = owner_fd
        self._guards = guards.Guards()
        self._zygotes = Zygotes(home, owner_fd, self._guards)
        self.watch = GpuEnforcer(home, devices)
        self._last_seen: dict[str, Observed] = {}
        self._workers: dict[str, Process] = {}
        self._has_warned = False

    def capacity(self) -> Capacity:
        """The machine's room; devices are looked up once."""
        return self._capacity

    @cached_property
    def _capacity(self) -> Capacity:
        return machine.capacity(self._devices)

    def start(self, launch: Launch) -> None:
        """Start guard and worker, from their zygote where there is one; returns when the guard listens (some 30 ms).

        The same id twice starts one.

        Raises:
            MachineError: the guard could not be started.
        """
        if not REPLICA_ID.fullmatch(launch.replica_id):
            raise ValueError(f"{launch.replica_id!r} cannot be a replica's id")
        worker = worker_folder(self._home.folder("worker"))
        argv = guards.worker_command(launch, worker, "serve", "--socket", str(launch.socket))
        argv += ["--concurrency", str(launch.concurrency), "--asked", str(time.monotonic()), "--log", "cri"]
        others = [i for i, one in self._last_seen.items() if one.phase is not Phase.EXITED and i != launch.replica_id]
        share = shares.of(launch, self._capacity, 1 + len(others))
        config = guards.config(launch, "serve", argv, self._owner_fd) | self._files(launch.replica_id)
        config |= _limits(launch, share, self._choose_cores(launch.replica_id, share))
        if not (launch.warm and self._zygotes.fork(launch.warm, config)):
            guards.start(config | {"argv": workspace.with_volumes(launch.mounts, argv)})

    def _choose_cores(self, replica_id: str, share: ResourceShare) -> Sequence[int]:
        if not share.cores:
            return ()
        running = {seen.replica_id: seen.pid for seen in self.list() if seen.phase is not Phase.EXITED}
        return self._cores.choose(replica_id, share.cores, running)

    def stop(self, replica_id: str, grace_s: float) -> None:
        """Drain, finalize, end the process tree after `grace_s` at the latest; an unknown id is fine."""
        with contextlib.suppress(TimeoutError):  # a guard that is too busy to answer reads the command later
            self._ask(replica_id, {"command": "stop", "grace_s": grace_s})

    def sleep(self, replica_id: str) -> None:
        """Ask a ready replica to sleep; an unknown id is fine."""
        with contextlib.suppress(TimeoutError):
            self._ask(replica_id, {"command": "sleep"})

    def wake(self, replica_id: str) -> None:
        """Ask a replica that sleeps to wake; an unknown id is fine."""
        with contextlib.suppress(TimeoutError):
            self._ask(replica_id, {"command": "wake"})

    def lease(self, replica_id: str, lease_s: float) -> None:
        """End the replica unless this is called again within `lease_s`; an unknown id is fine."""
        with contextlib.suppress(TimeoutError):
            self._ask(replica_id, {"command": "lease", "s": lease_s})

    def list(self) -> list[Observed]:
        """Every replica whose guard has left a trace; one whose guard was killed has exited."""
        ids = sorted(path.stem for path in self._home.sockets.glob("*.guard"))
        seen = [self._observe(replica_id) for replica_id in ids]
        # One that is seen as dead and has no socket any more had it deleted since the names were read.
        seen = [
            one for one in seen if one.phase is not Phase.EXITED or self._home.guard_socket(one.replica_id).exists()
        ]
        seen += self._nameless({one.replica_id for one in seen})
        known = {name: worker for name, worker in self._workers.items() if worker.start_ticks}
        self._workers = {
            one.replica_id: known.get(one.replica_id) or Process(one.pid, tree.start_ticks(one.pid)) for one in seen
        }
        self._last_seen = {one.replica_id: one for one in seen}
        return seen

    def _nameless(self, found: set[str]) -> Sequence[Observed]:
        """Those whose sockets somebody has deleted and whose workers live: their guards are back within a second."""
        lost = [one for name, one in self._last_seen.items() if name not in found and one.phase is not Phase.EXITED]
        alive = [one for one in lost if tree.is_alive(self._workers[one.replica_id])]
        if alive and not self._has_warned:
            names = ", ".join(one.replica_id for one in alive)
            LOG.warning("sockets in %s were deleted; what runs listens again by itself: %s", self._home.sockets, names)
        self._has_warned = bool(alive)
        return alive

    def forget(self, replica_id: str) -> None:
        """Drop what is remembered of a replica that has exited, its working copy too; a living one stays."""
        try:
            status = self._ask(replica_id, {"command": "forget"})
        except TimeoutError:
            return  # it is killing what is left of the replica; ask again later
        if status is None:  # its guard is dead: nobody else clears up
            record = self._record(replica_id)
            if tree.is_alive(_process(record, "guard")) or tree.end(_process(record, "worker")):
                return
            for path in (*self._files(replica_id).values(), str(self._home.replica_socket(replica_id))):
                Path(path).unlink(missing_ok=True)
        elif status["phase"] != Phase.EXITED:
            return
        workspace.remove(replica_id, self._home)

    def warm(self, launch: Launch) -> None:
        """Start guard and zygote; the same name twice starts one.

        Raises:
            MachineError: the guard could not be started.
        """
        self._zygotes.begin(launch, worker_folder(self._home.folder("worker")))
        known = {zygote.name for zygote in self._zygotes.list()}
        for path in self._home.workspaces.glob("zygote-*"):
            if path.name not in known:  # its guard ended with an earlier owner, and nobody cooled it
                workspace.remove(path.name, self._home)

    def cool(self, name: str) -> None:
        """End a zygote and forget it, its working copy too; an unknown name is fine."""
        self._zygotes.end(name)
        workspace.remove(name, self._home)

    def zygotes(self) -> tuple[Zygote, ...]:
        """Every zygote whose guard has left a trace."""
        return self._zygotes.list()

    def _files(self, replica_id: str) -> dict[str, str]:
        return guards.files(self._home.guard_socket(replica_id))

    def _observe(self, replica_id: str) -> Observed:
        try:
            status = self._ask(replica_id, {"command": "status"})
        except TimeoutError:
            return self._last_seen.get(replica_id) or Observed(replica_id, Phase.STARTING)
        if status is None:
            return self._orphaned(replica_id)
        return Observed(
            replica_id,
            Phase(status["phase"]),
            status["worker_pid"],
            status["exit_code"],
            status["reason"],
            tuple(status["last_lines"]),
            status["ready_s"],
            status["schema"],
        )

    def _orphaned(self, replica_id: str) -> Observed:
        """The guard was killed. Its worker ends by itself; one that cannot (stuck in C) is ended here."""
        record = self._record(replica_id)
        if tree.is_alive(_process(record, "guard")):  # its socket was deleted: it is about to listen again
            return self._last_seen.get(replica_id) or Observed(replica_id, Phase.STARTING)
        if tree.end(_process(record, "worker")):
            return Observed(replica_id, Phase.STARTING, reason="its guard was killed; its worker is ending")
        lines = tuple(tail(str(record.get("log", ""))))
        was_silent = self._home.guard_socket(replica_id) in self._guards.ended
        reason = guards.SILENT if was_silent else "its guard was killed"
        return Observed(replica_id, Phase.EXITED, reason=reason, last_lines=lines)

    def _record(self, replica_id: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(Path(self._files(replica_id)["record"]).read_text())
        except (OSError, ValueError):
            return {}
        return found

    def _ask(self, replica_id: str, command: dict[str, object]) -> dict[str, Any] | None:
        return self._guards.ask(self._home.guard_socket(replica_id), command)

    def silent(self) -> Sequence[str]:
        """Replicas whose guards do not answer."""
        return [path.stem for path in self._guards.silent if path.suffix == ".guard"]


@cache
def _worker_files() -> Mapping[str, bytes]:
    paths = [*WORKER.rglob("*.py"), *(WORKER.parent / "process" / name for name in GO_ALONG)]
    files = {f"puna/{path.relative_to(WORKER.parent).as_posix()}": path.read_bytes() for path in paths}
    return {"__main__.py": WORKER_ENTRY.encode(), "puna/__init__.py": b"", **dict(sorted(files.items()))}


def worker_folder(folder: Path) -> Path:
    """The worker's sources alone in `folder/worker-<digest>`, written once; any CPython from 3.8 on runs that folder.

    An interpreter keeps its compiled modules beside them, and could not inside a zip: 40 ms a start.
    """
    files = _worker_files()
    digest = hashlib.sha256(json.dumps([(name, data.decode()) for name, data in files.items()]).encode()).hexdigest()
    path = folder / f"worker-{digest[:16]}"
    if not path.exists():
        temporary = folder / f".{uuid.uuid4().hex}"
        for name, data in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(data)
        try:
            temporary.rename(path)
        except OSError:  # another process was faster
            shutil.rmtree(temporary)
    return path


def validate(
    launch: Launch,
    home: Home,
    report: Path,
    timeout_s: float,
    *,
    cancelled: Callable[[], bool] = lambda: False,
    devices: Devices = NVML,
) -> None:
    """Run the `validate` of `home`'s worker to its end, to `timeout_s` or to cancellation; nothing of it is left.

    The report is there afterwards in every case: where the run was ended, it names the phase and says why.
    """
    report.unlink(missing_ok=True)
    launch.log.parent.mkdir(parents=True, exist_ok=True)
    argv = guards.worker_command(launch, worker_folder(home.folder("worker")), "validate", "--report", str(report))
    config = guards.config(launch, "run", workspace.with_volumes(launch.mounts, argv), 0) | {"timeout_s": timeout_s}
    config |= _limits(launch, shares.of(launch, machine.capacity(devices), 1))
    result = _run_guarded(config, cancelled, devices)
    _finish_report(report, result.get("reason") or "its guard was killed", result.get("last_lines", []))


def _run_guarded(config: dict[str, Any], cancelled: Callable[[], bool], devices: Devices) -> dict[str, Any]:
    result, why = {"reason": "it was cancelled"}, ""
    next_look = time.monotonic() + LOOK_EVERY_S if devices.gpus() else float("inf")
    with guards.begin(config) as process:
        assert process.stdin is not None and process.stdout is not None
        while process.poll() is None and not cancelled() and not why:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
            if time.monotonic() >= next_look:
                why = gpu_excess(
                    config["share"], used_by(devices.used_bytes() or {}, descendants(process.pid, quick=True))
                )
                next_look = time.monotonic() + LOOK_EVERY_S
        if process.poll() is not None:
            result = json.loads(process.stdout.read() or b"{}")
        process.stdin.close()  # the end of its owner, to the guard: it ends everything
        process.wait()
    return result | ({"reason": why} if why else {})


def _finish_report(report: Path, reason: str, last_lines: list[str]) -> None:
    try:
        found = json.loads(report.read_text())
    except (OSError, ValueError):
        found = {"ok": False, "phase": "import", "line": "", "traceback": "", "schema": None, "outputs": None}
        found |= {"timings": {}, "unfinished": True}
    if found.pop("unfinished", False):
        found["error"] = reason
        found["traceback"] = "\n".join(last_lines)
    write_json(report, found)


def _limits(launch: Launch, share: ResourceShare, cores: Sequence[int] = ()) -> dict[str, Any]:
    """The part of a guard's config about its worker's share of the machine."""
    env = shares.environment(share, launch.env, cores)
    return {"env": env, "share": share.as_dict(), "memory_bytes": share.memory_bytes}


def _process(record: Mapping[str, Any], role: str) -> Process:
    """The `guard` or `worker` of a guard's record; one that never was where there is no record."""
    return Process(int(record.get(f"{role}_pid", 0)), int(record.get(f"{role}_start", 0)))
