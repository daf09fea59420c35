"""Versions of runtimes: what they hold, what differs, who uses them, what an endpoint is moved to, and their end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from control.conftest import World, control_of
from control.rows import move_build
from puna.artifacts import Source, write_json
from puna.control.api.app import create_app
from puna.control.domain.states import BuildState, RevisionState
from puna.packaging.environment import MARKER

ONE = "build:\n  python_packages: [six==1.16.0, old==1.0]\n"
TWO = "build:\n  python_packages: [six==1.17.0, new==2.0]\n"


@pytest.fixture
def api(world: World) -> Iterator[TestClient]:
    with TestClient(create_app(control_of(world.store, world.home))) as client:
        yield client


def upload(api: TestClient, world: World, yaml: str, **packages: str) -> dict[str, Any]:
    """A version, with an environment that holds these packages as an installer would have left them."""
    made = dict(api.post("/api/v1/runtimes", json={"name": "rt", "yaml": yaml}).json())
    path = world.home.environments / made["digest"][:16]
    site = path / "venv" / "lib" / "python3.12" / "site-packages"
    site.mkdir(parents=True)
    for name, version in packages.items():
        (site / f"{name}-{version}.dist-info").mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (site / f"{name}-{version}.dist-info" / "METADATA").write_text(text)
    (site / "half-1.dist-info").mkdir()
    (site / "six.py").write_bytes(b"x" * 100_000)
    (path / "venv" / "pyvenv.cfg").write_text("home = /usr/bin\nversion_info = 3.12.4\n")
    (path / "packages.txt").write_text("")
    write_json(path / MARKER, {"digest": made["digest"]})
    end(world, made["build_id"], BuildState.SUCCEEDED)
    return made


def end(world: World, build_id: str, state: BuildState, **why: str) -> None:
    move_build(world.store, build_id, BuildState.RUNNING)
    move_build(world.store, build_id, state, **why)


def deploy(api: TestClient, source: Source, name: str = "app", **body: Any) -> int:
    reply = api.post("/api/v1/endpoints", json={"name": name, "source": source.digest, "runtime": "rt", **body})
    assert reply.status_code == 202, reply.text
    return int(reply.json()["revision"])


def built(world: World, name: str, number: int) -> None:
    world.store.move_revision(name, number, RevisionState.BUILDING, world.now)
    world.store.move_revision(name, number, RevisionState.BUILT, world.now, bundle="b" * 64, environment="e" * 64)
    world.settle(20)


def test_a_version_shows_what_is_installed_and_who_uses_it(api: TestClient, world: World, source: Source) -> None:
    upload(api, world, ONE, Six_x="1.16.0", old="1.0")
    deploy(api, source)
    upload(api, world, TWO, six="1.17.0")
    newest = api.get("/api/v1/runtimes/rt").json()
    assert newest["version"] == 2 and newest["packages"] == [{"name": "six", "version": "1.17.0"}]
    shown = api.get("/api/v1/runtimes/rt?version=1").json()
    assert shown["packages"] == [{"name": "old", "version": "1.0"}, {"name": "Six_x", "version": "1.16.0"}]
    assert shown["python_version"] == "3.12.4" and 100_000 < shown["size_bytes"] < 200_000
    assert shown["log"] == f"/api/v1/builds/{shown['build_id']}/log" and api.get(shown["log"]).status_code == 200
    assert [v["version"] for v in shown["versions"]] == [2, 1] and shown["yaml"] == ONE
    using = {"endpoint": "app", "revision": 1, "version": 1, "state": "queued", "is_serving": False}
    assert shown["endpoints"] == [using] == newest["endpoints"]


def test_one_that_is_not_built_or_failed_says_so(api: TestClient, world: World) -> None:
    made = api.post("/api/v1/runtimes", json={"name": "rt", "yaml": ONE}).json()
    shown = api.get("/api/v1/runtimes/rt").json()
    assert (shown["status"], shown["packages"], shown["size_bytes"]) == ("queued", None, None)
    end(world, made["build_id"], BuildState.FAILED, error="no such package", hint="correct it")
    shown = api.get("/api/v1/runtimes/rt").json()
    assert (shown["status"], shown["error"], shown["hint"]) == ("failed", "no such package", "correct it")
    assert api.get("/api/v1/runtimes/rt/versions/1/diff/1").json()["packages"] is None


def test_two_versions_are_compared_by_file_and_by_what_is_installed(api: TestClient, world: World) -> None:
    upload(api, world, ONE, six="1.16.0", old="1.0", same="1")
    upload(api, world, TWO, Six="1.17.0", new="2.0", same="1")
    found = api.get("/api/v1/runtimes/rt/versions/1/diff/2").json()
    assert "-  python_packages: [six==1.16.0, old==1.0]" in found["yaml"].splitlines()
    assert "+  python_packages: [six==1.17.0, new==2.0]" in found["yaml"].splitlines()
    assert found["packages"] == {
        "added": [{"name": "new", "version": "2.0"}],
        "removed": [{"name": "old", "version": "1.0"}],
        "changed": [{"name": "Six", "before": "1.16.0", "after": "1.17.0"}],
    }
    assert api.get("/api/v1/runtimes/rt/versions/2/diff/2").json()["yaml"] == ""
    for path in ("rt/versions/1/diff/9", "no/versions/1/diff/2"):
        assert api.get(f"/api/v1/runtimes/{path}").status_code == 404
    for number in ("0", "x", "99999999999999999999"):
        assert api.get(f"/api/v1/runtimes/rt/versions/1/diff/{number}").status_code == 400


def test_an_endpoint_stays_on_its_version_until_it_is_told(api: TestClient, world: World, source: Source) -> None:
    upload(api, world, ONE)
    built(world, "app", deploy(api, source))
    upload(api, world, TWO)
    assert api.get("/api/v1/endpoints/app").json()["revisions"][0]["runtime_version"] == 1
    kept = api.post("/api/v1/endpoints/app/rebuild").json()["revision"]
    assert world.revision(kept).runtime_version == 1
    patched = api.patch("/api/v1/endpoints/app", json={"runtime": "rt", "env": {"A": "1"}}).json()
    number = patched["changed_revision"]
    revision = world.revision(number)
    assert (revision.runtime, revision.runtime_version, revision.state) == ("rt", 2, RevisionState.QUEUED)
    assert revision.settings.env == {"A": "1"} and revision.source == source.digest and revision.build_id
    assert api.patch("/api/v1/endpoints/app", json={"runtime": "rt"}).json()["changed_revision"] is None
    back = api.patch("/api/v1/endpoints/app", json={"runtime_version": 1}).json()["changed_revision"]
    assert world.revision(back).runtime_version == 1
    own = api.patch("/api/v1/endpoints/app", json={"runtime": ""}).json()["changed_revision"]
    assert world.revision(own).runtime is None
    assert world.endpoint().serving == 1  # until one of them is built


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        ({"runtime": "none"}, 404, "no runtime `none`"),
        ({"runtime": "rt", "runtime_version": 9}, 404, "no runtime version 9"),
        ({"runtime": "rt", "runtime_version": 2}, 409, "its build failed"),
        ({"runtime": 3}, 400, "is a name"),
        ({"runtime_version": "1"}, 400, "a number"),
        ({"runtime_version": True}, 400, "a number"),
        ({"runtime": "", "runtime_version": 1}, 400, "no runtime"),
    ],
)
def test_a_runtime_that_cannot_be_is_refused_and_nothing_is_changed(
    api: TestClient, world: World, source: Source, body: dict[str, Any], status: int, part: str
) -> None:
    upload(api, world, ONE)
    deploy(api, source)
    failed = api.post("/api/v1/runtimes", json={"name": "rt", "yaml": TWO}).json()
    end(world, failed["build_id"], BuildState.FAILED)
    reply = api.patch("/api/v1/endpoints/app", json=body | {"max_replica": 7})
    assert reply.status_code == status and part in reply.json()["error"]["message"], reply.text
    assert world.endpoint().settings.max_replica == 1 and len(world.store.revisions("app")) == 1


def test_what_is_used_stays_and_what_is_not_goes_and_its_number_never_comes_again(
    api: TestClient, world: World, source: Source
) -> None:
    upload(api, world, ONE)
    built(world, "app", deploy(api, source))
    refused = api.delete("/api/v1/runtimes/rt/versions/1")
    assert refused.status_code == 409 and "revision 1 of `app`" in refused.json()["error"]["message"]
    upload(api, world, TWO)
    assert api.delete("/api/v1/runtimes/rt").status_code == 409
    assert api.delete("/api/v1/runtimes/rt/versions/2").json() == {"name": "rt", "deleted": [2]}
    assert [r.version for r in world.store.runtimes("rt")] == [1]
    assert api.post("/api/v1/runtimes", json={"name": "rt", "yaml": "build: {run: [a]}"}).json()["version"] == 3
    building = api.delete("/api/v1/runtimes/rt/versions/3")
    assert building.status_code == 409 and "is being built" in building.json()["error"]["message"]
    end(world, world.store.runtime("rt", 3).build_id, BuildState.SUCCEEDED)
    number = api.patch("/api/v1/endpoints/app", json={"runtime": "rt"}).json()["changed_revision"]
    built(world, "app", number)
    assert world.endpoint().serving == number
    assert api.delete("/api/v1/runtimes/rt/versions/1").status_code == 200  # only a retired revision was built on it
    assert api.delete("/api/v1/runtimes/rt/versions/1").status_code == 404
    api.delete("/api/v1/endpoints/app")
    assert api.delete("/api/v1/runtimes/rt").json() == {"name": "rt", "deleted": [3]}
    assert api.post("/api/v1/runtimes", json={"name": "rt", "yaml": ONE}).json()["version"] == 4
