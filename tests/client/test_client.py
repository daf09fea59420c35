"""The client against the real API: one call each, errors as Puna's own, and the calls that wait."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from backends.memory import MemoryBackend
from control.conftest import World, control_of, fresh_store, make_source
from control.rows import move_build
from puna import errors
from puna.cli import output
from puna.cli.commands import deploy
from puna.client import Client
from puna.client.transport import error_of
from puna.control.api.app import create_app
from puna.control.domain.states import BuildState, RevisionState
from puna.control.telemetry.log_files import build_log
from puna.home import Home


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


def project(folder: Path) -> Path:
    folder.mkdir()
    (folder / "app.py").write_text(
        "class InferlessPythonModel:\n"
        "    def initialize(self):\n        pass\n"
        "    def infer(self, inputs):\n        return {}\n"
        "    def finalize(self):\n        pass\n"
    )
    (folder / "input_schema.py").write_text(
        'INPUT_SCHEMA = {"prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["a"]}}\n'
    )
    return folder


def test_a_folder_is_packed_uploaded_and_deployed_once(client: Client, world: World, tmp_path: Path) -> None:
    folder = project(tmp_path / "app")
    first = client.deploy(folder, "app", settings={"min_replica": 1})
    assert first["revision"] == 1 and not first["unchanged"]
    assert client.deploy(folder, "app", settings={"min_replica": 1})["unchanged"]
    assert client.endpoint("app")["state"] == "building" and [e["name"] for e in client.endpoints()] == ["app"]
    assert [b["id"] for b in client.builds()] == [first["build_id"]]
    assert client.cancel_build(first["build_id"])["status"] == "cancelled"


def test_every_call_of_the_api_has_its_method(client: Client, world: World) -> None:
    world.deploy(min_replica=1)
    world.settle(10)
    world.deploy(min_replica=1)
    world.settle(20)
    assert client.health()["status"] == "ok"
    assert client.patch("app", max_replica=3)["settings"]["max_replica"] == 3
    assert client.deactivate("app")["state"] == "inactive" and client.activate("app")["active"]
    assert client.rollback("app")["revision"] == 1 and client.rebuild("app")["revision"] == 3
    assert client.events("app")[0]["kind"] == "created" and list(client.logs("app")) == []
    key = client.create_key(["infer"], name="n", endpoints=["app"])
    assert client.keys()[0]["id"] == key["id"] and client.delete_key(key["id"]) and client.keys() == []
    client.set_secret("hub", {"A": "1"})
    assert client.secrets() == [{"name": "hub", "keys": ["A"]}] and client.delete_secret("hub")
    client.upload_runtime("rt", "build: {python_packages: [numpy]}")
    assert client.runtime("rt")["version"] == 1 and len(client.runtimes()) == 1
    assert client.models() == [] and client.runs() == []
    assert client.webhook("app")["url"].endswith("/api/v1/hooks/app") and client.deliveries("app") == []
    with pytest.raises(errors.NotFoundError):
        client.replay_delivery("app", 1)
    with pytest.raises(errors.UsageError, match="cannot be fetched from"):
        client.deploy_git({"url": "ext::sh"})
    assert client.delete("app") == {"deleted": "app"}


def test_errors_arrive_as_the_kind_that_was_raised(client: Client) -> None:
    with pytest.raises(errors.NotFoundError) as missing:
        client.endpoint("nothing")
    assert missing.value.hint == "`puna ps` lists them"
    with pytest.raises(errors.UsageError, match="scope 'root' is unknown"):
        client.create_key(["root"])
    with pytest.raises(errors.NotFoundError):
        list(client.build_log("nothing"))
    with pytest.raises(errors.RuntimeSpecError):
        client.upload_runtime("rt", "build: [1]")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 429, 502, 503, 504, 507])
def test_an_error_of_the_gateway_is_known_by_its_status(status: int) -> None:
    error = error_of(httpx.Response(status, json={"error": "the text"}, headers={"retry-after": "7"}))
    assert error.http_status == status and error.message == "the text"
    assert getattr(error, "retry_after_s", 7) == 7
    assert error_of(httpx.Response(status, text="no json")).message == "no json"


def test_nothing_that_listens_is_said_with_the_command_that_starts_it(tmp_path: Path) -> None:
    for client in (Client(home=Home(tmp_path)), Client("http://127.0.0.1:9", home=Home(tmp_path))):
        with client, pytest.raises(errors.UnavailableError) as caught:
            client.health()
        assert caught.value.hint == "start it with `puna up`"


def test_a_build_is_waited_for_and_its_failure_is_raised(client: Client, world: World) -> None:
    source = make_source(world.home)
    made = client.deploy_source("app", source.digest, None, {})
    build_log(world.home, made["build_id"]).write_text("one\ntwo\n")

    def later() -> None:
        move_build(world.store, made["build_id"], BuildState.RUNNING)
        move_build(world.store, made["build_id"], BuildState.FAILED, error="no such package", hint="fix it", detail="l")

    threading.Timer(0.2, later).start()
    with pytest.raises(errors.BuildError, match="no such package") as caught:
        client.wait_for_build(made["build_id"])
    assert (caught.value.hint, caught.value.detail) == ("fix it", "l")
    assert list(client.build_log(made["build_id"])) == ["one", "two"]


def test_a_rollout_is_waited_for(client: Client, world: World) -> None:
    world.deploy(min_replica=1)
    threading.Timer(0.1, world.settle).start()
    assert client.wait_for_endpoint("app", 1, timeout_s=20)["revision"] == 1
    number = world.deploy(min_replica=1)
    world.store.move_revision("app", number, RevisionState.FAILED, 1.0, error="it fits nowhere", detail="lines")
    with pytest.raises(errors.DeployError, match="it fits nowhere"):
        client.wait_for_endpoint("app", number)
    with pytest.raises(errors.UnavailableError, match="does not serve after 0 s"):
        client.wait_for_endpoint("app", world.deploy(), timeout_s=0)


def test_importing_the_client_loads_no_server() -> None:
    code = (
        "import sys, puna.client; print([m for m in sys.modules if m in ('fastapi', 'sqlalchemy', 'torch', 'numpy')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_settings_are_judged_before_anything_is_uploaded_or_built(client: Client, tmp_path: Path) -> None:
    assert client.check_settings("new", {"max_replica": 2}) == {"name": "new", "is_new": True}
    for settings, said in (
        ({"startup_timeout_s": 9000}, "startup_timeout_s must lie in over 0, to 7200, and is 9000"),
        ({"container_concurrency": 101}, "container_concurrency must lie in 0 to 100"),
        ({"secrets": ["hub"]}, "no secret `hub`"),
        ({"volumes": {"data": ""}}, "data"),
        ({"max_replicas": 2}, "max_replicas"),
    ):
        with pytest.raises(errors.PunaError, match=said):
            client.check_settings("new", settings)
    with pytest.raises(errors.UsageError, match="is not a name"):
        client.check_settings("Not_A_Name", {})
    assert client.endpoints() == []
    folder = project(tmp_path / "app")
    (folder / "inferless-runtime-config.yaml").write_text("build:\n  python_packages: [numpy]\n")
    target = {"name": "new", "runtime": None, "runtime_version": None, "traffic": 100}
    with pytest.raises(errors.NotFoundError, match="no secret `hub`"):
        deploy._deploy_folder(client, folder, target, {"secrets": ["hub"]}, {}, output.ProgressDisplay(quiet=True))
    assert client.endpoints() == [] and client.runtimes() == []
