"""What a control plane that died has left is put right at the next start; rows as earlier versions left them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from control.builds.test_builder import FakeTools
from control.conftest import World, make_source
from puna.backends.memory import MemoryBackend
from puna.control.builds.builder import Builder
from puna.control.domain.records import Order, Settings
from puna.control.domain.splits import WHOLE
from puna.control.domain.states import BuildState, RevisionState, StepState
from puna.control.store.store import Store
from puna.home import Home


class Old:
    """A home as an earlier version left it: its store's small writes, one by one, up to where it died."""

    def __init__(self, store: Store, home: Home) -> None:
        self.store, self.home = store, home
        self.source = make_source(home).digest

    def revision(self, name: str = "app") -> int:
        """As version 0.1.0 did: the revision is written, and its build is not."""
        self.store.save_endpoint(name, Settings(min_replica=1), 1.0)
        order = Order(self.source, None, None, Settings(min_replica=1))
        return self.store.add_revision(name, order, 1.0).number

    def build(self, name: str = "app", *states: BuildState) -> str:
        build = self.store.add_build("revision", name, self.revision(name), 1.0)
        for state in states:
            self.store.move_build(build.id, state)
        return build.id

    def building(self, name: str = "app") -> str:
        """As `builder.py:163`: under way."""
        build_id = self.build(name, BuildState.RUNNING)
        self.store.move_revision(name, 1, RevisionState.BUILDING, 1.0)
        return build_id

    def sql(self, statement: str) -> None:
        with self.store._write() as connection:
            connection.execute(text(statement))

    def end(self) -> RevisionState:
        """Heal, build and roll out what waits; how the newest revision of `app` ended."""
        self.store.heal(2.0)
        builder = Builder(self.store, self.home, tools=FakeTools())
        while builder.build_next():
            pass
        World(self.store, self.home, MemoryBackend(ready_after_s=1.0, stop_takes_s=0.5)).settle(40)
        assert self.store.unended_builds() == [] and self.store.heal(3.0) == []
        return self.store.revisions("app")[0].state


@pytest.fixture
def old(store: Store, home: Home) -> Iterator[Old]:
    yield Old(store, home)


def test_a_revision_without_a_build_is_built(old: Old) -> None:
    old.revision()
    assert old.end() is RevisionState.SERVING
    assert old.store.build(old.store.revision("app", 1).build_id or "").state is BuildState.SUCCEEDED


def test_a_revision_whose_build_is_in_no_book_is_built(old: Old) -> None:
    old.sql(f"DELETE FROM builds WHERE id = '{old.building()}'")
    assert old.end() is RevisionState.SERVING


def test_a_build_that_ran_starts_again_from_its_first_step(old: Old) -> None:
    build_id = old.building()
    old.store.set_step(build_id, "environment", StepState.RUNNING)
    old.store.set_step(build_id, "environment", StepState.DONE, 1.0)
    old.store.set_step(build_id, "bundle", StepState.RUNNING)
    old.store.set_step(build_id, "bundle", StepState.FAILED, 1.0)  # and its end is not written
    old.store.reserve(build_id, 1.0, lambda _: "0")
    old.store.heal(2.0)
    again = old.store.build(build_id)
    assert again.state is BuildState.QUEUED and {step.state for step in again.steps} == {StepState.PENDING}
    assert (again.gpu, again.fraction) == ("", 0.0) and old.store.snapshot().reserved == ()
    assert old.end() is RevisionState.SERVING


def test_one_whose_requeueing_was_cut_off_is_built(old: Old) -> None:
    old.store.move_build(old.building(), BuildState.QUEUED)  # and the revision is still `building`
    assert old.end() is RevisionState.SERVING


def test_a_build_that_ended_and_did_not_tell_its_revision_is_done_again(old: Old) -> None:
    build_id = old.building()
    old.store.move_build(build_id, BuildState.SUCCEEDED)
    assert old.end() is RevisionState.SERVING
    assert old.store.revision("app", 1).build_id != build_id


def test_a_failed_build_fails_the_revision_that_it_did_not_tell(old: Old) -> None:
    why = {"error": "no such package", "hint": "fix it", "detail": "line 1"}
    old.store.move_build(old.building(), BuildState.FAILED, **why)
    assert old.end() is RevisionState.FAILED
    revision = old.store.revision("app", 1)
    assert {"error": revision.error, "hint": revision.hint, "detail": revision.detail} == why


@pytest.mark.parametrize("state", [BuildState.CANCELLED, BuildState.FAILED])
def test_a_revision_that_waits_for_a_build_which_ended_before_it_began_ends_with_it(
    old: Old, state: BuildState
) -> None:
    build_id = old.build("app", BuildState.RUNNING, state)
    old.sql(f"UPDATE builds SET error = 'no disk' WHERE id = '{build_id}'")
    assert old.end() is RevisionState[state.name]


def test_a_cancelled_build_that_was_still_queued_or_running_ends(old: Old) -> None:
    queued, running = old.build("app"), old.building("other")
    old.sql("UPDATE builds SET cancel = 1")
    assert old.end() is RevisionState.CANCELLED
    assert {old.store.build(one).state for one in (queued, running)} == {BuildState.CANCELLED}
    assert old.store.revision("other", 1).state is RevisionState.CANCELLED


def test_a_build_of_a_deleted_endpoint_ends(old: Old) -> None:
    build_id = old.build("app")
    old.sql("DELETE FROM endpoints WHERE name = 'app'")
    old.store.heal(2.0)
    assert old.store.build(build_id).state is BuildState.CANCELLED


def test_a_runtime_follows_its_build(old: Old) -> None:
    runtime = old.store.add_runtime("rt", "d" * 64, "build: {}\n", 1.0)
    old.sql(f"UPDATE builds SET state = 'failed' WHERE id = '{runtime.build_id}'")
    old.store.heal(2.0)
    assert old.store.runtime("rt").state is BuildState.FAILED
    again = old.store.add_runtime("rt", "d" * 64, "build: {}\n", 3.0)
    old.sql(f"DELETE FROM builds WHERE id = '{again.build_id}'")
    old.store.heal(4.0)
    assert old.store.runtime("rt", 2).state is BuildState.FAILED


def test_halves_of_a_split_are_no_split(old: Old, world: World) -> None:
    for _ in range(3):
        world.deploy(min_replica=1)
        world.settle(30)
    old.sql("UPDATE revisions SET state = 'serving', percent = 10 WHERE number = 2")  # serves, and has no share
    old.sql("INSERT INTO splits (endpoint, revision, percent, replicas, reason, at) VALUES ('app', 1, 10, 1, '', 1)")
    assert len(old.store.heal(2.0)) == 2 and old.store.heal(2.0) == []
    assert old.store.endpoint("app").shares == {3: WHOLE}
    assert [r.state for r in old.store.revisions("app")] == [RevisionState.SERVING] + [RevisionState.RETIRED] * 2
    old.sql("UPDATE endpoints SET serving = 1")  # one that does not
    old.store.heal(2.0)
    assert old.store.endpoint("app").serving == 3


def test_a_deploy_that_was_cut_off_is_not_said_to_be_unchanged_for_ever(old: Old) -> None:
    old.building()
    old.store.heal(2.0)
    order = Order(old.source, None, None, Settings(min_replica=1))
    assert old.store.deploy("app", lambda before, newest: order, 3.0).is_unchanged  # true now: it is being built
    old.store.cancel_build(old.store.unended_builds()[0].id, 4.0)
    assert not old.store.deploy("app", lambda before, newest: order, 5.0).is_unchanged
    assert old.end() is RevisionState.SERVING


def test_a_home_of_the_version_before_opens_and_heals(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    store = Store(f"sqlite:///{home.database}")
    old = Old(store, home)
    old.building()
    old.sql("ALTER TABLE builds DROP COLUMN owner")
    old.sql("DELETE FROM schema_version WHERE number >= 7")
    store.close()
    again = Old(Store(f"sqlite:///{home.database}"), home)
    assert [build.owner for build in again.store.unended_builds()] == [""]
    assert again.end() is RevisionState.SERVING
    again.store.close()
