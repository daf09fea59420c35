"""Volumes by their handlers and as folders: filled, listed, used, refused; and nothing that leads out of them."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from control.conftest import World, control_of
from puna.artifacts import Source
from puna.backends import workspace
from puna.cli.commands import access as command
from puna.cli.main import run
from puna.client import Client
from puna.config.settings import Settings
from puna.control.api.app import create_app
from puna.control.resources.volumes import Volumes
from puna.errors import ConflictError, MachineError, NotFoundError, UsageError
from puna.home import Home


@pytest.fixture
def volumes(tmp_path: Path) -> Volumes:
    found = Volumes(Home(tmp_path / "home"))
    found.create("data")
    return found


@pytest.fixture
def api(world: World) -> Iterator[TestClient]:
    with TestClient(create_app(control_of(world.store, world.home))) as client:
        yield client


@pytest.fixture(autouse=True)
def no_links_in_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(workspace, "LINKABLE", (str(tmp_path / "mnt"),))
    monkeypatch.setattr("puna.control.resources.volumes.DEFAULT_ROOT", str(tmp_path / "mnt"))
    monkeypatch.setattr("puna.control.reconcile.launch.DEFAULT_ROOT", str(tmp_path / "mnt"))


def put(volumes: Volumes, path: str, text: str, name: str = "data") -> None:
    with volumes.writing(name, path) as file:
        file.write(text.encode())


def content(volumes: Volumes, path: str) -> bytes:
    with volumes.open("data", path) as file:
        return file.read()


def test_files_go_in_are_listed_and_come_out(volumes: Volumes) -> None:
    put(volumes, "/models/a.bin", "weights")
    put(volumes, "models/deep/b.bin", "more")
    assert [(e.path, e.kind) for e in volumes.entries("data")] == [("models", "folder")]
    every = volumes.entries("data", "models", recursive=True)
    assert [(e.path, e.bytes) for e in every if e.kind == "file"] == [("models/a.bin", 7), ("models/deep/b.bin", 4)]
    assert [e.path for e in volumes.entries("data", "models/a.bin")] == ["models/a.bin"]
    assert content(volumes, "models/a.bin") == b"weights"
    volumes.remove("data", "models/deep")
    assert [e.path for e in volumes.entries("data", "models")] == ["models/a.bin"]


def test_uploads_that_make_the_same_folders_at_once_all_arrive(volumes: Volumes) -> None:
    paths = [f"{number // 8}/a/b/c/{number}" for number in range(320)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: put(volumes, path, "x"), paths))
    assert sorted(e.path for e in volumes.entries("data", recursive=True) if e.kind == "file") == sorted(paths)


def test_what_an_app_removes_while_it_is_listed_is_left_out(volumes: Volumes, monkeypatch: pytest.MonkeyPatch) -> None:
    put(volumes, "stays", "x")
    names = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: [*names(folder), "gone"])
    assert [e.path for e in volumes.entries("data")] == ["stays"]


def test_a_file_is_there_whole_or_not_at_all(volumes: Volumes) -> None:
    put(volumes, "a", "old")

    def fail() -> None:
        with volumes.writing("data", "a") as file:
            file.write(b"half")
            raise OSError("the client has gone")

    with pytest.raises(OSError, match="gone"):
        fail()
    assert content(volumes, "a") == b"old" and len(volumes.entries("data")) == 1


@pytest.mark.parametrize("path", ["../x", "a/../../x", "a/..", "x\0y"])
def test_a_path_that_leads_out_is_refused(volumes: Volumes, path: str) -> None:
    for use in (volumes.entries, volumes.open, volumes.remove):
        with pytest.raises(UsageError, match="leads out of the volume"):
            use("data", path)
    with pytest.raises(UsageError, match="leads out"):
        put(volumes, path, "x")


def test_links_that_an_app_has_left_are_shown_and_never_followed(volumes: Volumes, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    folder = volumes.folder("data")
    (folder / "file").symlink_to(outside / "secret")
    (folder / "folder").symlink_to(outside)
    assert [(e.path, e.kind) for e in volumes.entries("data", recursive=True)] == [("file", "link"), ("folder", "link")]
    with pytest.raises(NotFoundError):
        volumes.open("data", "file")
    for use in (volumes.open, volumes.remove):
        with pytest.raises(ConflictError, match="is no folder"):
            use("data", "folder/secret")
    with pytest.raises(ConflictError):
        put(volumes, "file", "mine")
    with pytest.raises(ConflictError):
        put(volumes, "folder/secret", "mine")
    volumes.remove("data", "folder")
    volumes.delete("data")
    assert (outside / "secret").read_text() == "secret" and volumes.names() == []


def test_a_volume_that_two_delete_at_once_is_deleted_once(volumes: Volumes) -> None:
    for _ in range(20):
        volumes.create("twice")
        for number in range(50):
            put(volumes, f"file-{number}", "x", name="twice")
        together = threading.Barrier(4)

        def delete(_: int, together: threading.Barrier = together) -> bool:
            together.wait()
            try:
                volumes.delete("twice")
            except NotFoundError:
                return False
            return True

        with ThreadPoolExecutor(4) as pool:
            assert sorted(pool.map(delete, range(4))) == [False, False, False, True]


def test_a_pipe_is_no_file(volumes: Volumes) -> None:
    os.mkfifo(volumes.folder("data") / "pipe")
    with pytest.raises(NotFoundError):
        volumes.open("data", "pipe")


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "x" * 64, ".hidden"])
def test_a_name_that_is_none_is_refused(volumes: Volumes, name: str) -> None:
    with pytest.raises(UsageError):
        volumes.create(name)
    with pytest.raises(NotFoundError):
        volumes.folder(name)


def test_a_volume_that_is_not_there_says_how_to_make_it(volumes: Volumes) -> None:
    with pytest.raises(NotFoundError) as caught:
        volumes.folder("other_thing")
    assert caught.value.hint == "`puna volume create other_thing`"


@pytest.mark.parametrize("path", ["relative", "/", "/a/../etc", "/proc/x", "/dev/x"])
def test_a_mount_path_that_makes_no_sense_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="cannot be mounted"):
        Settings(volumes={"data": path})


def test_an_endpoint_names_its_volume_and_it_stays_until_the_endpoint_goes(
    api: TestClient, source: Source, world: World, tmp_path: Path
) -> None:
    body = {"name": "app", "source": source.digest, "settings": {"volumes": {"data": ""}}}
    refused = api.post("/api/v1/endpoints", json=body)
    assert refused.status_code == 404 and refused.json()["error"]["hint"] == "`puna volume create data`"
    made = api.post("/api/v1/volumes", json={"name": "data"})
    assert (made.status_code, made.json()["created"]) == (201, True)
    assert api.post("/api/v1/volumes", json={"name": "data"}).json()["created"] is False
    assert api.post("/api/v1/endpoints", json=body).status_code == 202
    assert os.readlink(tmp_path / "mnt" / "data") == str(world.home.volumes / "data")
    assert api.get("/api/v1/volumes").json()["items"][0]["endpoints"] == ["app"]
    kept = api.delete("/api/v1/volumes/data")
    assert kept.status_code == 409 and "used by app" in kept.json()["error"]["message"]
    api.delete("/api/v1/endpoints/app")
    assert api.delete("/api/v1/volumes/data").json() == {"deleted": "data"}
    assert not (tmp_path / "mnt" / "data").is_symlink() and world.home.volumes.is_dir()


def test_where_nothing_can_be_mounted_a_deploy_ends_with_the_command_to_type(
    api: TestClient, source: Source, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    Volumes(world.home).create("data")
    monkeypatch.setattr(workspace, "_refusal", lambda wanted: "unshare: Operation not permitted")
    body = {"name": "app", "source": source.digest, "settings": {"volumes": {"data": "/srv/data"}}}
    refused = api.post("/api/v1/endpoints", json=body)
    told = refused.json()["error"]
    assert refused.status_code == 507 and "cannot be mounted at /srv/data: unshare" in told["message"]
    assert told["hint"] == f"sudo mkdir -p /srv && sudo ln -s {world.home.volumes / 'data'} /srv/data"
    assert world.store.endpoints() == []


def test_a_link_of_another_home_is_left_alone(tmp_path: Path) -> None:
    mine, theirs, path = tmp_path / "mine", tmp_path / "theirs", tmp_path / "mnt" / "data"
    path.parent.mkdir()
    path.symlink_to(theirs)
    assert workspace.place_volumes({str(path): mine}) == {str(path): str(mine)}
    assert os.readlink(path) == str(theirs)
    workspace.unlink_volume(mine)
    assert path.is_symlink()


def test_the_real_refusal_names_what_only_root_can_make(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root can make every path")
    with pytest.raises(MachineError, match="only root can make"):
        workspace.check_volumes({"/no-such-folder-at-the-root": tmp_path})


class Command:
    """`puna volume ...` against an API in this process."""

    def __init__(self, api: TestClient, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        ask = api.request

        def request(method: str, url: str, **options: Any) -> httpx.Response:
            if hasattr(options.get("content"), "read"):  # the test's client takes bytes only
                options["content"] = options["content"].read()
            return ask(method, url, **options)

        monkeypatch.setattr(api, "request", request)
        monkeypatch.setattr("puna.client.client.Client.__init__", _over(api, home))
        monkeypatch.setattr("puna.client.client.Client.close", lambda self: None)

    def __call__(self, *words: str) -> int:
        return run(["volume", *words])


def _over(http: httpx.Client, home: Home) -> object:
    def init(self: Client) -> None:
        self.home, self.url, self.key, self._http, self._local = home, None, None, http, False

    return init


def test_the_command_copies_in_and_out_and_removes(
    api: TestClient, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    puna = Command(api, world.home, monkeypatch)
    assert puna("create", "my_files") == 0
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "a.txt").write_text("a")
    (tmp_path / "in" / "deep" / "ü b.txt").write_text("b")
    assert puna("cp", "-r", str(tmp_path / "in"), "my_files:/models") == 0
    assert puna("cp", str(tmp_path / "in" / "a.txt"), "my_files:/") == 0
    assert puna("cp", str(tmp_path / "in" / "a.txt"), "my_files:/models") == 0  # a folder: into it
    assert puna("cp", str(tmp_path / "in"), "my_files:/x") == 2
    capsys.readouterr()
    assert puna("ls", "my_files", "--json") == 0
    assert [(e["path"], e["kind"]) for e in json.loads(capsys.readouterr().out)] == [
        ("a.txt", "file"),
        ("models", "folder"),
    ]
    assert puna("cp", "-r", "infer://volumes/region-1/my_files/models", str(tmp_path / "out")) == 0
    assert (tmp_path / "out" / "a.txt").read_text() == "a" and (
        tmp_path / "out" / "deep" / "ü b.txt"
    ).read_text() == "b"
    assert puna("cp", "my_files:/a.txt", str(tmp_path / "single")) == 0 and (tmp_path / "single").read_text() == "a"
    assert puna("rm", "my_files:/models") == 2 and puna("rm", "-r", "my_files:/models") == 0
    assert puna("rm", "my_files:/") == 2 and puna("rm", "my_files:/nothing") == 3
    assert puna("rm", "my_files", "--json") == 0 and Volumes(world.home).names() == []


def test_places_are_read_in_every_spelling() -> None:
    assert [command.parsed(t) for t in ("a", "a:/b/c", "a/b/c", "a:", "infer://volumes/region-1/a/b")] == [
        ("a", ""),
        ("a", "b/c"),
        ("a", "b/c"),
        ("a", ""),
        ("a", "b"),
    ]
    assert [command.is_place(t) for t in ("a:/b", "a:", "./a", "C:b", "dir/a:/b")] == [True, True, False, False, False]


def test_a_key_for_some_endpoints_sees_no_volumes(api: TestClient) -> None:
    made = api.post("/api/v1/keys", json={"scope": ["deploy"], "endpoints": ["app"]}).json()
    headers = {"x-puna-forwarded": "1", "authorization": f"Bearer {made['key']}"}
    assert api.get("/api/v1/volumes", headers=headers).status_code == 403
    every = api.post("/api/v1/keys", json={"scope": ["deploy"]}).json()
    assert api.get("/api/v1/volumes", headers=headers | {"authorization": f"Bearer {every['key']}"}).status_code == 200
