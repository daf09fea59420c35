"""A repository in a running Puna: deployed, pushed to under load, broken, and mended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from git_server import GitServer, serving
from puna.packaging.git import ALLOWED_HOSTS
from stories.conftest import SCHEMA, Callers, Up, standing
from webhook import push, signed

pytestmark = pytest.mark.process

APP = """
class InferlessPythonModel:
    def infer(self, inputs):
        return {"out": "%s:" + inputs["prompt"]}
"""
RUNTIME = "build:\n  python_packages: []\n"
PROJECT = "name: chat\nconfiguration:\n  gpu_type: cpu\n  min_replica: 1\n"
FILES = {
    "app.py": APP % "v1",
    "input_schema.py": SCHEMA,
    "inferless-runtime-config.yaml": RUNTIME,
    "inferless.yaml": PROJECT,
}


@pytest.fixture
def up(monkeypatch: pytest.MonkeyPatch) -> Iterator[Up]:
    monkeypatch.setenv(ALLOWED_HOSTS, "127.0.0.1")
    with standing() as up:
        yield up


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    with serving(tmp_path, token="t0ken") as server:
        server.repository("chat", FILES)
        yield server


def told(up: Up) -> dict[str, Any]:
    shown = up.puna("webhook", "chat", "--json")
    assert shown.returncode == 0, shown.stderr
    return dict(json.loads(shown.stdout))


def tell(up: Up, server: GitServer, commit: str) -> httpx.Response:
    """What GitHub does after a push, through the gateway and without a key."""
    hook, body = told(up), push(server.url("chat"), commit)
    return httpx.post(hook["url"], content=body, headers=signed(body, hook["secret"], commit))


def test_a_push_is_served_and_a_broken_one_changes_nothing(up: Up, server: GitServer) -> None:
    address = server.url("chat")
    refused = up.puna("deploy", "--git", address)
    assert refused.returncode != 0 and "it is private, or not there" in refused.stderr, refused
    up.client.set_secret("my-git", {"GIT_TOKEN": "t0ken"})
    deployed = up.puna("deploy", "--git", address, "--credential", "my-git", "--auto-rebuild")
    assert deployed.returncode == 0, deployed.stderr + up.evidence()
    assert "chat revision 1 serves" in deployed.stdout and up.call("hi", "chat").json()["outputs"][0]["data"] == [
        "v1:hi"
    ]

    forged = httpx.post(told(up)["url"], content=b"{}", headers={"x-hub-signature-256": "sha256=" + "0" * 64})
    assert forged.status_code == 403, forged.text

    def newest() -> dict[str, Any]:
        return dict(told(up)["deliveries"][0])

    with Callers(up, "chat", 4) as callers:
        assert tell(up, server, server.push("chat", {"app.py": APP % "v2"})).status_code == 202
        up.until(lambda: up.client.endpoint("chat")["revision"] == 2, 60, "the second revision")
        callers.more(20)
        # No app at all: it is refused before anything is built.
        tell(up, server, server.push("chat", {"app.py": "class InferlessPythonModel:\n    def infer(self inputs):\n"}))
        up.until(lambda: newest()["outcome"] == "failed", 60, "the refusal")
        assert "app.py line 2" in newest()["message"]
        # An app that fails when it is tried.
        tell(up, server, server.push("chat", {"app.py": "import nothing_like_it\n" + APP % "v3"}))
        up.until(lambda: newest()["state"] == "failed", 60, "the failure")
        assert "nothing_like_it" in newest()["message"] + newest()["detail"]
        assert up.client.endpoint("chat")["revision"] == 2
        callers.more(20)
        # Mended, and found by nobody's word: the last delivery is said again.
        server.push("chat", {"app.py": APP % "v4"})
        assert up.puna("webhook", "chat", "--replay", str(newest()["id"])).returncode == 0
        up.until(lambda: up.client.endpoint("chat")["revision"] == 4, 60, "the mended revision")
        callers.more(20)
    assert callers.failed() == [] and callers.broken == 0
    assert up.call("hi", "chat").json()["outputs"][0]["data"] == ["v4:hi"]
    kept = [path for path in up.home.root.rglob("*") if path.is_file() and b"t0ken" in path.read_bytes()]
    assert kept == []
