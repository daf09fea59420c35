"""The JSON API by its handlers: deploy, look, change, roll back, delete, keys, secrets, routes, load."""

from __future__ import annotations

import io
import tarfile
import threading
import time
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

import puna
from control.conftest import World, control_of, make_source
from control.rows import move_build
from puna.artifacts import Source
from puna.control.api.app import create_app
from puna.control.api.routes import internal
from puna.control.domain.states import BuildState, RevisionState
from puna.control.telemetry.log_files import build_log, replica_log


@pytest.fixture
def woken() -> list[int]:
    return []


@pytest.fixture
def api(world: World, woken: list[int]) -> Iterator[TestClient]:
    control = control_of(world.store, world.home, world.loads, wake=lambda: woken.append(1))
    with TestClient(create_app(control)) as client:
        yield client


def deploy(api: TestClient, source: Source, **settings: object) -> dict[str, object]:
    reply = api.post("/api/v1/endpoints", json={"name": "app", "source": source.digest, "settings": settings})
    assert reply.status_code == 202, reply.text
    return dict(reply.json())


def test_health_says_where_and_which_version(api: TestClient) -> None:
    told = api.get("/api/v1/health").json()
    assert told == {"status": "ok", "version": puna.__version__, "url": "http://127.0.0.1:8000", "parts": {}}


def test_a_deploy_queues_a_build_and_wakes_the_builder(api: TestClient, source: Source, woken: list[int]) -> None:
    reply = deploy(api, source, min_replica=1, env={"N": 1})
    assert reply["revision"] == 1 and reply["unchanged"] is False and woken == [1]
    build = api.get(f"/api/v1/builds/{reply['build_id']}").json()
    assert build["status"] == "queued" and [s["name"] for s in build["steps"]] == ["environment", "bundle", "validate"]
    shown = api.get("/api/v1/endpoints/app").json()
    assert (shown["state"], shown["url"]) == ("building", "http://127.0.0.1:8000/v2/models/app/infer")
    assert shown["settings"]["env"] == {"N": "1"} and shown["revisions"][0]["state"] == "queued"


def test_the_same_deploy_again_makes_no_revision_but_takes_the_scaling(api: TestClient, source: Source) -> None:
    first = deploy(api, source, env={"A": "1"})
    again = deploy(api, source, max_replica=5)
    assert again == first | {"unchanged": True}
    assert api.get("/api/v1/endpoints/app").json()["settings"]["max_replica"] == 5
    assert deploy(api, source, env={"A": "2"})["revision"] == 2


def test_other_source_is_another_revision(api: TestClient, world: World, source: Source) -> None:
    deploy(api, source)
    assert deploy(api, make_source(world.home, "x = 1\n"))["revision"] == 2


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        ({"name": "App_1"}, 400, "is not a name"),
        ({"source": "0" * 64}, 404, "no source"),
        ({"source": "../../etc"}, 404, "no source"),
        ({"runtime": "missing"}, 404, "no runtime `missing`"),
        ({"settings": {"max_replicas": 3}}, 400, "unknown key `settings.max_replicas`"),
        ({"settings": {"min_replica": 2}}, 400, "min_replica must lie"),
        ({"settings": {"secrets": ["none"]}}, 404, "no secret `none`"),
        ({"settings": {"env": {"A-B": "1"}}}, 400, "'A-B' is not a name"),
        ({"colour": "red"}, 400, "`colour`"),
    ],
)
def test_a_wrong_deploy_says_what_is_wrong(
    api: TestClient, world: World, source: Source, body: dict[str, object], status: int, part: str
) -> None:
    reply = api.post("/api/v1/endpoints", json={"name": "app", "source": source.digest} | body)
    assert reply.status_code == status and part in reply.json()["error"]["message"]
    assert world.store.endpoints() == []


def test_a_patch_of_scaling_acts_at_once_and_one_of_env_is_a_revision_without_a_build(
    api: TestClient, world: World
) -> None:
    world.deploy(min_replica=1, max_replica=2)
    world.settle(10)
    reply = api.patch("/api/v1/endpoints/app", json={"max_replica": 4}).json()
    assert reply["settings"]["max_replica"] == 4 and reply["changed_revision"] is None
    reply = api.patch("/api/v1/endpoints/app", json={"env": {"A": "1"}}).json()
    assert reply["changed_revision"] == 2
    assert world.revision(2).state is RevisionState.BUILT and world.revision(2).bundle == world.revision(1).bundle
    world.settle(20)
    assert world.endpoint().serving == 2


def test_activate_deactivate_rebuild_rollback_delete(api: TestClient, world: World) -> None:
    world.deploy(min_replica=1)
    world.settle(10)
    world.deploy(min_replica=1)
    world.settle(20)
    assert api.post("/api/v1/endpoints/app/deactivate").json()["state"] == "inactive"
    assert api.post("/api/v1/endpoints/app/activate").json()["state"] in ("starting", "ready")
    world.settle(10)
    assert api.post("/api/v1/endpoints/app/rollback", json={}).json()["revision"] == 1
    world.settle(20)
    assert api.get("/api/v1/endpoints/app").json()["revision"] == 1
    assert api.post("/api/v1/endpoints/app/rebuild").json()["revision"] == 3
    assert api.delete("/api/v1/endpoints/app").json() == {"deleted": "app"}
    assert api.get("/api/v1/endpoints/app").status_code == 404
    assert [b.state for b in world.store.builds()] == [BuildState.CANCELLED]
    world.settle(10)
    assert world.backend.list() == []


def test_replicas_show_what_they_are_busy_with(api: TestClient, world: World) -> None:
    world.deploy(min_replica=1)
    world.settle(10)
    (replica,) = world.ready()
    report = {"gateway": "g", "at": 1.0, "endpoints": {"app": {"in_flight": 2, "replicas": {replica: 2}}}}
    api.post("/internal/load", json=report | {"at": time.time()})
    (shown,) = api.get("/api/v1/endpoints/app").json()["replicas"]
    assert (shown["id"], shown["state"], shown["in_flight"]) == (replica, "ready", 2)


def test_how_many_calls_a_replica_runs_at_once_is_shown_with_the_reason(api: TestClient, world: World) -> None:
    kept = {"limit": 1, "text": "one at a time: app.py:14 keeps self.prompt"}
    world.backend.schema = {**world.backend.schema, "schema": {"inputs": [], "flags": {}}, "verdict": kept}
    world.deploy(min_replica=1)
    world.settle(10)
    shown = api.get("/api/v1/endpoints/app").json()
    assert shown["concurrency"] == shown["revisions"][0]["concurrency"] == kept
    world.backend.schema = {**world.backend.schema, "verdict": {"limit": 8, "text": "8 at once: infer keeps nothing"}}
    (replica,) = world.ready()
    world.backend.kill(replica)  # the next one says something else, and it is the one that runs
    world.settle(20)
    assert api.get("/api/v1/endpoints/app").json()["concurrency"]["limit"] == 8
    world.deploy(container_concurrency=4)
    shown = api.get("/api/v1/endpoints/app").json()["revisions"][0]["concurrency"]
    assert shown == {"limit": 4, "text": "4 at once: container_concurrency says so"}


def test_a_source_is_uploaded_once_and_named_by_its_digest(api: TestClient, world: World) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        text = b"class InferlessPythonModel:\n    def infer(self, inputs):\n        return {}\n"
        info = tarfile.TarInfo("app.py")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text))
    digest = api.put("/api/v1/sources", content=data.getvalue()).json()["digest"]
    assert api.put("/api/v1/sources", content=data.getvalue()).json()["digest"] == digest
    assert Source.open(world.home.sources / digest[:16]).digest == digest
    assert api.put("/api/v1/sources", content=b"not a tar").status_code == 400


def test_runtimes_are_versioned_and_a_misspelt_key_is_named(api: TestClient) -> None:
    body = {"name": "rt", "yaml": "build:\n  python_packages: [numpy]\n"}
    first = api.post("/api/v1/runtimes", json=body)
    assert first.status_code == 202 and first.json()["version"] == 1 and first.json()["status"] == "queued"
    assert api.post("/api/v1/runtimes", json=body).json() == first.json()
    shown = api.get("/api/v1/runtimes/rt").json()
    assert shown["yaml"] == body["yaml"] and [v["version"] for v in shown["versions"]] == [1]
    wrong = api.post("/api/v1/runtimes", json={"name": "rt", "yaml": "build:\n  python_package: [numpy]\n"})
    assert wrong.status_code == 400 and "python_package" in wrong.text


def test_a_runtime_that_failed_cannot_be_deployed_on(api: TestClient, world: World, source: Source) -> None:
    runtime = world.store.add_runtime("rt", "d", "build: {}", 1.0)
    move_build(world.store, runtime.build_id, BuildState.RUNNING)
    move_build(world.store, runtime.build_id, BuildState.FAILED, error="no such package")
    reply = api.post("/api/v1/endpoints", json={"name": "app", "source": source.digest, "runtime": "rt"})
    assert reply.status_code == 409 and "puna runtime upload" in reply.json()["error"]["hint"]


def test_keys_are_shown_once_and_secrets_never(api: TestClient) -> None:
    made = api.post("/api/v1/keys", json={"name": "ci", "scope": ["infer"], "endpoints": ["app"]}).json()
    listed = api.get("/api/v1/keys")
    assert made["key"].startswith(f"puna_{made['id']}_") and made["key"][14:] not in listed.text
    assert "sha256" not in listed.text and "salt" not in listed.text
    assert api.delete(f"/api/v1/keys/{made['id']}").status_code == 200
    assert api.get("/api/v1/keys").json()["items"] == []
    api.post("/api/v1/secrets", json={"name": "hub", "values": {"HF_TOKEN": "hf_very_secret"}})
    assert api.get("/api/v1/secrets").json()["items"] == [{"name": "hub", "keys": ["HF_TOKEN"]}]
    wrong = api.post("/api/v1/secrets", json={"name": "hub", "values": {"HF_TOKEN": ["hf_very_secret"]}})
    assert wrong.status_code == 400 and "hf_very_secret" not in wrong.text


def test_the_route_table_lists_ready_replicas_of_the_serving_revision_only(api: TestClient, world: World) -> None:
    world.deploy(min_replica=1, max_queue=7)
    world.settle(10)
    world.deploy(min_replica=1, max_queue=7)
    world.step()
    route = api.get("/internal/routes").json()["endpoints"]["app"]
    (replica,) = world.store.replicas("app")[:1]
    assert route["replicas"] == [
        {
            "id": replica.id,
            "epoch": replica.epoch,
            "socket": str(world.home.replica_socket(replica.id)),
            "concurrency": 1,
            "tier": "awake",
            "revision": 1,
        }
    ]
    assert route["revision"] == 1 and route["state"] == "updating" and route["max_queue"] == 7
    world.store.set_active("app", False, world.now)
    assert api.get("/internal/routes").json()["endpoints"]["app"]["replicas"] == []


def test_a_long_poll_returns_as_soon_as_something_changes(
    api: TestClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(internal, "LOOK_S", 20.0)
    version = api.get("/internal/routes").json()["version"]
    assert api.get("/internal/routes", params={"since": version, "wait_s": 0.05}).json()["version"] == version
    threading.Timer(0.1, lambda: world.deploy()).start()
    reply = api.get("/internal/routes", params={"since": version, "wait_s": 20})
    assert reply.json()["version"] > version and reply.elapsed.total_seconds() < 15
    assert api.get("/internal/routes", params={"since": 10_000, "wait_s": 20}).elapsed.total_seconds() < 15


def test_a_build_log_is_followed_to_its_end(api: TestClient, world: World, source: Source) -> None:
    build_id = str(deploy(api, source)["build_id"])
    path = build_log(world.home, build_id)
    path.write_text("first\n")
    assert api.get(f"/api/v1/builds/{build_id}/log").text == "first\n"

    def later() -> None:
        with path.open("a") as file:
            file.write("second\n")
        api.post(f"/api/v1/builds/{build_id}/cancel")

    threading.Timer(0.2, later).start()
    assert api.get(f"/api/v1/builds/{build_id}/log", params={"follow": 1}).text == "first\nsecond\n"
    assert api.post(f"/api/v1/builds/{build_id}/cancel").status_code == 409


def test_logs_of_replicas_carry_their_names(api: TestClient, world: World) -> None:
    world.deploy()
    replica_log(world.home, "app", "app-1").write_text("one\ntwo\n")
    replica_log(world.home, "app", "app-2").write_text("three\n")
    assert api.get("/api/v1/endpoints/app/logs").text == "app-1 | one\napp-1 | two\napp-2 | three\n"
    assert api.get("/api/v1/endpoints/app/logs", params={"lines": 1}).text == "app-2 | three\n"
    assert api.get("/api/v1/endpoints/app/logs", params={"replica": "app-1", "lines": 1}).text == "two\n"
    for wrong in ("../../builds/x", "app-3", ""):
        assert api.get("/api/v1/endpoints/app/logs", params={"replica": wrong}).status_code == 404


def test_events_tell_the_story_in_order(api: TestClient, world: World) -> None:
    world.deploy(min_replica=1)
    world.settle(10)
    events = api.get("/api/v1/endpoints/app/events").json()["items"]
    kinds = [e["kind"] for e in events]
    assert kinds[:3] == ["created", "deploy", "building"] and "serving" in kinds
    after = api.get("/api/v1/endpoints/app/events", params={"after": events[-2]["id"]}).json()["items"]
    assert after == events[-1:]


def test_values_of_the_environment_that_sound_like_credentials_are_hidden(api: TestClient, source: Source) -> None:
    deploy(api, source, env={"HF_TOKEN": "hf_x", "MODE": "fast"})
    assert api.get("/api/v1/endpoints/app").json()["settings"]["env"] == {"HF_TOKEN": "***", "MODE": "fast"}


def test_docs_load_nothing_from_elsewhere(api: TestClient) -> None:
    page = api.get("/api/docs").text
    assert "http://" not in page and "https://" not in page and "/api/v1/endpoints/{name}/rollback" in page
    paths = api.get("/api/openapi.json").json()["paths"]
    assert "/api/v1/endpoints" in paths and not any(p.startswith("/internal") for p in paths)


def test_an_unexpected_error_has_the_shape_of_all_errors(world: World) -> None:
    app = create_app(control_of(world.store, world.home))
    world.store.endpoints = lambda: 1 / 0  # type: ignore[assignment, method-assign, return-value]
    with TestClient(app, raise_server_exceptions=False) as client:
        reply = client.get("/api/v1/endpoints")
    assert reply.status_code == 500 and reply.json()["error"]["code"] == "internal"


def test_head_is_answered_wherever_get_is_even_where_get_never_ends(api: TestClient) -> None:
    for path in ("/api/v1/health", "/api/v1/endpoints", "/", "/api/openapi.json", "/api/v1/events/stream"):
        head = api.head(path)
        assert (head.status_code, head.content) == (200, b""), path
    assert api.head("/api/v1/endpoints/nope").status_code == 404


def test_options_name_the_methods_that_there_are_and_need_no_key(api: TestClient) -> None:
    foreign = {"x-puna-forwarded": "1"}
    told = api.options("/api/v1/endpoints/nope", headers=foreign)
    assert (told.status_code, told.headers["allow"]) == (204, "DELETE, GET, HEAD, OPTIONS, PATCH")
    assert api.options("/api/v1/nothing/here", headers=foreign).status_code in (401, 404)
    wrong = api.put("/api/v1/endpoints/nope")
    assert wrong.status_code == 405 and "GET" in wrong.headers["allow"]
