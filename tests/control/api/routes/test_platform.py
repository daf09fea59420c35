"""The Inferless platform's two management calls: bodies and replies as its documentation writes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from control.conftest import World, control_of
from puna.control.api.app import create_app
from puna.control.api.routes import platform
from puna.control.telemetry.log_files import iso, replica_log

FORWARDED = {"x-puna-forwarded": "1"}
UPDATE, GET = "/rest/model/settings/update/", "/rest/model/logs/get/"
NOON = 1_764_072_000.0  # 2025-11-25 12:00 UTC
DAY = {"time_from": "2025-11-25T00:00:00.000Z", "time_to": "2025-11-25T23:59:59.000Z"}


@pytest.fixture
def api(world: World) -> Iterator[TestClient]:
    with TestClient(create_app(control_of(world.store, world.home)), raise_server_exceptions=False) as client:
        yield client


def key(api: TestClient, scope: str = "deploy", endpoints: list[str] | None = None) -> dict[str, str]:
    """As the platform's callers send it: without `Bearer`."""
    made = api.post("/api/v1/keys", json={"scope": [scope], "endpoints": endpoints}).json()
    return FORWARDED | {"authorization": str(made["key"])}


def update(api: TestClient, headers: dict[str, str], name: str = "app", **data: Any) -> tuple[int, Any]:
    reply = api.post(UPDATE, headers=headers, json={"model_id": name, "data": data})
    return reply.status_code, reply.json()


def test_settings_are_changed_and_answered_as_the_documentation_has_it(world: World, api: TestClient) -> None:
    world.deploy()
    documented = {
        "min_replica": 0,
        "max_replica": 2,
        "scale_down_delay": 30,
        "inference_time": 120,
        "is_dedicated": False,
        "machine_type": "T4",
        "container_concurrency": 10,
        "is_input_output_enabled": False,
    }
    told = update(api, key(api), **documented)
    assert told == (200, {"status": "success", "details": "Model updated successfully"})
    settings = world.endpoint().settings
    assert (settings.min_replica, settings.max_replica, settings.scale_down_delay_s) == (0, 2, 30)
    assert (settings.inference_time_s, settings.is_dedicated, settings.gpu_type) == (120, False, "T4")
    assert settings.container_concurrency == 10
    assert world.store.revisions("app")[0].number == 2  # what a running replica cannot change is rolled out


def test_no_replicas_at_most_is_a_deactivated_model_and_one_is_an_active_one(world: World, api: TestClient) -> None:
    world.deploy(max_replica=3)
    mine = key(api)
    assert update(api, mine, min_replica=0, max_replica=0)[0] == 200 and not world.endpoint().active
    assert update(api, mine, scale_down_delay=9)[0] == 200 and not world.endpoint().active
    assert update(api, mine, min_replica=0, max_replica=1)[0] == 200 and world.endpoint().active
    assert world.endpoint().settings.max_replica == 1


def test_what_makes_no_sense_changes_nothing_and_is_told_in_its_shape(world: World, api: TestClient) -> None:
    world.deploy()
    before, mine = world.endpoint(), key(api)
    for data in (
        {"min_replica": 3, "max_replica": 1},
        {"min_replica": 1, "max_replica": 0},
        {"inference_time": 0},
        {"min_replica": "many"},
        {"colour": "red"},
        {"is_input_output_enabled": True, "max_replica": 2},
    ):
        status, body = update(api, mine, **data)
        assert status == 400 and body["status"] == "error" and isinstance(body["details"], str), data
        assert set(body) == {"status", "details"}
    assert update(api, mine, "nothing", max_replica=1)[0] == 404
    assert api.post(UPDATE, headers=mine, content=b"{").json()["status"] == "error"
    assert world.endpoint() == before


@pytest.mark.parametrize("path", [UPDATE, GET, UPDATE.rstrip("/"), GET.rstrip("/"), "/rest/other"])
def test_only_a_key_that_may_deploy_this_endpoint_gets_through(world: World, api: TestClient, path: str) -> None:
    world.deploy("app")
    world.deploy("yours")
    body = {"model_id": "app", "data": {"max_replica": 7}} | DAY
    tries = [(401, FORWARDED), (401, FORWARDED | {"authorization": "puna_00000000_" + "A" * 43})]
    tries += [(403, key(api, "infer")), (401, FORWARDED | {"authorization": "Basic YWRtaW46YWRtaW4="})]
    if path != "/rest/other":
        tries.append((403, key(api, "deploy", ["yours"])))
    for expected, headers in tries:
        reply = api.post(path, headers=headers, json=body)
        assert reply.status_code == expected, (path, headers)
        assert reply.json()["status"] == "error" and reply.json()["details"]
    foreign = key(api) | {"origin": "http://evil.example"}
    assert api.post(path, headers=foreign, json=body).status_code == 403
    assert world.endpoint("app").settings.max_replica == 1
    mine = key(api, "deploy", ["app"])
    bearer = mine | {"authorization": f"Bearer {mine['authorization']}"}
    if path != "/rest/other":
        assert [api.post(path, headers=headers, json=body).status_code for headers in (mine, bearer)] == [200, 200]


def write(world: World, count: int, replica: str = "app-1") -> None:
    lines = [f"{iso(NOON + n)} {'stderr' if n % 10 == 0 else 'stdout'} F [r{n}] line {n}\n" for n in range(count)]
    replica_log(world.home, "app", replica).write_text("".join(lines))


def test_logs_come_as_the_documentation_has_them(world: World, api: TestClient) -> None:
    world.deploy()
    write(world, 3)
    body = {"model_id": "app", "is_less_logs": False} | DAY
    reply = api.post(GET, headers=key(api), json=body)
    assert reply.status_code == 200
    assert reply.json() == {
        "status": "success",
        "details": [
            {"time": "2025-11-25T12:00:02.000000Z", "log": "[r2] line 2", "stream": "stdout"},
            {"time": "2025-11-25T12:00:01.000000Z", "log": "[r1] line 1", "stream": "stdout"},
            {"time": "2025-11-25T12:00:00.000000Z", "log": "[r0] line 0", "stream": "stderr"},
        ],
        "next_token": "",
    }
    narrow = {"time_from": "2025-11-25T12:00:01Z", "time_to": "2025-11-25T12:00:02Z"}
    assert [d["log"] for d in api.post(GET, headers=key(api), json=body | narrow).json()["details"]] == ["[r1] line 1"]


@pytest.mark.parametrize("is_less", [False, True])
def test_pages_of_logs_are_asked_for_with_their_tokens(world: World, api: TestClient, is_less: bool) -> None:
    world.deploy()
    write(world, 2500)
    body: dict[str, Any] = {"model_id": "app", "is_less_logs": is_less} | DAY
    mine, seen, sizes = key(api), [], []
    while True:
        page = api.post(GET, headers=mine, json=body).json()
        seen += [detail["log"] for detail in page["details"]]
        sizes.append(len(page["details"]))
        if not page["next_token"]:
            break
        body["next_token"] = page["next_token"]
    size = platform.FEW if is_less else platform.MANY
    assert sizes == [size] * (2500 // size) + ([2500 % size] if 2500 % size else [])
    assert seen == [f"[r{n}] line {n}" for n in reversed(range(2500))]


@pytest.mark.parametrize(
    "wrong", [{"time_from": "yesterday"}, {"next_token": "1716196866721"}, {"model_id": "nothing"}, {"time_to": None}]
)
def test_logs_that_cannot_be_had_are_refused_in_its_shape(world: World, api: TestClient, wrong: dict[str, Any]) -> None:
    world.deploy()
    reply = api.post(GET, headers=key(api), json={"model_id": "app"} | DAY | wrong)
    assert reply.status_code in (400, 404)
    assert set(reply.json()) == {"status", "details"} and reply.json()["status"] == "error"
