"""Adapters in the route table: those of the endpoint's base, and a new one as soon as it is published."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from control.conftest import World, control_of
from puna import demo
from puna.artifacts import ADAPTER_BASE, SHORT, Adapter, Model, drafting
from puna.control.api.app import create_app
from puna.control.resources import models
from puna.control.resources.models import GIB, Adapters, ModelSize
from puna.publish.registry import Registry, seal


@pytest.fixture
def api(world: World) -> Iterator[TestClient]:
    app = create_app(control_of(world.store, world.home, world.loads))
    with TestClient(app) as client:
        yield client


@pytest.fixture
def base(world: World) -> Model:
    """The model that the adapters are served on, and a bundle of an endpoint that serves them."""
    with drafting("model", world.home.models) as draft:
        (draft.path / "config.json").write_text("{}")
    model = Model.open(draft.final)
    folder = world.home.bundles / ("b" * SHORT)
    folder.mkdir()
    (folder / "bundle.json").write_text(json.dumps({ADAPTER_BASE: model.digest}))
    return model


def publish(world: World, base: Model, tmp_path: Path, name: str) -> str:
    with drafting("adapter", tmp_path / "runs", name=name.replace("/", "-")) as draft:
        (draft.path / "adapter_config.json").write_text(json.dumps({"r": 8, "name": name}))
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


LLAMA3 = {
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096,
    "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
}  # fmt: skip
WEIGHTS = 16_060_522_496  # Llama-3-8B in bfloat16


def folder(path: Path, config: object, size: int = 1000) -> Path:
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with (path / "model.safetensors").open("wb") as file:
        file.truncate(size)  # a file of holes: nothing is written
    return path


def test_llama_3_has_128_kib_of_cache_a_token(tmp_path: Path) -> None:
    model = models.read_size("llama", folder(tmp_path, LLAMA3, WEIGHTS))
    assert (model.weights_bytes, model.kv_bytes_per_token, model.context) == (WEIGHTS, 128 * 1024, 8192)
    need = model.need(requests=4, context=0)
    assert (need.kv_cache_bytes, need.context) == (4 * GIB, 8192)
    assert need.total_bytes == WEIGHTS + 4 * GIB + GIB + WEIGHTS // 8


@pytest.mark.parametrize(
    ("room_gib", "requests", "said"),
    [
        (
            79.2,
            4,
            "fits: 15.0 GiB weights + 4.0 GiB KV cache (4 × 8192 tokens) + 2.9 GiB overhead = 21.8 GiB of 79.2 GiB",
        ),
        (
            24.0,
            4,
            "tight: 15.0 GiB weights + 4.0 GiB KV cache (4 × 8192 tokens) + 2.9 GiB overhead = 21.8 GiB of 24.0 GiB",
        ),
        (8.0, 1, "does not fit, by 10.8 GiB: 15.0 GiB weights + 1.0 GiB KV cache (1 × 8192 tokens) + 2.9 GiB overhead"),
    ],
)
def test_the_verdict_shows_its_sum(tmp_path: Path, room_gib: float, requests: int, said: str) -> None:
    need = models.read_size("llama", folder(tmp_path, LLAMA3, WEIGHTS)).need(requests, 0)
    found = models.fit(need, int(room_gib * GIB), is_free=True)
    assert found["said"].startswith(said) and found["said"].startswith(found["verdict"])
    assert found["left_bytes"] == int(room_gib * GIB) - need.total_bytes


def test_no_request_is_longer_than_the_model_can_take() -> None:
    model = ModelSize("m", GIB, 1000, context=4096)
    assert model.need(1, 100_000).context == model.need(1, 0).context == 4096
    assert model.need(2, 100).kv_cache_bytes == 200_000
    assert ModelSize("m", GIB, 1000, context=131_072).need(1, 0).context == models.CONTEXT


@pytest.mark.parametrize("config", ["{", "{}", {"num_hidden_layers": "many"}, {**LLAMA3, "num_attention_heads": 0}])
def test_a_config_that_does_not_say_leaves_the_cache_open(tmp_path: Path, config: object) -> None:
    model = models.read_size("odd", folder(tmp_path, config))
    assert model == ModelSize("odd", 1000)
    assert "a KV cache of unknown size" in model.need(4, 0).describe()


def test_a_model_that_also_sees_keeps_its_numbers_in_text_config(tmp_path: Path) -> None:
    model = models.read_size(
        "seeing", folder(tmp_path, {"text_config": {**LLAMA3, "head_dim": 64, "dtype": "float32"}})
    )
    assert model.kv_bytes_per_token == 2 * 32 * 8 * 64 * 4


def test_the_demos_llama_is_read() -> None:
    model = models.read_size("demo", demo.BASE)
    assert model.weights_bytes > 0 and model.kv_bytes_per_token > 0 and model.context > 0


def test_what_one_app_loads_adds_up() -> None:
    found = models.together("both", [ModelSize("a", 10, 3, 4096), ModelSize("b", 5, 2, 2048), ModelSize("c", 1)])
    assert found == ModelSize("both", 16, 5, 2048)
