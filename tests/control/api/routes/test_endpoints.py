"""Shares, promotion and rollback by the API and its client; what differs between two revisions."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import TypeAdapter

from control.conftest import World, control_of
from control.rows import move_build
from puna.client import Client
from puna.control.api.app import create_app
from puna.control.api.routes.endpoints import Endpoint, Traffic
from puna.control.domain.states import BuildState, RevisionState
from puna.control.operations.comparison import RevisionDiff
from puna.control.telemetry.history import split_counts
from puna.control.wire import make
from puna.errors import ConflictError, DeployError, NotFoundError, UsageError
from puna.serve.counts import RequestCounts
from puna.serve.dispatch.call import Call

APP = "class InferlessPythonModel:\n    def infer(self, inputs):\n        return {'out': 'VERSION'}\n"


@pytest.fixture
def client(world: World) -> Iterator[Client]:
    with Client(
        home=world.home, http=TestClient(create_app(control_of(world.store, world.home, world.loads)))
    ) as client:
        yield client


def built(world: World, number: int) -> int:
    """As the builder would have it."""
    move_build(world.store, world.store.revision("app", number).build_id or "", BuildState.RUNNING)
    for state in (RevisionState.BUILDING, RevisionState.BUILT):
        world.store.move_revision("app", number, state, world.now, **({"bundle": "b" * 64} if state == "built" else {}))
    return number


def packed(**files: str | bytes) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, content in files.items():
            content = content.encode() if isinstance(content, str) else content
            entry = tarfile.TarInfo(name.replace("__", "/").replace("_dot_", "."))
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return data.getvalue()


def deploy(client: Client, world: World, text: str, traffic: int = 100, **settings: Any) -> int:
    digest = client.put_source(packed(app_dot_py=APP.replace("VERSION", text)))
    made = client.deploy_source("app", digest, None, {"min_replica": 1, **settings}, traffic=traffic)
    return built(world, made["revision"])


def shares(client: Client) -> dict[int, int]:
    return {one["revision"]: one["percent"] for one in client.endpoint("app")["traffic"]}


def two(client: Client, world: World, percent: int = 10) -> None:
    deploy(client, world, "one")
    world.settle(10)
    deploy(client, world, "two", percent)
    world.settle(10)
    assert shares(client) == {1: 100 - percent, 2: percent}


def test_a_deploy_with_a_share_joins_and_is_promoted(client: Client, world: World) -> None:
    two(client, world)
    shown = client.endpoint("app")
    TypeAdapter(Endpoint).validate_python(shown)
    assert (shown["revision"], shown["state"]) == (1, "ready")
    assert client.wait_for_endpoint("app", 2, 1)["traffic"][1] | {"requests": 0} == {
        "revision": 2,
        "percent": 10,
        "wanted": 10,
        "requests": 0,
        "errors": 0,
        "p50_ms": None,
        "p95_ms": None,
    }
    told = client.promote("app")
    TypeAdapter(Traffic).validate_python(told)
    assert (told["revision"], told["percent"]) == (2, 100)
    assert [one["wanted"] for one in client.endpoint("app")["traffic"]] == [0, 100]
    world.settle(10)
    shown = client.wait_for_traffic("app", 2)
    assert shown["traffic"] == [{"revision": 2, "percent": 100, "wanted": 100}]
    assert client.promote("app", 2)["traffic"] == shown["traffic"]  # once more changes nothing
    world.settle(10)
    assert world.running(revision=1) == []


def test_the_first_deploy_has_all_requests_whatever_share_is_said(client: Client, world: World) -> None:
    deploy(client, world, "one", 10)
    world.settle(10)
    assert shares(client) == {1: 100} and client.endpoint("app")["revisions"][0]["percent"] == 100


@pytest.mark.parametrize(
    ("asked", "expected"),
    [({1: 40, 2: 60}, {1: 40, 2: 60}), ({2: 75}, {1: 25, 2: 75}), ({1: 100, 2: 0}, {1: 100}), ({1: 100}, {1: 100})],
)
def test_shares_are_changed_at_once(
    client: Client, world: World, asked: dict[int, int], expected: dict[int, int]
) -> None:
    two(client, world)
    client.set_traffic("app", asked)
    assert shares(client) == expected


def test_a_revision_that_was_retired_gets_a_share_again_once_it_is_ready(client: Client, world: World) -> None:
    deploy(client, world, "one")
    world.settle(10)
    deploy(client, world, "two")
    world.settle(20)
    told = client.set_traffic("app", {1: 30, 2: 70})
    assert (told["revision"], told["percent"]) == (1, 30) and shares(client) == {2: 100}
    world.settle(10)
    assert client.wait_for_traffic("app", 1, 30)["revision"] == 2
    assert client.set_traffic("app", {2: 0, 1: 100})["percent"] == 100
    world.settle(10)
    assert shares(client) == {1: 100}


NONSENSE: list[tuple[dict[int, int], type[Exception], str]] = [
    ({}, UsageError, "shares are percent"),
    ({1: 50, 2: 40}, UsageError, "1=50, 2=40: the shares of one or two revisions must make up 100 %"),
    ({1: 50, 2: 25, 3: 25}, UsageError, "must make up 100 %"),
    ({1: 90, 9: 10}, NotFoundError, "no revision 9"),
    ({2: 50, 3: 50}, ConflictError, "revision 1 serves, and it must be one of the two"),
    ({1: 50, 2: 150}, UsageError, "less than or equal to 100"),
    ({1: 50, -2: 50}, UsageError, "greater than or equal to 1"),
]


def test_shares_that_make_no_sense_are_refused(client: Client, world: World) -> None:
    two(client, world)
    deploy(client, world, "three", 10)
    for asked, error, what in NONSENSE:
        with pytest.raises(error, match=what):
            client.set_traffic("app", asked)
        assert shares(client) == {1: 90, 2: 10}, asked


def test_nothing_can_be_shared_or_promoted_where_there_is_no_second_one(client: Client, world: World) -> None:
    number = deploy(client, world, "one")
    with pytest.raises(ConflictError, match="nothing serves yet"):
        client.set_traffic("app", {number: 10, deploy(client, world, "two"): 90})
    world.settle(20)
    with pytest.raises(ConflictError, match="no second revision of `app` has a share") as caught:
        client.promote("app")
    assert caught.value.hint == "`puna promote app REVISION`"
    with pytest.raises(NotFoundError, match="no revision 9"):
        client.promote("app", 9)
    with pytest.raises(NotFoundError, match="there is no endpoint `nap`"):
        client.promote("nap")


def test_promoting_one_that_is_on_its_way_to_a_share_rolls_it_out_whole(client: Client, world: World) -> None:
    deploy(client, world, "one")
    world.settle(10)
    deploy(client, world, "two", 10)
    assert client.promote("app")["revision"] == 2
    world.settle(10)
    assert shares(client) == {2: 100}


def test_a_rollback_takes_the_split_away_and_the_next_one_goes_to_what_served_before(
    client: Client, world: World
) -> None:
    two(client, world)
    client.promote("app")
    world.settle(15)
    deploy(client, world, "three", 20)
    world.settle(10)
    assert shares(client) == {2: 80, 3: 20}
    with pytest.raises(ConflictError, match="revision 3 of `app` has 20 %"):
        client.rollback("app", 3)
    assert client.rollback("app")["revision"] == 2 and shares(client) == {2: 100}
    assert client.wait_for_traffic("app", 2)["revision"] == 2
    assert client.rollback("app")["revision"] == 1  # not 3: it never served alone
    world.settle(15)
    assert shares(client) == {1: 100}


def test_a_rollback_cancels_what_is_being_built_for_a_share(client: Client, world: World) -> None:
    deploy(client, world, "one")
    world.settle(10)
    digest = client.put_source(packed(app_dot_py=APP))
    made = client.deploy_source("app", digest, None, {}, traffic=10)
    assert client.rollback("app")["revision"] == 1
    assert world.revision(made["revision"]).state is RevisionState.CANCELLED


def test_limits_act_on_both_and_what_belongs_to_a_revision_is_not_changed_meanwhile(
    client: Client, world: World
) -> None:
    two(client, world, 50)
    client.patch("app", min_replica=4, max_replica=6)
    world.settle(15)
    assert (len(world.ready(revision=1)), len(world.ready(revision=2))) == (2, 2)
    with pytest.raises(ConflictError, match="revisions 1 and 2 of `app` share its requests") as caught:
        client.patch("app", env={"A": "1"})
    assert "puna promote app" in caught.value.hint and client.endpoint("app")["settings"]["env"] == {}


def test_a_change_of_one_that_is_on_its_way_to_a_share_keeps_the_share(client: Client, world: World) -> None:
    deploy(client, world, "one")
    world.settle(10)
    deploy(client, world, "two", 10)
    assert client.patch("app", env={"A": "1"})["changed_revision"] == 3
    world.settle(10)
    assert shares(client) == {1: 90, 3: 10}


def test_the_same_deploy_with_another_share_is_another_revision_until_it_serves(client: Client, world: World) -> None:
    deploy(client, world, "one")
    world.settle(10)
    digest = client.put_source(packed(app_dot_py=APP))
    first = client.deploy_source("app", digest, None, {}, traffic=10)
    assert client.deploy_source("app", digest, None, {}, traffic=10)["unchanged"]
    again = client.deploy_source("app", digest, None, {})
    assert not again["unchanged"] and again["revision"] == first["revision"] + 1


def test_who_waits_for_a_share_that_will_not_come_hears_why(client: Client, world: World) -> None:
    two(client, world)
    for _ in range(100):
        world.step()
        for replica_id in world.running(revision=2):
            world.backend.kill(replica_id, "CUDA error", 1, "line 1\nCUDA error")
    with pytest.raises(DeployError, match="its replicas keep dying: CUDA error") as caught:
        client.wait_for_traffic("app", 2, 10)
    assert "CUDA error" in caught.value.detail
    with pytest.raises(DeployError, match="revision 9 of `app` is cancelled with 0 %"):
        client.wait_for_traffic("app", 9)


# ---- what differs --------------------------------------------------------------------------------------------------


def environment(world: World, digest: str, **packages: str) -> None:
    """An environment with these packages, as uv leaves it."""
    site = world.home.environments / digest[:16] / "venv" / "lib" / "python3.11" / "site-packages"
    site.mkdir(parents=True)
    for name, version in packages.items():
        (site / f"{name}-{version}.dist-info").mkdir()
        (site / f"{name}-{version}.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    folder = world.home.environments / digest[:16]
    (folder / "environment.json").write_text(f'{{"digest": "{digest}"}}')
    (folder / "packages.txt").write_text("")


def test_what_differs_is_told_by_setting_package_and_line(client: Client, world: World) -> None:
    first = packed(app_dot_py=APP, gone_dot_txt="x", weights_dot_bin=b"\0\1", same_dot_txt="same")
    second = packed(
        app_dot_py=APP.replace("VERSION", "two"),
        sub__new_dot_txt="hello\n",
        weights_dot_bin=b"\0\2",
        same_dot_txt="same",
    )
    environment(world, "1" * 64, numpy="1.0", left="2")
    environment(world, "2" * 64, numpy="2.0", right="3")
    for data, digest, env in ((first, "1", {"A": "1", "API_KEY": "x"}), (second, "2", {"B": "2", "API_KEY": "y"})):
        number = client.deploy_source("app", client.put_source(data), None, {"env": env, "max_replica": 2})["revision"]
        world.store.move_revision("app", number, RevisionState.BUILDING, world.now)
        world.store.move_revision("app", number, RevisionState.BUILT, world.now, environment=digest * 64)
    found = client.diff("app", 1, 2)
    TypeAdapter(RevisionDiff).validate_python(found)
    assert {one["name"]: (one["before"], one["after"]) for one in found["settings"]} == {
        "env.A": ("1", None),
        "env.B": (None, "2"),
        "env.API_KEY": ("***", "***"),
    }
    assert found["packages"] == {
        "added": [{"name": "right", "version": "3"}],
        "removed": [{"name": "left", "version": "2"}],
        "changed": [{"name": "numpy", "before": "1.0", "after": "2.0"}],
    }
    files = {one["path"]: one for one in found["files"]}
    assert {path: one["change"] for path, one in files.items()} == {
        "app.py": "changed",
        "gone.txt": "removed",
        "sub/new.txt": "added",
        "weights.bin": "changed",
    }
    assert "-        return {'out': 'VERSION'}\n+        return {'out': 'two'}" in files["app.py"]["lines"]
    assert files["app.py"]["lines"].startswith("--- a/app.py\n+++ b/app.py\n")
    assert files["sub/new.txt"]["lines"].endswith("+hello")
    assert files["weights.bin"]["lines"] is None and "no text" in files["weights.bin"]["why"]
    assert client.diff("app", 2, 2)["files"] == [] and client.diff("app", 2, 2)["settings"] == []
    with pytest.raises(NotFoundError, match="no revision 7"):
        client.diff("app", 1, 7)


def test_large_differences_are_cut_and_what_is_gone_is_said(client: Client, world: World) -> None:
    many = {f"f{number:03}_dot_txt": "x" * 60_000 for number in range(10)}
    client.deploy_source("app", client.put_source(packed(app_dot_py=APP)), None, {})
    large = packed(app_dot_py=APP, **many, huge_dot_txt="y" * 70_000, **{f"e{n}": "" for n in range(600)})
    client.deploy_source("app", client.put_source(large), None, {})
    found = client.diff("app", 1, 2)
    assert found["packages"] is None and found["is_cut"] and len(found["files"]) == 500
    shown = sum(len(one["lines"] or "") for one in found["files"])
    assert shown <= 256 * 1024
    subprocess.run(["rm", "-rf", str(world.home.sources)], check=True)
    assert client.diff("app", 1, 2)["files"] is None


def test_what_two_revisions_answered_is_read_from_what_the_gateways_count() -> None:
    memories = make(2)
    assert split_counts(memories, "app", 3) == {"requests": 0, "errors": 0, "p50_ms": None, "p95_ms": None}
    for index in range(2):
        metrics = RequestCounts(memories, index)
        for split, status, count in ((0, 200, 3), (3, 200, 6), (4, 200, 3), (4, 503, 1)):
            for _ in range(count):
                metrics.answered("app", status, Call("app", "infer", b"", "t", split=split), 0.0)
        metrics.flush()
    told = split_counts(memories, "app", 4)
    assert (told["requests"], told["errors"]) == (8, 2) and told["p95_ms"] is not None
    assert (split_counts(memories, "app", 3)["requests"], split_counts(memories, "nap", 3)["requests"]) == (12, 0)


def test_names_of_before_are_answered_too_and_the_document_calls_them_deprecated(client: Client, world: World) -> None:
    deploy(client, world, "one", min_replica=1)
    world.settle(10)
    shown = client.endpoint("app")
    assert (shown["desired_replicas"], shown["scaling_reason"]) == (shown["wish"], shown["wish_reason"])
    fields = TypeAdapter(Endpoint).json_schema(mode="serialization")["properties"]
    assert {name for name, field in fields.items() if field.get("deprecated")} == {"wish", "wish_reason"}
