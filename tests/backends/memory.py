"""A backend without processes: the same contract, moved on by `tick`, for dry runs and other rooms' tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from puna.backends.base import Capacity, Launch, Observed, Phase, Zygote

SCHEMA: Mapping[str, object] = {
    "state": "ready",
    "concurrency": 1,
    "tier": "awake",
    "schema": {"inputs": [], "flags": {"batch_size": 0, "streaming": False, "openai": False}, "outputs": None},
}


@dataclass
class SimulatedReplica:
    """One pretended replica."""

    launch: Launch
    seen: Observed
    begun: float
    stop_at: float | None = None
    born: str = "spawn"


class MemoryBackend:
    """Replicas become ready `ready_after_s` after `start` and end `stop_takes_s` after `stop`, when `tick` says so."""

    def __init__(
        self,
        capacity: Capacity | None = None,
        *,
        ready_after_s: float = 0.0,
        stop_takes_s: float = 0.0,
        schema: Mapping[str, object] = SCHEMA,
    ) -> None:
        self.ready_after_s, self.stop_takes_s, self.schema = ready_after_s, stop_takes_s, schema
        self.now = 0.0
        self.replicas: dict[str, SimulatedReplica] = {}
        self.warmed: dict[str, Zygote] = {}
        """Zygotes by name; ready at the first tick after `warm`."""
        self.calls: list[tuple[str, str]] = []
        """`("start" | "stop" | "forget", replica id)` and `("warm" | "cool", zygote)` in order."""
        self._capacity = capacity or Capacity(4, 2**34)

    def tick(self, now: float) -> None:
        """Let time be `now`: what is due becomes ready, ends, or runs out of start-up time."""
        self.now = now
        for name, zygote in self.warmed.items():
            if zygote.phase is Phase.STARTING:
                self.warmed[name] = replace(zygote, phase=Phase.READY)
        for replica in self.replicas.values():
            if replica.seen.phase == Phase.EXITED:
                continue
            if replica.stop_at is not None and now >= replica.stop_at:
                self._exit(replica, "stopped", 0)
            elif replica.seen.phase == Phase.STARTING:
                limit = replica.launch.startup_timeout_s
                if now >= replica.begun + min(self.ready_after_s, limit):
                    if self.ready_after_s > limit:
                        self._exit(replica, f"initialize did not end within {limit:g} s", -9)
                    else:
                        self.make_ready(replica.launch.replica_id)

    def make_ready(self, replica_id: str) -> None:
        """Let a starting replica be ready now."""
        replica = self.replicas[replica_id]
        replica.seen = replace(
            replica.seen,
            phase=Phase.READY,
            ready_s=self.now - replica.begun,
            schema={"born": replica.born, **self.schema},
        )

    def kill(self, replica_id: str, reason: str = "killed by SIGKILL", exit_code: int = -9, lines: str = "") -> None:
        """Let a replica die; `lines` are the last of its log."""
        self._exit(self.replicas[replica_id], reason, exit_code, tuple(lines.splitlines()))

    def capacity(self) -> Capacity:
        """What the constructor was given."""
        return self._capacity

    def start(self, launch: Launch) -> None:
        """Begin a replica; the same id twice begins one."""
        self.calls.append(("start", launch.replica_id))
        if launch.replica_id not in self.replicas:
            pid = 100_000 + len(self.calls)
            zygote = self.warmed.get(launch.warm)
            born = "zygote" if zygote is not None and zygote.phase is Phase.READY else "spawn"
            self.replicas[launch.replica_id] = SimulatedReplica(
                launch, Observed(launch.replica_id, Phase.STARTING, pid=pid), self.now, born=born
            )

    def stop(self, replica_id: str, grace_s: float) -> None:
        """End a replica at a later tick; an unknown id is fine."""
        self.calls.append(("stop", replica_id))
        replica = self.replicas.get(replica_id)
        if replica is not None:
            at = self.now + min(grace_s, self.stop_takes_s)
            replica.stop_at = at if replica.stop_at is None else min(at, replica.stop_at)

    def sleep(self, replica_id: str) -> None:
        """Let a ready replica that can sleep be asleep at once; an unknown id is fine."""
        self.calls.append(("sleep", replica_id))
        self._tier(replica_id, "asleep")

    def wake(self, replica_id: str) -> None:
        """Let a replica that sleeps be awake at once; an unknown id is fine."""
        self.calls.append(("wake", replica_id))
        self._tier(replica_id, "awake")

    def _tier(self, replica_id: str, tier: str) -> None:
        replica = self.replicas.get(replica_id)
        if replica is not None and replica.seen.phase is Phase.READY and replica.seen.can_sleep:
            replica.seen = replace(replica.seen, schema={**replica.seen.schema, "tier": tier})

    def list(self) -> list[Observed]:
        """Every replica that is not forgotten, by id."""
        return [self.replicas[replica_id].seen for replica_id in sorted(self.replicas)]

    def forget(self, replica_id: str) -> None:
        """Drop a replica that has exited; a living one stays."""
        self.calls.append(("forget", replica_id))
        replica = self.replicas.get(replica_id)
        if replica is not None and replica.seen.phase == Phase.EXITED:
            del self.replicas[replica_id]

    def warm(self, launch: Launch) -> None:
        """Begin a zygote; the same name twice begins one."""
        self.calls.append(("warm", launch.warm))
        self.warmed.setdefault(launch.warm, Zygote(launch.warm, Phase.STARTING, pid=200_000 + len(self.calls)))

    def cool(self, name: str) -> None:
        """End and forget a zygote; an unknown name is fine."""
        self.calls.append(("cool", name))
        self.warmed.pop(name, None)

    def zygotes(self) -> tuple[Zygote, ...]:
        """Every zygote that is not cooled, by name."""
        return tuple(self.warmed[name] for name in sorted(self.warmed))

    def _exit(self, replica: SimulatedReplica, reason: str, code: int, lines: tuple[str, ...] = ()) -> None:
        replica.seen = replace(replica.seen, phase=Phase.EXITED, reason=reason, exit_code=code, last_lines=lines)
