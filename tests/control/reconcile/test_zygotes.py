"""One zygote for what serves: when it is begun, ended, begun anew, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from control.conftest import World, launch
from control.rows import save_endpoint
from puna.backends.base import Launch, Phase, Zygote
from puna.config.settings import Settings
from puna.control.domain.records import Endpoint, Replica, Revision, Snapshot
from puna.control.domain.states import ReplicaState, RevisionState
from puna.control.reconcile.launch import Launching, told_by_validation
from puna.control.reconcile.plan import BACK_OFF_S
from puna.control.reconcile.zygotes import LOOK_EVERY_S, Cool, StartZygote, ZygoteHistory, ZygoteKeeper, plan, wanted
from puna.errors import NotFoundError


def endpoint(**fields: object) -> Endpoint:
    return replace(Endpoint("app", True, Settings(), 1, "", 0.0, 0), **fields)  # type: ignore[arg-type]


def replica(state: ReplicaState) -> Replica:
    return Replica("app-1", 1, "app", 1, state, "", 0.0, 0.0, 0.0)


def revision(number: int, state: RevisionState) -> Revision:
    return Revision("app", number, state, "s", None, None, "e", "b", Settings(), None, 0.0, 0.0, number)


SEEN = Zygote("z", Phase.READY)


# ---- pure -----------------------------------------------------------------------------------------------------------


def test_what_serves_is_to_have_one_even_at_zero_replicas() -> None:
    assert wanted(Snapshot((endpoint(),))) == {("app", 1): True}


@pytest.mark.parametrize(
    "fields", [{"active": False}, {"serving": None}, {"settings": Settings(zygote=False)}], ids=lambda f: next(iter(f))
)
def test_what_does_not_serve_or_does_not_want_one_has_none(fields: dict[str, object]) -> None:
    assert wanted(Snapshot((endpoint(**fields),))) == {}


def test_none_is_begun_while_a_replica_starts_or_a_revision_rolls_out() -> None:
    starting = Snapshot((endpoint(),), (), (replica(ReplicaState.STARTING),))
    rolling = Snapshot((endpoint(),), (revision(2, RevisionState.STARTING),), (replica(ReplicaState.READY),))
    assert wanted(starting) == wanted(rolling) == {("app", 1): False}
    assert plan({"z": False}, [], {}, 0.0) == []
    assert plan({"z": False}, [SEEN], {}, 0.0) == [], "one that is there stays"


def test_one_is_begun_and_another_ended_when_the_name_changes() -> None:
    assert plan({"y": True}, [SEEN], {}, 0.0) == [Cool("z"), StartZygote("y")]
    assert plan({"z": True}, [SEEN], {}, 0.0) == []


def test_a_dead_one_is_cleared_away_first_and_begun_anew_after_a_pause_that_grows() -> None:
    dead = replace(SEEN, phase=Phase.EXITED)
    assert plan({"z": True}, [dead], {}, 100.0) == [Cool("z")]
    for deaths, pause_s in enumerate([*BACK_OFF_S, BACK_OFF_S[-1]], 1):
        history = {"z": ZygoteHistory(deaths, 100.0)}
        assert plan({"z": True}, [], history, 100.0 + pause_s - 0.1) == []
        assert plan({"z": True}, [], history, 100.0 + pause_s) == [StartZygote("z")]


def test_one_that_refused_is_not_begun_again() -> None:
    assert plan({"z": True}, [], {"z": ZygoteHistory(1, 0.0, "an import started a thread")}, 1e9) == []


# ---- the keeper -----------------------------------------------------------------------------------------------------


@dataclass
class Preparing(Launching):
    """Launches without bundles; `names` may change, as with a secret."""

    name: str = "z"
    error: bool = False
    begun: list[str] = field(default_factory=list)

    def __call__(self, replica: Replica) -> Launch:
        return replace(launch(replica), warm=self.name)

    def zygote_name(self, endpoint: str, revision: int) -> str:
        if self.error:
            raise NotFoundError("the bundle is gone")
        return f"{self.name}-{endpoint}-{revision}"

    def zygote(self, endpoint: str, revision: int) -> Launch:
        name = self.zygote_name(endpoint, revision)
        self.begun.append(name)
        nowhere = Path("/nonexistent")
        return Launch(name, nowhere, nowhere, nowhere, nowhere, warm=name)


@pytest.fixture
def preparing(world: World) -> Preparing:
    preparing = Preparing()
    world.reconciler.zygotes = ZygoteKeeper(world.store, world.backend, preparing)
    world.reconciler.prepare = lambda r: replace(launch(r), warm=preparing.zygote_name(r.endpoint, r.revision))
    return preparing


def view(world: World, number: int = 1) -> dict[str, object] | None:
    assert world.reconciler.zygotes is not None
    return world.reconciler.zygotes.view("app", number)


def events(world: World) -> list[str]:
    return [event.message for event in world.store.events_page("app", None, 10_000) if event.kind == "zygote"]


def test_it_comes_after_the_first_replica_and_the_second_start_is_its_fork(world: World, preparing: Preparing) -> None:
    world.deploy()
    world.settle(3)
    assert preparing.begun == [], "nothing slows the first start"
    world.settle(20)
    assert preparing.begun == ["z-app-1"] and view(world) == {"state": "ready", "memory_bytes": 0, "reason": ""}
    assert events(world) == ["the zygote is ready: 0 MiB"]
    (first,) = world.ready()
    world.backend.kill(first)
    world.settle(20)
    (second,) = world.ready()
    assert [world.backend.replicas[second].seen.born] == ["zygote"]


def test_it_changes_with_the_revision_and_ends_with_the_endpoint(world: World, preparing: Preparing) -> None:
    world.deploy(min_replica=1)
    world.settle(20)
    world.deploy(min_replica=1)
    world.settle(4)
    assert [z.name for z in world.backend.zygotes()] == ["z-app-1"], "the old one serves on"
    world.settle(30)
    assert [z.name for z in world.backend.zygotes()] == ["z-app-2"] and view(world, 1) is None
    world.store.set_active("app", False, world.now)
    world.settle(5)
    assert world.backend.zygotes() == () and view(world, 2) is None


def test_a_setting_ends_and_begins_it_without_a_new_revision(world: World, preparing: Preparing) -> None:
    world.deploy(min_replica=1)
    world.settle(20)
    for zygote in (False, True):
        save_endpoint(world.store, "app", Settings(min_replica=1, zygote=zygote), world.now)
        world.settle(5)
        assert bool(world.backend.zygotes()) is zygote
    assert world.endpoint().serving == 1


def test_a_death_is_told_and_mended_a_refusal_told_and_kept(world: World, preparing: Preparing) -> None:
    world.deploy(min_replica=1)
    world.settle(20)
    (zygote,) = world.backend.zygotes()
    world.backend.warmed[zygote.name] = replace(zygote, phase=Phase.EXITED, reason="killed by SIGKILL")
    world.settle(15)
    assert "the zygote died and will be begun again: killed by SIGKILL" in events(world)
    assert len(preparing.begun) == 2 and view(world) == {"state": "ready", "memory_bytes": 0, "reason": ""}
    world.backend.warmed[zygote.name] = replace(zygote, phase=Phase.EXITED, reason="a thread", refused=True)
    world.settle(15, seconds=60.0)
    assert "the zygote refuses, each start imports for itself: a thread" in events(world)
    assert len(preparing.begun) == 2 and view(world) == {"state": "refused", "memory_bytes": 0, "reason": "a thread"}


def test_a_secret_that_changed_brings_another_one_with_the_next_start(world: World, preparing: Preparing) -> None:
    world.deploy(min_replica=1)
    world.settle(20)
    preparing.name = "y"
    world.settle(5)
    assert [z.name for z in world.backend.zygotes()] == ["z-app-1"], "nothing has started since"
    world.backend.kill(world.ready()[0])
    world.settle(20)
    assert [z.name for z in world.backend.zygotes()] == ["y-app-1"]


def test_a_restarted_control_plane_finds_it(world: World, preparing: Preparing) -> None:
    world.deploy(min_replica=1)
    world.settle(20)
    world.reconciler.zygotes = ZygoteKeeper(world.store, world.backend, preparing)
    world.settle(5)
    assert preparing.begun == ["z-app-1"] and view(world) is not None


def test_without_a_bundle_there_is_none_and_nothing_breaks(world: World, preparing: Preparing) -> None:
    world.deploy(min_replica=1)
    world.settle(3)
    world.reconciler.prepare = launch
    preparing.error = True
    world.settle(20)
    assert len(world.ready()) == 1 and world.backend.zygotes() == ()


def test_it_looks_no_more_than_twice_a_second(world: World, preparing: Preparing) -> None:
    keeper = ZygoteKeeper(world.store, world.backend, preparing)
    snapshot = Snapshot((endpoint(),))
    assert keeper.step(snapshot, 100.0) == [StartZygote("z-app-1")]
    world.backend.cool("z-app-1")
    assert keeper.step(snapshot, 100.0 + LOOK_EVERY_S / 2) == []
    assert keeper.step(snapshot, 100.0 + LOOK_EVERY_S) == [StartZygote("z-app-1")]


def test_replicas_are_told_what_validation_found_out() -> None:
    assert told_by_validation(None) == told_by_validation({"concurrency": {"limit": 1, "text": "one"}}) == {}
    found = told_by_validation({"outputs": [{"name": "text"}], "concurrency": {"limit": 256, "text": "256 at once"}})
    assert found == {"PUNA_OUTPUTS": '["text"]', "PUNA_PROVED": "1"}
