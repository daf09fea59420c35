"""The store on a real SQLite file: moves, versions, threads, restarts, and what a deploy need not do again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from backends.memory import MemoryBackend
from control.builds.test_builder import FakeTools
from control.conftest import World, make_source
from control.rows import add_revision, build_revision, move_build, save_endpoint
from puna.config.settings import Settings
from puna.control.builds.builder import Builder
from puna.control.domain.records import WHOLE, RevisionSpec
from puna.control.domain.states import BuildState, ReplicaState, RevisionState, StepState
from puna.control.store.schema import METADATA, MIGRATIONS, migrate, schema_number
from puna.control.store.store import Store
from puna.errors import ConflictError, MachineError, NotFoundError, UsageError
from puna.home import Home


class Old:
    """A home as an earlier version left it: its store's small writes, one by one, up to where it died."""

    def __init__(self, store: Store, home: Home) -> None:
        self.store, self.home = store, home
        self.source = make_source(home).digest

    def revision(self, name: str = "app") -> int:
        """As version 0.1.0 did: the revision is written, and its build is not."""
        save_endpoint(self.store, name, Settings(min_replica=1), 1.0)
        spec = RevisionSpec(self.source, None, None, Settings(min_replica=1))
        return add_revision(self.store, name, spec, 1.0).number

    def build(self, name: str = "app", *states: BuildState) -> str:
        build = build_revision(self.store, name, self.revision(name), 1.0)
        for state in states:
            move_build(self.store, build.id, state)
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
    move_build(old.store, old.building(), BuildState.QUEUED)  # and the revision is still `building`
    assert old.end() is RevisionState.SERVING


def test_a_build_that_ended_and_did_not_tell_its_revision_is_done_again(old: Old) -> None:
    build_id = old.building()
    move_build(old.store, build_id, BuildState.SUCCEEDED)
    assert old.end() is RevisionState.SERVING
    assert old.store.revision("app", 1).build_id != build_id


def test_a_failed_build_fails_the_revision_that_it_did_not_tell(old: Old) -> None:
    why = {"error": "no such package", "hint": "fix it", "detail": "line 1"}
    move_build(old.store, old.building(), BuildState.FAILED, **why)
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
    spec = RevisionSpec(old.source, None, None, Settings(min_replica=1))
    assert old.store.deploy("app", lambda before, newest: spec, 3.0).is_unchanged  # true now: it is being built
    old.store.cancel_build(old.store.unended_builds()[0].id, 4.0)
    assert not old.store.deploy("app", lambda before, newest: spec, 5.0).is_unchanged
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


SPEC = RevisionSpec("a" * 64, None, None, Settings())


def test_everything_is_there_again_after_a_restart(world: World) -> None:
    world.deploy(min_replica=1, env={"A": "1"}, secrets=("s",))
    world.settle(10)
    again = Store(f"sqlite:///{world.home.database}")
    assert again.snapshot() == world.store.snapshot()
    assert again.version == world.store.version > 0
    assert again.endpoint("app").settings == world.endpoint().settings
    again.close()


def test_the_version_rises_with_what_gateways_see_and_with_nothing_else(store: Store) -> None:
    seen = []
    with store.subscribed(lambda: seen.append(store.version)):
        save_endpoint(store, "app", Settings(), 1.0)
        before = store.version
        store.add_build("runtime", "r", 1, 1.0)
        store.add_event("app", "kind", "text", 1.0)
        assert store.version == before and seen == [before]
    store.set_active("app", False, 1.0)
    assert store.version == before + 1 and seen == [before]


def test_an_illegal_move_is_refused_and_changes_nothing(store: Store) -> None:
    save_endpoint(store, "app", Settings(), 1.0)
    add_revision(store, "app", SPEC, 1.0)
    before, version = store.revision("app", 1), store.version
    with pytest.raises(ConflictError, match="revision 1 of `app` cannot go from `queued` to `serving`"):
        store.swap("app", 1, 2.0)
    assert store.revision("app", 1) == before and store.endpoint("app").serving is None and store.version == version
    replica = store.add_replica("app", 1, "", 0.0, 1.0)
    with pytest.raises(ConflictError, match="from `starting` to `draining`"):
        store.move_replica(replica.id, ReplicaState.DRAINING, 2.0)


def test_many_threads_write_and_read_and_nothing_is_lost(store: Store) -> None:
    save_endpoint(store, "app", Settings(), 1.0)
    problems: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(15):
                replica = store.add_replica("app", number, "", 0.0, float(turn))
                store.move_replica(replica.id, ReplicaState.READY, float(turn))
                assert any(r.id == replica.id for r in store.snapshot().replicas)
                store.routing()
        except BaseException as error:  # noqa: BLE001 - the test's own thread raises it below
            problems.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    replicas = store.replicas()
    assert len(replicas) == 90 and len({r.epoch for r in replicas}) == 90 and len({r.id for r in replicas}) == 90


def test_a_replica_id_is_short_enough_for_a_socket(store: Store, home: Home) -> None:
    save_endpoint(store, "a" * 48, Settings(), 1.0)
    replica = store.add_replica("a" * 48, 1, "", 0.0, 1.0)
    assert len(str(home.guard_socket(replica.id))) < 107


def test_the_same_source_runtime_and_settings_are_not_deployed_twice(store: Store) -> None:
    def deploy(spec: RevisionSpec) -> tuple[int, bool]:
        queued = store.deploy("app", lambda before, newest: spec, 1.0)
        return queued.revision.number, queued.is_unchanged

    assert deploy(SPEC) == (1, False)
    assert deploy(SPEC) == (1, True)
    assert deploy(RevisionSpec("a" * 64, None, None, Settings(max_replica=5))) == (1, True)
    assert store.endpoint("app").settings.max_replica == 5
    assert deploy(RevisionSpec("a" * 64, None, None, Settings(env={"A": "1"}))) == (2, False)
    assert deploy(RevisionSpec("c" * 64, None, None, Settings())) == (3, False)
    assert deploy(SPEC) == (4, False)
    store.cancel_build(store.revision("app", 4).build_id or "", 2.0)
    assert deploy(SPEC) == (5, False)
    assert [build.number for build in store.unended_builds()] == [1, 2, 3, 5]


def test_a_rebuild_is_a_new_revision_unless_only_a_change_is_to_be_built(store: Store) -> None:
    def rebuild(source: str, only_changed: bool) -> tuple[int, bool]:
        spec = RevisionSpec(source * 64, None, None, Settings())
        queued = store.rebuild("app", lambda before, newest: spec, 2.0, only_changed=only_changed)
        return queued.revision.number, queued.is_unchanged

    store.deploy("app", lambda before, newest: SPEC, 1.0)
    assert rebuild("a", True) == (1, True)
    assert rebuild("a", False) == (2, False)
    assert rebuild("b", True) == (3, False)


def test_a_rollback_needs_something_to_go_back_to(world: World) -> None:
    world.deploy(min_replica=1)
    world.settle(10)
    with pytest.raises(ConflictError, match="no earlier revision"):
        world.store.roll_back("app", None, world.now)
    with pytest.raises(ConflictError, match="is serving already"):
        world.store.roll_back("app", 1, world.now)
    with pytest.raises(NotFoundError, match="no revision 7"):
        world.store.roll_back("app", 7, world.now)


def test_an_unknown_name_is_answered_with_the_nearest_one(store: Store) -> None:
    save_endpoint(store, "llama-chat", Settings(), 1.0)
    with pytest.raises(NotFoundError) as caught:
        store.endpoint("lama-chat")
    assert caught.value.hint == "did you mean `llama-chat`?"


def test_a_runtime_gets_a_new_version_only_for_new_content(store: Store) -> None:
    first = store.add_runtime("r", "d1", "build: {}", 1.0)
    assert store.add_runtime("r", "d1", "build: {}", 2.0) == first
    assert store.add_runtime("r", "d2", "build: {run: [x]}", 3.0).version == 2
    assert [r.version for r in store.runtimes("r")] == [2, 1] and store.runtime("r").version == 2
    store.cancel_build(store.runtime("r").build_id, 4.0)
    assert store.runtime("r").state is BuildState.CANCELLED
    assert store.add_runtime("r", "d2", "build: {run: [x]}", 5.0).version == 3


def test_desired_replicas_are_recorded_with_their_reason(store: Store) -> None:
    save_endpoint(store, "app", Settings(max_replica=4), 1.0)
    store.scale("app", 3, "7 in flight over a target of 4", 2.0)
    version = store.version
    store.scale("app", 3, "again", 3.0)
    assert store.version == version
    assert store.endpoint("app").scaling_reason == "7 in flight over a target of 4"
    assert store.events_page("app", None, 10_000)[-1].message == "0 -> 3: 7 in flight over a target of 4"


def test_old_events_go(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puna.control.store.database.EVENTS_KEPT", 10)
    for number in range(1000):
        if number % 500 > 480 or number < 5:
            store.add_event("app", "kind", str(number), 1.0)
    with store._write() as connection:
        for number in range(1000):
            store._event(connection, "app", "kind", str(number), 1.0)
    assert len(store.events_page("app", None, 10_000)) < 600


def test_migrations_run_once_and_a_newer_database_is_refused(home: Home) -> None:
    engine = create_engine(f"sqlite:///{home.database}")
    ran = []

    def second(_: object) -> None:
        ran.append(2)

    with engine.begin() as connection:
        migrate(connection)
        assert schema_number(connection) == len(MIGRATIONS)
        assert set(METADATA.tables) <= set(inspect(connection).get_table_names())
        migrate(connection, (*MIGRATIONS, second))
        migrate(connection, (*MIGRATIONS, second))
        assert ran == [2]
        with pytest.raises(MachineError, match=f"this Puna knows {len(MIGRATIONS)}"):
            migrate(connection)
    engine.dispose()


def test_a_database_from_before_splits_is_brought_up_to_date(world: World) -> None:
    world.deploy(min_replica=1)
    world.settle(10)
    with world.store._write() as connection:
        connection.exec_driver_sql("drop table splits")
        connection.exec_driver_sql("alter table revisions drop column percent")
        before = [m.__name__.endswith("_splits") for m in MIGRATIONS].index(True)
        connection.exec_driver_sql(f"delete from schema_version where number > {before}")
    again = Store(f"sqlite:///{world.home.database}")
    assert again.endpoint("app").shares == {1: 100} and again.revision("app", 1).percent == 100
    with again._write() as connection:
        again._share(connection, again.endpoint("app"), 1, 100, 5.0)
    again.close()


@pytest.mark.parametrize("url", ["nonsense", "nothing+known://user:secret@host/name", "oracle://user:secret@host/x"])
def test_an_address_that_is_no_database_is_said_without_its_password(url: str) -> None:
    with pytest.raises(UsageError, match="PUNA_DATABASE_URL") as caught:
        Store(url)
    assert "secret" not in caught.value.message + caught.value.hint


def test_the_tables_can_be_made_on_postgresql() -> None:
    for table in METADATA.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=postgresql.dialect()))


def test_a_writer_keeps_other_processes_out_from_its_first_reading_on(store: Store, home: Home) -> None:
    other = Store(f"sqlite:///{home.database}")
    begun, ended = threading.Event(), threading.Event()

    def write() -> None:
        begun.set()
        save_endpoint(other, "other", Settings(), 2.0)
        ended.set()

    thread = threading.Thread(target=write)
    with store._write() as connection:
        assert connection.exec_driver_sql("select count(*) from endpoints").scalar() == 0
        thread.start()
        assert begun.wait(5) and not ended.wait(0.2), "it wrote between what was read and what is written"
        store._save_endpoint(connection, "mine", Settings(), 1.0, None)
    thread.join(10)
    assert ended.is_set() and {e.name for e in store.snapshot().endpoints} == {"mine", "other"}
    other.close()
