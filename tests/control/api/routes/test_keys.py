"""Keys as the API and the command line show them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from control.conftest import World, control_of
from puna.cli.commands import access
from puna.client import Client
from puna.control.api.app import create_app

NOON = 1_764_072_000  # 2025-11-25 12:00 UTC


@pytest.fixture
def api(world: World) -> Iterator[TestClient]:
    with TestClient(create_app(control_of(world.store, world.home))) as client:
        yield client


def test_a_key_says_when_it_was_last_used_so_that_one_knows_which_to_revoke(
    world: World, api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, unused = (api.post("/api/v1/keys", json={"scope": ["infer"], "name": name}).json() for name in "ab")
    assert used["last_used"] is None
    hours = [(NOON - 7200, "app", 3), (NOON, "other", 1), (NOON + 3600, "app", 0)]  # in the last one: GPU time only
    world.store.add_usage("g", 1, [(hour, name, used["id"], count, 0, 0.1) for hour, name, count in hours], 1.0)
    shown = {key["name"]: key["last_used"] for key in api.get("/api/v1/keys").json()["items"]}
    assert shown == {"a": NOON, "b": None}
    monkeypatch.setattr("puna.cli.commands.access.Client", lambda: Client(http=api))
    printed = CliRunner().invoke(access.key_app, ["list"]).stdout
    assert "2025-11-25 12 h UTC" in printed and "never" in printed and unused["id"] in printed
