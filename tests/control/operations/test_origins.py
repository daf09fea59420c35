"""Apps made for a model: a published one, one on the hub, and one that is nowhere; sources fetched before a deploy."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

import git_server
from control.conftest import World, control_of
from git_server import serving
from publish.hub_server import TOKEN, File, Hub, Repo
from puna.artifacts import Model, Source, drafting
from puna.control.api.app import create_app
from puna.control.operations import origins
from puna.control.operations.context import Control
from puna.control.operations.origins import Repositories
from puna.control.resources.secrets import Secrets
from puna.packaging import bundle, template
from puna.packaging.git import ALLOWED_HOSTS
from puna.publish.registry import Registry


@pytest.fixture
def control(world: World) -> Control:
    secrets = Secrets(world.store, world.home.key)
    make = functools.partial(origins.make_app, world.home, secrets.open)
    pull = Repositories(secrets, world.home).pull
    return control_of(world.store, world.home, make=make, pull=pull)


@pytest.fixture
def api(world: World, control: Control) -> Iterator[TestClient]:
    with TestClient(create_app(control)) as client:
        yield client


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has `acme/on-the-hub`, gated, and nothing else."""
    with Hub() as hub:
        hub.repos["acme/on-the-hub"] = Repo(gated=True)
        hub.repos["acme/on-the-hub"].commit({"config.json": File(b"{}"), "model.safetensors": File(b"x")}, "first")
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def publish(world: World, name: str = "acme/Llama3_chat", text: str = "one") -> str:
    with drafting("model", world.home.models) as draft:
        (draft.path / "config.json").write_text(json.dumps({"text": text}))
        (draft.path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return Registry(world.home).publish(Model.open(draft.final), name, force=True).ref


def files_of(world: World, digest: str) -> Path:
    return Source.open(world.home.sources / digest[:16]).path / "files"


def post(api: TestClient, path: str, body: Any, status: int) -> dict[str, Any]:
    reply = api.post(f"/api/v1{path}", json=body)
    assert reply.status_code == status, reply.text
    return dict(reply.json())


def test_a_published_model_becomes_a_source_with_the_version_that_it_means_now(api: TestClient, world: World) -> None:
    publish(world)
    made = post(api, "/sources/from-model", {"model": "acme/Llama3_chat", "engine": "transformers"}, 200)
    assert (made["name"], made["model"], made["engine"]) == ("llama3-chat", "acme/Llama3_chat:1", "transformers")
    assert made["settings"]["max_replica"] == 1
    shown = api.get(f"/api/v1/sources/{made['digest']}").json()
    assert shown["error"] is None and shown["schema"] and "transformers==" in shown["runtime"]
    known = {"acme/Llama3_chat"}
    assert bundle.models_named(Source.open(world.home.sources / made["digest"][:16]), known) == ["acme/Llama3_chat:1"]
    assert world.store.endpoints() == [] and world.store.builds() == []
    publish(world, text="two")
    newer = post(api, "/sources/from-model", {"model": "acme/Llama3_chat", "engine": "transformers"}, 200)
    assert newer["model"].endswith(":2") and newer["digest"] != made["digest"]
    older = post(api, "/sources/from-model", {"model": {"name": "acme/Llama3_chat", "version": 1}}, 200)
    assert older["model"] == "acme/Llama3_chat:1"
    alias = post(api, "/sources/from-model", {"model": "acme/Llama3_chat@latest", "engine": "vllm"}, 200)
    assert (alias["model"], alias["engine"]) == ("acme/Llama3_chat:2", "vllm")


def test_a_model_is_deployed_by_its_name_alone_and_a_newer_version_is_a_new_revision(
    api: TestClient, world: World
) -> None:
    publish(world)
    body = {"model": {"name": "acme/Llama3_chat", "engine": "transformers"}, "settings": {"max_replica": 3}}
    first = post(api, "/endpoints", body, 202)
    assert (first["endpoint"], first["revision"], first["unchanged"]) == ("llama3-chat", 1, False)
    assert api.get("/api/v1/endpoints/llama3-chat").json()["settings"]["max_replica"] == 3
    assert post(api, "/endpoints", body, 202)["unchanged"]
    publish(world, text="two")
    assert post(api, "/endpoints", body | {"name": "llama3-chat"}, 202)["revision"] == 2
    assert post(api, "/endpoints", body | {"name": "other"}, 202)["endpoint"] == "other"


def test_a_model_of_the_hub_is_pinned_and_its_app_gets_the_token_that_opens_it(
    api: TestClient, world: World, control: Control, hub: Hub
) -> None:
    control.secrets.save("hub", {"HF_TOKEN": TOKEN}, 1.0)
    commit = hub.repos["acme/on-the-hub"].head
    model = {"name": "acme/on-the-hub", "engine": "vllm", "credential": "hub"}
    made = post(api, "/sources/from-model", {"model": model}, 200)
    assert made["model"] == f"acme/on-the-hub@{commit}"
    assert made["settings"]["secrets"] == ["hub"]
    assert made["settings"]["startup_timeout_s"] == origins.HUB_STARTUP_TIMEOUT_S
    app = (files_of(world, made["digest"]) / "app.py").read_text()
    assert f'revision = "{commit}"' in app and app.count("revision=revision") == 2 and TOKEN not in app
    control.secrets.save("mine", {"A": "1"}, 1.0)
    deployed = post(api, "/endpoints", {"model": model, "settings": {"secrets": ["mine"]}}, 202)
    assert api.get(f"/api/v1/endpoints/{deployed['endpoint']}").json()["settings"]["secrets"] == ["hub", "mine"]


@pytest.mark.parametrize(
    ("model", "status", "part"),
    [
        ("acme/nowhere", 404, "no model acme/nowhere is published here, and acme/nowhere was not found"),
        ("acme/llama3_chat", 404, "did you mean"),
        ("acme/Llama3_chat:7", 404, "acme/Llama3_chat has no version 7"),
        ("acme/Llama3_chat@best", 404, "has no alias `best`"),
        ("acme/on-the-hub:1", 404, "no model acme/on-the-hub is published"),
        ("../../etc", 400, "is not a name"),
        ("-x/y", 400, "is not a name"),
        ({"name": "acme/Llama3_chat:1", "alias": "latest"}, 400, "a version and an alias"),
        ({"name": "acme/Llama3_chat", "engine": "tgi"}, 400, "engine"),
        ({"name": "acme/on-the-hub"}, 404, "it is gated"),
        ({"name": "acme/on-the-hub"}, 404, "and `puna secret set my-hub HF_TOKEN=hf_...`, then --credential my-hub"),
        ({"name": "acme/on-the-hub", "credential": "none"}, 404, "no secret"),
        ({"name": "acme/on-the-hub", "credential": "empty"}, 400, "has no HF_TOKEN"),
    ],
)
def test_a_model_that_cannot_be_had_is_an_error_before_anything_is_made(
    api: TestClient, world: World, control: Control, hub: Hub, model: Any, status: int, part: str
) -> None:
    publish(world)
    control.secrets.save("empty", {"A": "1"}, 1.0)
    for path in ("/sources/from-model", "/endpoints"):
        error = post(api, path, {"model": model}, status)["error"]
        assert part in error["message"] + error["hint"]
    assert world.store.endpoints() == [] and list(world.home.sources.iterdir()) == []


def test_one_kind_of_source_is_named(api: TestClient, world: World) -> None:
    publish(world)
    for body in ({}, {"source": "0" * 64, "model": "acme/x"}, {"git": {"url": "https://a/b/c"}, "model": "acme/x"}):
        assert "one of them" in post(api, "/endpoints", {"name": "app", **body}, 400)["error"]["message"]


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_the_app_of_a_hub_model_is_an_app(tmp_path: Path, engine: template.Engine) -> None:
    template.init(tmp_path, "acme/x", name="x", engine=engine, revision="c" * 40)
    compile((tmp_path / "app.py").read_text(), "app.py", "exec")


def test_a_repository_is_fetched_and_shown_before_it_is_deployed(
    api: TestClient, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path / "git") as server:
        server.repository("chat", {**git_server.FILES, "inferless.yaml": "name: Chat_App\n"})
        url = server.url("chat")
        assert "PUNA_GIT_HOSTS" in post(api, "/sources/from-git", {"url": url}, 400)["error"]["hint"]
        monkeypatch.setenv(ALLOWED_HOSTS, "127.0.0.1")
        made = post(api, "/sources/from-git", {"url": url, "branch": "main"}, 200)
        assert (made["name"], made["runtime"], made["runtime_version"]) == ("chat-app", None, None)
        assert len(made["commit"]) == 40 and made["settings"]["max_replica"] == 1
        assert api.get(f"/api/v1/sources/{made['digest']}").json()["error"] is None
        assert (
            "no branch 'dev'" in post(api, "/sources/from-git", {"url": url, "branch": "dev"}, 400)["error"]["message"]
        )
        assert post(api, "/sources/from-git", {"url": "ext::sh -c x"}, 400)["error"]["code"] == "usage"
        assert world.store.endpoints() == []
