"""What is kept of the past: revisions, builds, and what lies on the disk for them; nothing that is in use goes."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from control.conftest import make_source
from control.rows import add_revision, build_revision, move_build, save_endpoint
from puna.artifacts import SHORT, Source
from puna.config.runtime import RuntimeSpec
from puna.config.settings import Settings
from puna.control.builds.cleanup import BUILDS_KEPT, EVENTS_KEPT, STRAY_S, Retention, Sweeper
from puna.control.domain.records import RevisionSpec
from puna.control.domain.states import BuildState, ReplicaState, RevisionState
from puna.control.resources import revision_files as uploads
from puna.control.store.store import Store
from puna.home import Home
from puna.packaging import environment as environments
from puna.packaging import source as sources

NOW = 2_000_000_000.0  # after every file that a test writes
DAY_S = 86400.0


def sweeper(store: Store, home: Home, revisions: int = 3, unused_s: float = DAY_S) -> Sweeper:
    return Sweeper(store, home, Retention(revisions, unused_s), lambda: NOW)


def digest(text: str) -> str:
    return text * (64 // len(text))


def built(store: Store, number: str, source: str = "", name: str = "app") -> int:
    """A revision that has been built from bundle and environment `number`, and serves."""
    spec = RevisionSpec(source or digest(number), None, None, Settings())
    save_endpoint(store, name, spec.settings, NOW)
    revision = add_revision(store, name, spec, NOW).number
    store.move_revision(name, revision, RevisionState.BUILDING, NOW)
    values = {"bundle": digest(number), "environment": digest(number)}
    store.move_revision(name, revision, RevisionState.BUILT, NOW, **values)
    store.move_revision(name, revision, RevisionState.STARTING, NOW)
    store.swap(name, revision, NOW)
    return revision


def failed(store: Store, name: str = "app") -> int:
    revision = add_revision(store, name, RevisionSpec("f" * 64, None, None, Settings()), NOW).number
    store.move_revision(name, revision, RevisionState.BUILDING, NOW)
    store.move_revision(name, revision, RevisionState.FAILED, NOW, error="no")
    return revision


def numbers(store: Store, name: str = "app") -> list[int]:
    return [revision.number for revision in store.revisions(name)]


def laid(folder: Path, name: str, age_s: float = 0.0, marker: str = "") -> Path:
    path = folder / name
    path.mkdir(parents=True)
    (path / (marker or "file")).write_text("x")
    for one in (path / (marker or "file"), path):
        os.utime(one, (NOW - age_s, NOW - age_s))
    return path


def test_the_newest_built_revisions_stay_and_as_many_failed_ones(store: Store, home: Home) -> None:
    for number in "12345":
        built(store, number)
    for _ in range(5):
        failed(store)
    assert sweeper(store, home).sweep()
    assert numbers(store) == [10, 9, 8, 5, 4, 3]


def test_what_serves_or_has_a_replica_stays_however_old(store: Store, home: Home) -> None:
    for number in "123456":
        built(store, number)
    replica = store.add_replica("app", 2, "", 1.0, NOW)
    store.roll_back("app", 1, NOW)
    assert sweeper(store, home).sweep()
    assert numbers(store) == [6, 5, 4, 2, 1]  # 1 is on its way again, 2 has a replica
    store.move_replica(replica.id, ReplicaState.STOPPING, NOW)
    store.move_replica(replica.id, ReplicaState.GONE, NOW)
    sweeper(store, home).sweep()
    assert numbers(store) == [6, 5, 4, 1]


def test_bundles_and_caches_go_with_the_last_revision_that_names_them(store: Store, home: Home) -> None:
    for number in "12345":
        built(store, number)
        laid(home.bundles, digest(number)[:SHORT])
        laid(home.caches, digest(number)[:SHORT])
    shared = laid(home.caches, "huggingface")
    sweeper(store, home).sweep()
    expected = [digest(number)[:SHORT] for number in "345"]
    assert sorted(p.name for p in home.bundles.iterdir()) == expected
    assert sorted(p.name for p in home.caches.iterdir()) == [*expected, "huggingface"] and shared.is_dir()


def test_nothing_is_taken_from_a_replica_whose_endpoint_was_deleted(store: Store, home: Home) -> None:
    built(store, "1")
    bundle = laid(home.bundles, digest("1")[:SHORT])
    replica = store.add_replica("app", 1, "", 1.0, NOW)
    store.delete_endpoint("app", NOW)
    sweep = sweeper(store, home, unused_s=0)
    assert not sweep.sweep() and bundle.is_dir()
    store.move_replica(replica.id, ReplicaState.STOPPING, NOW)
    store.move_replica(replica.id, ReplicaState.GONE, NOW)
    assert sweep.sweep() and not bundle.exists()


def test_an_environment_goes_a_day_after_its_last_use_and_a_runtime_keeps_its_own(store: Store, home: Home) -> None:
    built(store, "1")
    store.add_runtime("mine", digest("2"), "build: {}", NOW)
    for number, age_s in (("1", 9 * DAY_S), ("2", 9 * DAY_S), ("3", DAY_S / 2), ("4", 2 * DAY_S)):
        laid(home.environments, digest(number)[:SHORT], age_s, environments.MARKER)
    sweep = sweeper(store, home)
    sweep.sweep()
    assert sorted(p.name[0] for p in home.environments.iterdir()) == ["1", "2", "3"]
    store.delete_endpoint("app", NOW)
    sweep.sweep()
    assert (home.environments / digest("1")[:SHORT]).is_dir()  # it was used until just now


def test_an_environment_that_is_being_built_stays(store: Store, home: Home) -> None:
    half = laid(home.environments, digest("1")[:SHORT], 2 * DAY_S)
    with (home.environments / f".{half.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        sweeper(store, home).sweep()
        assert half.is_dir()
    sweeper(store, home).sweep()
    assert not half.exists() and list(home.environments.iterdir()) == []


def test_using_an_environment_again_makes_it_new(home: Home) -> None:
    spec = RuntimeSpec()
    marker = environments.build(spec, home, lambda line: None).path / environments.MARKER
    os.utime(marker, (1.0, 1.0))
    environments.build(spec, home, lambda line: None)
    assert marker.stat().st_mtime > 1.0


def test_a_source_goes_with_its_revisions_but_not_when_it_was_sent_again(store: Store, home: Home) -> None:
    found: list[Source] = [make_source(home, f"x = {number}\n") for number in range(3)]
    for number, source in enumerate(found):
        built(store, str(number), source.digest, f"app-{number}")
    sweep = sweeper(store, home)
    sweep.sweep()
    store.delete_endpoint("app-0", NOW)
    store.delete_endpoint("app-1", NOW)
    os.utime(found[1].path, (NOW, NOW))
    sweep.sweep()
    assert [source.path.is_dir() for source in found] == [False, True, True]


def test_a_source_that_is_being_used_stays(store: Store, home: Home) -> None:
    source = make_source(home, "x = 1\n")
    built(store, "1", source.digest)
    sweep = sweeper(store, home, unused_s=NOW)
    sweep.sweep()
    store.delete_endpoint("app", NOW)
    with sources.using(home):
        assert not sweep.sweep() and source.path.is_dir(), "it is looked at again"
    os.utime(source.path, (1.0, 1.0))
    assert uploads.use_source(home, source.digest).path.stat().st_mtime > 1.0
    assert sweep.sweep() and source.path.is_dir(), "it was used since it was deployed"


def test_a_source_that_was_never_deployed_goes_after_a_day(store: Store, home: Home) -> None:
    fresh, old = make_source(home, "x = 1\n"), make_source(home, "x = 2\n")
    os.utime(fresh.path, (NOW - 60, NOW - 60))
    os.utime(old.path, (NOW - 2 * DAY_S, NOW - 2 * DAY_S))
    sweeper(store, home).sweep()
    assert fresh.path.is_dir() and not old.path.exists()


def test_a_source_that_is_sent_again_counts_as_new(home: Home, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "app.py").write_text("x = 1\n")
    first = sources.snapshot(folder, home)
    os.utime(first.path, (1.0, 1.0))
    assert sources.snapshot(folder, home).path == first.path and first.path.stat().st_mtime > 1.0


def test_builds_that_nothing_names_are_counted_and_their_logs_go_with_them(store: Store, home: Home) -> None:
    revision = built(store, "1")
    ids = []
    for number in range(BUILDS_KEPT + 3):
        build = build_revision(store, "app", revision, NOW + number)
        if number:  # the first one goes on
            move_build(store, build.id, BuildState.CANCELLED)
        ids.append(build.id)
        (home.folder("logs", "builds") / f"{build.id}.log").write_text("x")
    sweeper(store, home).sweep()
    kept = {build.id for build in store.builds(limit=1000)}
    assert kept == {ids[0], *ids[2:]}  # 200, the one that goes on, and the revision's own, which is the last
    assert {path.stem for path in home.folder("logs", "builds").iterdir()} == kept


def test_the_report_that_a_build_writes_this_moment_stays(store: Store, home: Home) -> None:
    build = build_revision(store, "app", built(store, "1"), NOW)
    written = {f"{build.id}.log", f"{build.id}.json", f"{build.id}.json.part"}
    folder = home.folder("logs", "builds")
    for name in (*written, "0123456789ab.json.part"):
        (folder / name).write_text("x")
    sweeper(store, home).sweep()
    assert {path.name for path in folder.iterdir()} == written


def test_events_keys_and_counters(store: Store, home: Home) -> None:
    from puna.control.domain import api_keys

    for _ in range(EVENTS_KEPT + 5):
        store.add_event("noisy", "scale", "0 -> 1", NOW)
    store.add_event("quiet", "created", "endpoint created", NOW)
    for life_s in (1.0, None):
        store.add_key(api_keys.make("k", ["infer"], None, life_s, NOW - 30 * DAY_S)[0])
    store.add_key(api_keys.make("k", ["infer"], None, 1.0, NOW - DAY_S)[0])
    built(store, "1", name="stays")
    built(store, "1", name="goes")
    store.delete_endpoint("goes", NOW)
    sweeper(store, home).sweep()
    assert len(store.events_page("noisy", None, 10_000)) == EVENTS_KEPT and store.events_page("quiet", None, 10_000)
    assert len(store.keys()) == 2
    assert built(store, "1", name="stays") == 2 and built(store, "1", name="goes") == 1


def test_logs_and_working_copies_that_nobody_has_any_more(store: Store, home: Home) -> None:
    built(store, "1")
    folder = home.folder("logs", "endpoints")
    laid(folder, "app", 9 * DAY_S)
    laid(folder, "just-deleted", 60)
    laid(folder, "deleted", 2 * STRAY_S)
    replica = store.add_replica("app", 1, "", 1.0, NOW)
    for name, age_s in ((replica.id, 9 * DAY_S), ("zygote-1", 9 * DAY_S), ("young", 1.0), ("stray", DAY_S)):
        laid(home.workspaces, name, age_s)
    laid(home.workspaces, "guarded", DAY_S)
    running, ended = (build_revision(store, "app", 1, NOW) for _ in range(2))
    move_build(store, ended.id, BuildState.CANCELLED)
    for build in (running, ended):  # a copy is as old as what it was made of
        laid(home.workspaces, build.workspace, DAY_S)
    home.guard_socket("guarded").touch()
    sweeper(store, home).sweep()
    assert {path.name for path in folder.iterdir()} == {"app", "just-deleted"}
    assert {path.name for path in home.workspaces.iterdir()} == {
        replica.id,
        "zygote-1",
        "young",
        "guarded",
        running.workspace,
    }


def test_it_looks_only_when_something_was_built_or_deleted(store: Store, home: Home) -> None:
    now = [NOW]
    sweep = Sweeper(store, home, Retention(2), lambda: now[0])
    built(store, "1")
    sweep.look()
    stray = home.folder("logs", "builds") / "none.log"
    stray.touch()
    now[0] += 60
    sweep.look()
    assert stray.exists()  # nothing has happened
    built(store, "2")
    sweep.look()
    assert not stray.exists()


def test_a_revision_that_is_rolled_back_to_keeps_its_bundle(store: Store, home: Home) -> None:
    for number in "12345":
        built(store, number)
        laid(home.bundles, digest(number)[:SHORT])
    assert store.roll_back("app", 3, NOW).bundle
    sweeper(store, home, revisions=2).sweep()
    assert (home.bundles / digest("3")[:SHORT]).is_dir() and 2 not in numbers(store)
