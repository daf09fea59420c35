"""Runs and models by the API: a merge and a publishing as builds, their errors, aliases, lineage, deletion."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from control.conftest import World, control_of
from control.runs import PASSED, make_run, merge
from load import load_factor
from puna.artifacts import Adapter, drafting
from puna.control.api.app import create_app
from puna.control.builds import jobs
from puna.control.builds.builder import Builder
from puna.control.domain.states import BuildState, RevisionState
from puna.control.operations.turns import Slots
from puna.control.resources import models as lineage
from puna.control.store.schema import MIGRATIONS, migrate
from puna.control.store.store import Store
from puna.control.telemetry.log_files import build_log
from puna.home import Home
from puna.publish.registry import Registry


@pytest.fixture
def api(world: World) -> Iterator[TestClient]:
    with TestClient(create_app(control_of(world.store, world.home))) as client:
        yield client


@pytest.fixture
def models(world: World) -> Builder:
    return Builder(world.store, world.home, slots=Slots(kinds=jobs.KINDS))


def test_a_run_is_published_by_a_build_of_its_own(world: World, api: TestClient, models: Builder) -> None:
    run = make_run(world.home)
    model = merge(world.home, run)
    body = {"name": "acme/tiny", "aliases": ["champion"]}
    made = api.post("/api/v1/runs/tiny-1/publish", json=body)
    assert made.status_code == 202 and made.json()["status"] == "queued" and made.json()["arguments"] == body
    again = api.post("/api/v1/runs/tiny-1/publish", json=body).json()
    assert again["build_id"] == made.json()["build_id"], "one that waits is not queued twice"
    assert not Builder(world.store, world.home).build_next(), "the builder of apps leaves it alone"
    assert models.build_next()
    build = api.get(f"/api/v1/builds/{made.json()['build_id']}").json()
    log = build_log(world.home, build["id"]).read_text()
    assert build["status"] == "succeeded", log
    assert "$ puna publish --alias champion -- tiny-1 acme/tiny" in log and "version 1" in log
    listed = api.get("/api/v1/models").json()["items"][0]
    assert (listed["name"], listed["version"], listed["digest"]) == ("acme/tiny", 1, model.digest)
    assert listed["run"] == "tiny-1" and listed["aliases"] == ["champion", "latest"] and listed["bytes"] > 14
    shown = api.get("/api/v1/runs/tiny-1").json()
    assert shown["published"] == [{"name": "acme/tiny", "version": 1, "kind": "model"}]
    assert shown["merge"]["verification"]["passed"] and shown["last"]["loss"] == 1.5
    assert [b["kind"] for b in shown["builds"]] == ["publish"]
    assert [line["step"] for line in api.get("/api/v1/runs/tiny-1?after=1").json()["metrics"]] == [2]


def test_a_command_that_fails_is_a_failed_build_with_its_own_words(
    world: World, api: TestClient, models: Builder
) -> None:
    merge(world.home, make_run(world.home), passed=False, reasons=["held-out loss differs"])
    made = api.post("/api/v1/runs/tiny-1/publish", json={"name": "acme/tiny"}).json()
    models.build_next()
    build = api.get(f"/api/v1/builds/{made['build_id']}").json()
    assert build["status"] == "failed" and "its verification failed: held-out loss differs" in build["error"]
    assert build["hint"] == "publish with --force if you know why" and build["steps"][0]["state"] == "failed"
    log = build_log(world.home, build["id"]).read_text()
    assert log.count("error: ") == 1 and log.count("held-out loss differs") == 1
    forced = api.post("/api/v1/runs/tiny-1/publish", json={"name": "acme/tiny", "force": True}).json()
    models.build_next()
    assert api.get(f"/api/v1/builds/{forced['build_id']}").json()["status"] == "succeeded"


def test_a_merge_that_runs_is_cancelled_within_seconds_and_its_process_is_gone(
    world: World, api: TestClient, models: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(world.home)
    # The command itself is another's test: here it is one that would never end, and has a child.
    script = "import subprocess, sys; print('began', flush=True); subprocess.run(['sleep', '7531'])"
    real = jobs.command.run
    monkeypatch.setattr(jobs.command, "run", lambda argv, *a, **k: real([argv[0], "-c", script], *a, **k))
    made = api.post("/api/v1/runs/tiny-1/merge").json()
    thread = threading.Thread(target=models.build_next)
    thread.start()
    path = build_log(world.home, made["build_id"])
    until = time.monotonic() + 20
    while not (path.exists() and "began" in path.read_text()):
        assert time.monotonic() < until
        time.sleep(0.02)
    began = time.monotonic()
    api.post(f"/api/v1/builds/{made['build_id']}/cancel")
    thread.join(20)
    assert time.monotonic() - began < 5 * load_factor()
    assert api.get(f"/api/v1/builds/{made['build_id']}").json()["status"] == "cancelled"
    assert not [p for p in Path("/proc").glob("[0-9]*/cmdline") if b"sleep\0007531" in _read(p)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_what_cannot_work_is_refused_before_it_is_queued(world: World, api: TestClient) -> None:
    make_run(world.home)
    make_run(world.home, state="interrupted")
    for path, body, status, words in [
        ("tiny-9/merge", {}, 404, "there is no run"),
        ("tiny-2/merge", {}, 409, "has no adapter"),
        ("tiny-1/merge", {"base": "best"}, 400, "`base` is 'best'"),
        ("tiny-1/publish", {}, 409, "has not been merged"),
        ("tiny-1/publish", {"name": "-rf/x"}, 400, "is not a name"),
        ("tiny-1/publish", {"adapter": True, "aliases": ["--force"]}, 400, "is not a name"),
        ("tiny-1/publish", {"adapter": True, "hub": "a/b"}, 400, "leave one of them out"),
        ("tiny-1/publish", {"nmae": "a/b"}, 400, "nmae"),
    ]:
        reply = api.post(f"/api/v1/runs/{path}", json=body)
        assert reply.status_code == status and words in reply.text, (path, body, reply.status_code, reply.text)
    assert world.store.builds() == []


def test_the_command_is_what_a_shell_would_be_told() -> None:
    options = {"name": "a/b", "aliases": ["x"], "force": True, "adapter": True, "hub": "c/d", "private": True}
    words = "publish --alias x --hub c/d --private --force --adapter -- run a/b"
    assert " ".join(jobs.argv("publish", "run", options)) == words
    assert jobs.argv("merge", "run", {"base": "auto"}) == ["merge", "--base", "auto", "--", "run"]


def test_lineage_leads_from_run_to_model_to_endpoint_and_guards_it(world: World, api: TestClient) -> None:
    run = make_run(world.home)
    model = merge(world.home, run)
    version = Registry(world.home).publish(model, "acme/tiny", verification=PASSED)
    with drafting("bundle", world.home.bundles) as draft:
        (draft.path / "app").mkdir()
        (draft.path / "app" / "app.py").write_text("")
        draft.config = {"models": [{"name": "acme/tiny", "version": 1, "digest": version.digest}]}
    world.deploy("chat")
    world.store.move_revision("chat", 1, RevisionState.STARTING, 1.0, bundle=draft.manifest.digest)
    assert api.get("/api/v1/models").json()["items"][0]["endpoints"] == [{"endpoint": "chat", "revision": 1}]
    refused = api.delete("/api/v1/models/acme/tiny/versions/1")
    assert refused.status_code == 409 and "is served by chat" in refused.text and version.path.is_dir()
    assert api.delete("/api/v1/models/acme/tiny/versions/1?force=1").json() == {"deleted": "acme/tiny:1"}
    assert api.get("/api/v1/models").json()["items"] == [] and not version.path.exists()
    assert api.delete("/api/v1/models/acme/tiny/versions/1").status_code == 404


def test_aliases_are_moved_and_removed(world: World, api: TestClient) -> None:
    model = merge(world.home, make_run(world.home))
    Registry(world.home).publish(model, "acme/tiny", verification=PASSED)
    put = api.put("/api/v1/models/acme/tiny/aliases/champion", json={"version": 1})
    assert put.status_code == 200 and put.json()["aliases"] == ["champion", "latest"]
    assert api.put("/api/v1/models/acme/tiny/aliases/champion", json={"version": 2}).status_code == 404
    assert api.put("/api/v1/models/acme/tiny/aliases/Bad!", json={"version": 1}).status_code == 400
    held = api.delete("/api/v1/models/acme/tiny/versions/1")
    assert held.status_code == 409 and "@champion" in held.text
    for alias in ("champion", "latest"):
        assert api.delete(f"/api/v1/models/acme/tiny/aliases/{alias}").status_code == 200
    assert api.delete("/api/v1/models/acme/tiny/aliases/champion").status_code == 404
    assert api.delete("/api/v1/models/acme/tiny/versions/1").status_code == 200


def test_a_key_for_some_endpoints_changes_no_model(world: World, api: TestClient) -> None:
    make_run(world.home)
    made = api.post("/api/v1/keys", json={"scope": ["deploy"], "endpoints": ["mine"]}).json()["key"]
    headers = {"x-puna-forwarded": "1", "authorization": f"Bearer {made}"}
    for method, path in [
        ("POST", "runs/tiny-1/merge"),
        ("POST", "runs/tiny-1/publish"),
        ("PUT", "models/a/b/aliases/c"),
        ("DELETE", "models/a/b/aliases/c"),
        ("DELETE", "models/a/b/versions/1"),
    ]:
        reply = api.request(method, f"/api/v1/{path}", headers=headers, json={"version": 1} if method == "PUT" else {})
        assert reply.status_code == 403, path


def test_an_adapter_published_unmerged_is_known_by_its_run(world: World) -> None:
    run = make_run(world.home)
    assert run.adapter is not None
    with drafting("adapter", world.home.models) as draft:
        (draft.path / "adapter_model.safetensors").write_bytes(b"adapter")
    version = Registry(world.home).publish(Adapter.open(draft.final), "acme/tiny-adapter")
    assert lineage.run_of(version, lineage.trained(world.home)) == "tiny-1"


def test_a_database_of_before_gets_the_column_and_keeps_its_builds(home: Home) -> None:
    store = Store(f"sqlite:///{home.database}")
    old = store.add_build("runtime", "r", 1, 1.0)
    with store.engine.begin() as connection:
        connection.execute(text("ALTER TABLE builds DROP COLUMN arguments"))
        number = next(n for n, ran in enumerate(MIGRATIONS, 1) if "arguments_of_builds" in ran.__name__)
        connection.execute(text(f"DELETE FROM schema_version WHERE number >= {number}"))
    store.close()
    again = Store(f"sqlite:///{home.database}")
    assert again.build(old.id).arguments == {} and again.build(old.id).state is BuildState.QUEUED
    assert again.add_build("merge", "tiny-1", 0, 1.0, {"base": "auto"}).arguments == {"base": "auto"}
    with again.engine.begin() as connection:
        migrate(connection)
    again.close()
