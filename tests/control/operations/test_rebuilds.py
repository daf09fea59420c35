"""Endpoints built from a repository: deployed, told of pushes, asked for them, and what is left when one fails."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

import git_server
import webhook
from control.conftest import World, control_of, make_source
from control.rows import move_build
from git_server import GitServer, serving
from puna.control.api.app import create_app
from puna.control.domain.states import BuildState
from puna.control.operations.context import Control
from puna.control.operations.origins import Pulled, Repositories
from puna.control.operations.rebuilds import Rebuilds
from puna.control.resources.secrets import Secrets
from puna.packaging.git import ALLOWED_HOSTS

PROJECT = "name: Chat_App\nconfiguration:\n  min_replica: 2\n  max_replica: 3\nenv:\n  MODE: a\n"
FILES = {**git_server.FILES, "inferless.yaml": PROJECT}
APP = FILES["app.py"]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GitServer]:
    monkeypatch.setenv(ALLOWED_HOSTS, "127.0.0.1")
    with serving(tmp_path / "git") as server:
        server.repository("chat", FILES)
        yield server


@pytest.fixture
def control(world: World) -> Control:
    secrets = Secrets(world.store, world.home.key)
    real = Repositories(secrets, world.home)
    parts = {"pull": real.pull, "head": real.head, "clock": lambda: world.now, "steady": lambda: world.now}
    return control_of(world.store, world.home, **parts)


@pytest.fixture
def rebuilds(control: Control) -> Rebuilds:
    return Rebuilds(control)


@pytest.fixture
def api(world: World, control: Control) -> Iterator[TestClient]:
    with TestClient(create_app(control)) as client:
        yield client


def deploy(api: TestClient, server: GitServer, **settings: Any) -> dict[str, Any]:
    body = {"git": {"url": server.url("chat"), "branch": "main"}, "settings": settings}
    reply = api.post("/api/v1/endpoints", json=body)
    assert reply.status_code == 202, reply.text
    return dict(reply.json())


def push(api: TestClient, server: GitServer, commit: str, number: int = 1, **changes: Any) -> httpx.Response:
    body = webhook.push(server.url("chat"), commit, **changes)
    headers = webhook.signed(body, api.get("/api/v1/endpoints/chat-app/webhook").json()["secret"], f"d{number}")
    return api.post("/api/v1/hooks/chat-app", content=body, headers=headers | {"x-puna-forwarded": "1"})


def built(world: World) -> None:
    """Let every build end well."""
    for build in world.store.unended_builds(BuildState.QUEUED):
        move_build(world.store, build.id, BuildState.RUNNING)
        move_build(world.store, build.id, BuildState.SUCCEEDED)


def work(rebuilds: Rebuilds) -> int:
    jobs = rebuilds.due()
    for _, job in jobs:
        job()
    return len(jobs)


def deliveries(api: TestClient) -> list[dict[str, Any]]:
    return list(api.get("/api/v1/endpoints/chat-app/deliveries").json()["items"])


def test_a_repository_is_deployed_as_its_file_says(world: World, api: TestClient, server: GitServer) -> None:
    made = deploy(api, server, max_replica=5, env={"MORE": "b"})
    assert made["endpoint"] == "chat-app" and len(made["commit"]) == 40 and made["build_id"]
    settings = world.endpoint("chat-app").settings
    assert (settings.min_replica, settings.max_replica, settings.env) == (2, 5, {"MODE": "a", "MORE": "b"})
    assert settings.git == {"url": server.url("chat"), "branch": "main", "commit": made["commit"]}
    shown = api.get("/api/v1/endpoints/chat-app").json()
    assert shown["revisions"][0]["commit"] == made["commit"]
    assert deploy(api, server, max_replica=5, env={"MORE": "b"})["unchanged"] is True


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "one of them"),
        ({"name": "a", "source": "0" * 64, "git": {"url": "https://github.com/a/b"}}, "one of them"),
        ({"git": {"url": ""}}, "cannot be fetched from"),
        ({"git": {"url": "ext::sh -c id"}}, "cannot be fetched from"),
        ({"git": {"url": "https://github.com/a/b", "branch": "-x"}}, "branch"),
        ({"git": {"url": "https://github.com/a/b", "folder": "../x"}}, "folder"),
        ({"git": {"url": "https://10.0.0.1/a/b"}}, "private address"),
        ({"git": {"url": "https://github.com/a/b", "commit": "x"}}, "commit"),
        ({"git": {"url": "https://github.com/a/b", "credential": "nobody"}}, "nobody"),
    ],
)
def test_what_is_no_deploy_is_refused_in_words(api: TestClient, body: dict[str, Any], word: str) -> None:
    reply = api.post("/api/v1/endpoints", json=body)
    assert reply.status_code in (400, 404), reply.text
    error = reply.json()["error"]
    assert word in error["message"] + error["hint"]
    assert api.get("/api/v1/endpoints").json()["items"] == []


def test_a_push_is_fetched_and_built_and_one_that_changes_nothing_is_not(
    world: World, api: TestClient, server: GitServer, rebuilds: Rebuilds
) -> None:
    deploy(api, server, auto_rebuild=True)
    built(world)
    commit = server.push("chat", {"app.py": APP + "# more\n"})
    reply = push(api, server, commit)
    assert reply.status_code == 202 and reply.json()["outcome"] == "queued"
    assert work(rebuilds) == 1
    (one,) = deliveries(api)
    assert (one["outcome"], one["revision"], one["commit"], one["state"]) == ("deployed", 2, commit, "queued")
    assert world.endpoint("chat-app").settings.git["commit"] == commit
    assert "as github said" in world.store.events_page("chat-app", None, 10_000)[-1].message
    built(world)
    assert push(api, server, commit, number=2, note="again").json()["outcome"] == "queued"
    assert work(rebuilds) == 1
    assert (deliveries(api)[0]["outcome"], deliveries(api)[0]["revision"]) == ("unchanged", 2)


def test_a_push_beside_the_folder_changes_nothing_and_its_commit_is_written_down(
    world: World, api: TestClient, server: GitServer, rebuilds: Rebuilds
) -> None:
    server.push("chat", {f"apps/chat/{name}": text for name, text in FILES.items()})
    git = {"url": server.url("chat"), "branch": "main", "folder": "apps/chat"}
    assert api.post("/api/v1/endpoints", json={"git": git, "settings": {"auto_rebuild": True}}).status_code == 202
    built(world)
    commit = server.push("chat", {"README.md": "words"})
    push(api, server, commit)
    assert work(rebuilds) == 1
    (one,) = deliveries(api)
    assert (one["outcome"], one["revision"], one["commit"]) == ("unchanged", 1, commit)


def test_a_delivery_that_comes_twice_counts_once(api: TestClient, server: GitServer) -> None:
    deploy(api, server, auto_rebuild=True)
    assert push(api, server, "b" * 40, number=1).json()["outcome"] == "queued"
    for number in (1, 2):  # the same id; the same body under another id
        again = push(api, server, "b" * 40, number=number)
        assert again.status_code == 200 and again.json()["message"] == "this delivery has come before"


def test_pushes_during_a_build_wait_and_are_one_rebuild(
    world: World, api: TestClient, server: GitServer, rebuilds: Rebuilds
) -> None:
    deploy(api, server, auto_rebuild=True)
    commits = [server.push("chat", {"app.py": APP + f"# {number}\n"}) for number in range(5)]
    for number, commit in enumerate(commits):
        assert push(api, server, commit, number).json()["outcome"] == "queued"
    assert rebuilds.due() == []  # the first build is under way
    built(world)
    asked = server.asked
    assert work(rebuilds) == 1 and server.asked > asked
    assert {(d["outcome"], d["revision"], d["commit"]) for d in deliveries(api)} == {("deployed", 2, commits[-1])}
    assert rebuilds.due() == []


def test_a_push_that_is_no_app_says_why_and_nothing_else_changes(
    world: World, api: TestClient, server: GitServer, rebuilds: Rebuilds
) -> None:
    first = deploy(api, server, auto_rebuild=True)
    built(world)
    broken = server.push("chat", {"app.py": "class InferlessPythonModel:\n    def infer(self inputs):\n"})
    push(api, server, broken)
    work(rebuilds)
    (one,) = deliveries(api)
    assert one["outcome"] == "failed" and "app.py line 2" in one["message"] and one["hint"]
    assert len(world.store.revisions("chat-app")) == 1
    assert world.endpoint("chat-app").settings.git["commit"] == first["commit"]
    assert world.store.events_page("chat-app", None, 10_000)[-1].message.startswith("not rebuilt: app.py line 2")
    server.push("chat", {"app.py": APP + "# mended\n"})
    assert api.post(f"/api/v1/endpoints/chat-app/deliveries/{one['id']}/replay").status_code == 202
    work(rebuilds)
    newest = deliveries(api)[0]
    assert (newest["sender"], newest["event"], newest["outcome"]) == ("replay", f"github {one['id']}", "deployed")


def test_a_rebuild_that_fails_in_a_way_nobody_foresaw_is_not_tried_for_ever(
    api: TestClient, server: GitServer, control: Control, world: World
) -> None:
    def pull(_: object) -> Pulled:
        raise OSError("the disk is on fire")

    deploy(api, server, auto_rebuild=True)
    built(world)
    push(api, server, "b" * 40)
    rebuilds = Rebuilds(dataclasses.replace(control, pull=pull))
    assert work(rebuilds) == 1 and rebuilds.due() == []
    (one,) = deliveries(api)
    assert (one["outcome"], one["message"]) == ("failed", "OSError: the disk is on fire")


def test_what_is_not_about_the_endpoint_is_written_down_and_ignored(api: TestClient, server: GitServer) -> None:
    deploy(api, server)
    assert push(api, server, "b" * 40, 1).json()["message"] == "automatic rebuilds are off"
    api.patch("/api/v1/endpoints/chat-app", json={"auto_rebuild": True})
    assert push(api, server, "b" * 40, 2, ref="refs/heads/dev").json()["message"] == "it is about dev, not main"
    assert [d["outcome"] for d in deliveries(api)] == ["ignored", "ignored"]
    assert push(api, server, "b" * 40, 1).json()["outcome"] == "queued"  # what was ignored may come again


def test_outside_nobody_learns_which_endpoints_there_are(api: TestClient, server: GitServer) -> None:
    deploy(api, server)
    told = [
        api.post(f"/api/v1/hooks/{name}", content=b"{}", headers={"x-puna-forwarded": "1", **headers})
        for name in ("chat-app", "nobody", "..%2fchat-app", "chat-app%00")
        for headers in ({}, {"x-hub-signature-256": "sha256=" + "0" * 64}, {"x-gitlab-token": "x"})
    ]
    assert {reply.status_code for reply in told} <= {401, 403, 404}
    assert len({reply.text for reply in told if reply.status_code == 403}) == 1
    too_long = api.post("/api/v1/hooks/chat-app", content=b"x" * (5 * 2**20 + 1))
    assert too_long.status_code == 413
    assert deliveries(api) == []


def test_a_repository_is_asked_when_no_webhook_tells(
    world: World, api: TestClient, server: GitServer, rebuilds: Rebuilds
) -> None:
    deploy(api, server, auto_rebuild=True, poll_s=60)
    built(world)
    assert rebuilds.due() == []
    world.now += 61
    assert work(rebuilds) == 1 and deliveries(api) == []  # nothing new
    server.push("chat", {"app.py": "not python ("})
    world.now += 61
    assert work(rebuilds) == 1 and work(rebuilds) == 1
    assert [(d["sender"], d["outcome"]) for d in deliveries(api)] == [("poll", "failed")]
    world.now += 61
    assert work(rebuilds) == 1 and work(rebuilds) == 0  # a commit that failed is not tried again and again
    server.push("chat", {"app.py": APP + "# 2\n"})
    world.now += 61
    assert work(rebuilds) == 1 and work(rebuilds) == 1
    assert deliveries(api)[0]["outcome"] == "deployed"


def test_a_repository_that_is_gone_is_said_once(
    world: World, api: TestClient, server: GitServer, rebuilds: Rebuilds
) -> None:
    deploy(api, server, auto_rebuild=True, poll_s=60)
    (server.root / "chat.git").rename(server.root / "gone.git")
    for _ in range(3):
        world.now += 61
        work(rebuilds)
    said = [e.message for e in world.store.events_page("chat-app", None, 10_000) if e.kind == "rebuild"]
    assert len(said) == 1 and said[0].startswith("cannot look for changes")


def test_the_thread_does_what_is_queued_and_ends(
    world: World, api: TestClient, server: GitServer, rebuilds: Rebuilds
) -> None:
    deploy(api, server, auto_rebuild=True)
    built(world)
    push(api, server, server.push("chat", {"app.py": APP + "# more\n"}))
    stop = threading.Event()
    thread = threading.Thread(target=rebuilds.run, args=(stop,))
    thread.start()
    for _ in range(200):
        if deliveries(api)[0]["outcome"] != "queued":
            break
        stop.wait(0.05)
    stop.set()
    rebuilds.wake()
    thread.join(10)
    assert deliveries(api)[0]["outcome"] == "deployed" and not thread.is_alive()


def test_a_folder_in_place_of_a_repository_is_no_repository_any_more(
    world: World, api: TestClient, server: GitServer
) -> None:
    deploy(api, server, auto_rebuild=True, poll_s=60)
    body = {"name": "chat-app", "source": make_source(world.home).digest}
    assert api.post("/api/v1/endpoints", json=body).status_code == 202
    settings = world.endpoint("chat-app").settings
    assert (settings.git, settings.auto_rebuild, settings.poll_s) == ({}, False, 0)
    assert push(api, server, "b" * 40).json()["message"] == "the endpoint is not built from a repository"
    assert api.post("/api/v1/endpoints/chat-app/deliveries/1/replay").status_code == 409


def test_another_branch_by_a_change_of_settings(world: World, api: TestClient, server: GitServer) -> None:
    first = deploy(api, server)
    assert api.patch("/api/v1/endpoints/chat-app", json={"git": {"branch": "dev"}}).status_code == 200
    settings = world.endpoint("chat-app").settings
    assert settings.git == {"url": server.url("chat"), "branch": "dev"}
    assert len(world.store.revisions("chat-app")) == 1
    for wrong in ({"commit": "x"}, {"url": "/etc"}, {"more": "x"}, "x", ["x"], {"credential": "nobody"}):
        reply = api.patch("/api/v1/endpoints/chat-app", json={"git": wrong})
        assert reply.status_code in (400, 404), wrong
    assert world.endpoint("chat-app").settings == settings
    dev = server.push("chat", {"app.py": APP + "# dev\n"}, branch="dev")
    made = api.post("/api/v1/endpoints/chat-app/rebuild").json()
    assert made["commit"] == dev != first["commit"]


def test_only_the_latest_deliveries_are_kept_and_one_that_comes_again_pushes_none_out(
    world: World, api: TestClient, server: GitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puna.control.store.deliveries.KEPT", 20)
    deploy(api, server)
    for number in range(25):
        push(api, server, f"{number:040x}", number)
        push(api, server, f"{number:040x}", number)
    kept = api.get("/api/v1/endpoints/chat-app/deliveries?limit=200").json()["items"]
    assert len(kept) == 20 and world.store.deliveries("chat-app")[-1].id == 6
    api.delete("/api/v1/endpoints/chat-app")
    assert world.store.queued_deliveries() == {}


def test_a_replay_of_what_never_came_is_refused(api: TestClient, server: GitServer) -> None:
    deploy(api, server)
    assert api.post("/api/v1/endpoints/chat-app/deliveries/9/replay").status_code == 404
