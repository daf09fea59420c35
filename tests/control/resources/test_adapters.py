"""Adapters in the route table: those of the endpoint's base, and a new one as soon as it is published."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from control.conftest import World
from puna.artifacts import ADAPTER_BASE, SHORT, Adapter, Model, drafting
from puna.control.api.app import create_app
from puna.control.resources.adapters import Adapters
from puna.publish.registry import Registry, seal


@pytest.fixture
def api(world: World) -> Iterator[TestClient]:
    app = create_app(world.store, world.home, loads=world.loads, base_url="http://127.0.0.1:8000", wake=lambda: None)
    with TestClient(app) as client:
        yield client


@pytest.fixture
def base(world: World) -> Model:
    """The model that the adapters are served on, and a bundle of an endpoint that serves them."""
    with drafting("model", world.home.models) as draft:
        (draft.path / "config.json").write_text("{}")
    assert draft.final is not None
    model = Model.open(draft.final)
    folder = world.home.bundles / ("b" * SHORT)
    folder.mkdir()
    (folder / "bundle.json").write_text(json.dumps({ADAPTER_BASE: model.digest}))
    return model


def publish(world: World, base: Model, tmp_path: Path, name: str) -> str:
    with drafting("adapter", tmp_path / "runs", name=name.replace("/", "-")) as draft:
        (draft.path / "adapter_config.json").write_text(json.dumps({"r": 8, "name": name}))
    assert draft.final is not None
    return str(Registry(world.home).publish(seal(Adapter.open(draft.final), base, world.home), name).path)


def test_a_new_adapter_is_in_the_table_without_a_deployment(
    api: TestClient, world: World, base: Model, tmp_path: Path
) -> None:
    tone = publish(world, base, tmp_path, "acme/tone")
    world.deploy(min_replica=1)
    world.settle(10)
    table = api.get("/internal/routes").json()
    assert table["endpoints"]["app"]["adapters"] == {"acme/tone": tone, "acme/tone:1": tone}
    timer = threading.Timer(0.1, publish, (world, base, tmp_path, "acme/law"))
    timer.start()
    reply = api.get("/internal/routes", params={"since": table["version"], "wait_s": 30}).json()
    timer.join()
    assert reply["version"] > table["version"]
    assert set(reply["endpoints"]["app"]["adapters"]) == {"acme/tone", "acme/tone:1", "acme/law", "acme/law:1"}


def test_what_concerns_no_endpoint_makes_no_new_table(world: World, base: Model, tmp_path: Path) -> None:
    adapters = Adapters(world.home)
    assert adapters.of("c" * 64) == {} and adapters.of("") == {}
    publish(world, base, tmp_path, "acme/tone")
    assert not adapters.have_changed()
    assert "acme/tone" in adapters.of("b" * 64)
    assert not adapters.have_changed()
    Registry(world.home).delete("acme/tone", force=True)
    assert adapters.have_changed() and adapters.of("b" * 64) == {}
