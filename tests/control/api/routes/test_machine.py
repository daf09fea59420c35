"""The API's page of this machine: tiles, holders, and whether a model fits."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping

import pytest
from fastapi.testclient import TestClient

from control.conftest import GIB, World, control_of, gpu_world, make_source
from puna import demo
from puna.artifacts import Model, drafting
from puna.backends.base import GpuDevice
from puna.control.api.app import create_app
from puna.home import Home
from puna.publish.registry import Registry


class Devices:
    """Two GPUs, the first of them in use."""

    def gpus(self) -> tuple[GpuDevice, ...]:
        return GpuDevice(0, "NVIDIA H100", 80 * GIB), GpuDevice(1, "NVIDIA T4", 16 * GIB)

    def free_bytes(self) -> Mapping[int, int]:
        return {0: 50 * GIB, 1: 15 * GIB}

    def used_bytes(self) -> Mapping[int, Mapping[int, int]]:
        return {}


@pytest.fixture
def use() -> dict[str, int]:
    """Replica -> what it uses."""
    return {}


@pytest.fixture
def api(world: World, use: dict[str, int]) -> TestClient:
    gpu_world(world, 2)
    control = control_of(world.store, world.home, world.loads, devices=Devices())
    control = dataclasses.replace(control, gpu_use=lambda: use)
    return TestClient(create_app(control))


def publish(home: Home) -> None:
    with drafting("model", home.models) as draft:
        shutil.copytree(demo.BASE, draft.path, dirs_exist_ok=True)
    Registry(home).publish(Model.open(draft.final), "acme/tiny", force=True)


def test_a_tile_says_who_holds_what(world: World, api: TestClient, use: dict[str, int]) -> None:
    world.deploy(is_dedicated=False, min_replica=1)
    world.settle()
    (replica,) = world.ready()
    shown = api.get("/api/v1/machine").json()
    first, second = shown["gpus"]
    holder = {"endpoint": "app", "replica": replica, "share": 0.5, "used_bytes": None, "limit_bytes": 40 * GIB}
    assert first == {
        "index": 0, "name": "NVIDIA H100", "memory_bytes": 80 * GIB, "free_bytes": 50 * GIB, "held": 0.5,
        "holders": [holder], "fit": None,
    }  # fmt: skip
    use[replica] = 30 * GIB
    assert api.get("/api/v1/machine").json()["gpus"][0]["holders"] == [holder | {"used_bytes": 30 * GIB}]
    assert (second["held"], second["holders"]) == (0, []) and shown["cpus"] >= 1
    assert (shown["model"], shown["fit"]) == (None, None)


def test_whether_so_many_bytes_fit_whole_and_half(world: World, api: TestClient) -> None:
    world.deploy(is_dedicated=False, min_replica=1)
    world.settle()
    shown = api.get("/api/v1/machine", params={"weights_bytes": 14 * GIB}).json()
    big, small = (gpu["fit"] for gpu in shown["gpus"])
    verdicts = {name: (found["verdict"], found["free_now"]) for name, found in big.items()}
    assert verdicts == {"whole": ("fits", False), "half": ("fits", True)}  # the other half is held
    assert (
        small["whole"]["verdict"] == "does not fit" and small["half"]["left_bytes"] < small["whole"]["left_bytes"] < 0
    )
    assert small["whole"]["said"].startswith("does not fit, by 0.8 GiB: 14.0 GiB weights")
    assert shown["model"]["total_bytes"] == 14 * GIB + GIB + 14 * GIB // 8


def test_a_published_model_and_a_source_that_names_it(world: World, api: TestClient) -> None:
    publish(world.home)
    by_name = api.get("/api/v1/machine", params={"model": "acme/tiny", "requests": 2, "context": 16}).json()
    assert by_name["gpus"][0]["fit"]["half"]["verdict"] == by_name["fit"]["verdict"] == "fits"
    assert by_name["model"]["kv_cache_bytes"] == by_name["model"]["kv_bytes_per_token"] * 2 * 16 > 0
    source = make_source(world.home, "NAME = 'acme/tiny'\nclass InferlessPythonModel: ...\n")
    by_source = api.get("/api/v1/machine", params={"source": source.digest, "requests": 2, "context": 16}).json()
    assert by_source["gpus"] == by_name["gpus"] and by_source["model"]["name"] == "acme/tiny"
    nothing = make_source(world.home)
    assert api.get("/api/v1/machine", params={"source": nothing.digest}).json()["model"] is None


@pytest.mark.parametrize(
    ("asked", "status", "word"),
    [
        ({"model": "acme/none"}, 404, "no model acme/none is published"),
        ({"source": "0" * 64}, 404, "there is no source"),
        ({"model": "a/b", "weights_bytes": 1}, 400, "name one"),
        ({"requests": 0}, 400, "requests"),
        ({"weights_bytes": -1}, 400, "weights_bytes"),
    ],
)
def test_what_makes_no_sense(api: TestClient, asked: dict[str, object], status: int, word: str) -> None:
    reply = api.get("/api/v1/machine", params=asked)  # type: ignore[arg-type]
    assert reply.status_code == status and word in reply.text
