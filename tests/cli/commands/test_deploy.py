"""`puna deploy` of a folder and `puna ship`, against the real API: what they are called, and what is refused first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from backends.memory import MemoryBackend
from config.tutorial_files import FILES
from control.conftest import World, control_of, fresh_store
from puna import pipeline
from puna.cli import output
from puna.cli.commands import deploy
from puna.client import Client
from puna.config import project, recipe
from puna.control.api.app import create_app
from puna.control.domain.states import BuildState
from puna.errors import ConflictError, PunaError, UsageError
from puna.home import Home
from puna.packaging import template


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    home = Home(tmp_path / "home")
    store = fresh_store(home)
    yield World(store, home, MemoryBackend(ready_after_s=1.0, stop_takes_s=0.5))
    store.close()


@pytest.fixture
def client(world: World) -> Iterator[Client]:
    with Client(home=world.home, http=TestClient(create_app(control_of(world.store, world.home)))) as client:
        yield client


@contextmanager
def runtimes_built(world: World) -> Iterator[None]:
    """Runtimes are built at once while this lasts, as far as the store knows."""
    stop = threading.Event()

    def build() -> None:
        while not stop.wait(0.02):
            made = world.store.claim_build(lambda queued, _: next((b for b in queued if b.kind == "runtime"), None), 1)
            if made is not None:
                world.store.end_build(made.id, BuildState.SUCCEEDED, 2)

    thread = threading.Thread(target=build)
    thread.start()
    yield
    stop.set()
    thread.join()


def folder_of(path: Path, **values: str) -> Path:
    """The tutorial's four files, to the letter, but for these keys of its inferless.yaml."""
    path.mkdir()
    for name, text in FILES.items():
        (path / name).write_text(text)
    if values:
        (path / "inferless.yaml").write_text(yaml.safe_dump({**yaml.safe_load(FILES["inferless.yaml"]), **values}))
    return path


def deployed(client: Client, folder: Path, name: str = "", **settings: Any) -> dict[str, Any]:
    target = {"name": name, "runtime": None, "runtime_version": None, "traffic": 100}
    return deploy._deploy_folder(client, folder, target, settings, {}, output.ProgressDisplay(quiet=True))


def test_the_tutorials_four_files_are_deployed_from_a_folder(client: Client, world: World, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "Llama-3")
    with runtimes_built(world):
        made = deployed(client, folder)
    assert (made["endpoint"], made["revision"]) == ("llama-3", 1)
    assert world.store.revision("llama-3", 1).runtime == "llama-3"
    assert [(r.name, r.version) for r in world.store.runtimes()] == [("llama-3", 1)]


@pytest.mark.parametrize(
    ("said", "name", "endpoint", "runtime"),
    [
        ("Llama-3", "mine", "mine", "llama-3"),
        ("应用", "mine", "mine", "mine"),
        ("llama3.1 chat", "", "llama3-1-chat", "llama3-1-chat"),
    ],
)
def test_a_name_that_is_given_helps_whatever_the_file_says(
    client: Client, world: World, tmp_path: Path, said: str, name: str, endpoint: str, runtime: str
) -> None:
    with runtimes_built(world):
        made = deployed(client, folder_of(tmp_path / "files", name=said), name)
    assert made["endpoint"] == endpoint and world.store.revision(endpoint, 1).runtime == runtime


@pytest.mark.parametrize(
    ("name", "values", "hint"),
    [("My_App", {}, "`my-app` is one"), ("", {"name": "应用"}, "--name")],
)
def test_a_name_that_cannot_be_is_refused_before_anything_is_built(
    client: Client, tmp_path: Path, name: str, values: dict[str, str], hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        deployed(client, folder_of(tmp_path / "应用", **values), name)
    assert hint in caught.value.hint
    assert client.runtimes() == [] and client.endpoints() == []


def test_what_init_writes_is_what_deploy_takes(tmp_path: Path) -> None:
    from puna.cli.main import run

    assert run(["init", "acme/chat", str(tmp_path / "My_App"), "--engine", "transformers"]) == 0
    assert 'name: "my-app"' in (tmp_path / "My_App" / "inferless.yaml").read_text()
    found = project.load(tmp_path / "My_App")
    assert found.name == "my-app" and found.warnings == ()
    assert run(["init", "acme/chat", str(tmp_path / "b"), "--name", "My_App"]) == 2
    assert not (tmp_path / "b").exists()
    assert run(["init", "acme/chat", str(tmp_path / "应用")]) == 2


def test_a_version_without_a_runtime_is_refused_before_the_folders_own_is_built(client: Client, tmp_path: Path) -> None:
    target = {"name": "a", "runtime": None, "runtime_version": 7, "traffic": 100}
    with pytest.raises(UsageError, match="--runtime-version"):
        deploy._deploy_folder(client, folder_of(tmp_path / "a"), target, {}, {}, output.ProgressDisplay(quiet=True))
    assert client.runtimes() == []


# ------------------------------------------------------------------ ship


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"serve": {"min_replica": 0, "max_replica": 2000}}, UsageError),  # as the control plane's ranges have it
        ({}, ConflictError),  # the folder holds another app
    ],
)
def test_ship_refuses_before_it_trains(
    client: Client, world: World, tmp_path: Path, values: dict[str, Any], error: type[PunaError]
) -> None:
    folder = tmp_path / "app"
    template.init(folder, "acme/other", name="other", engine="transformers")
    wanted = recipe.parse({"name": "llama3.1-chat", "base": "demo", **values})
    with pytest.raises(error):
        pipeline.ship(wanted, world.home, client, folder)
    assert not list(world.home.runs.glob("*")) and not list(world.home.datasets.glob("*"))


def test_the_app_of_a_recipe_is_called_as_its_endpoint(tmp_path: Path) -> None:
    wanted = recipe.parse({"name": "llama3.1-chat", "base": "demo"})
    template.init(tmp_path / "app", wanted.model, name=wanted.endpoint, engine="transformers")
    assert project.load(tmp_path / "app").name == wanted.endpoint == "llama3-1-chat"
