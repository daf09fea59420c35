"""What an app prints is found by the id of the call, in real processes; the platform's calls through the gateway."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest

from stories.conftest import Up, write_app

pytestmark = pytest.mark.process

APP = """
import logging, subprocess, sys
class InferlessPythonModel:
    def initialize(self):
        print("a model of 8 GB was loaded")
    def infer(self, inputs):
        print("asked for", inputs["prompt"])
        print("to stderr", file=sys.stderr)
        logging.getLogger("app").warning("logged")
        if inputs["prompt"] == "bad":
            raise ValueError("no such thing")
        return {"out": inputs["prompt"]}
    def finalize(self):
        pass
"""


def call(up: Up, text: str, request: str = "") -> httpx.Response:
    body = {"inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": [text]}]}
    headers = {"authorization": f"Bearer {up.key}"} | ({"x-request-id": request} if request else {})
    return up.http.post("/v2/models/app/infer", json=body, headers=headers, timeout=60)


def test_lines_are_found_by_request_by_text_and_by_time(shared_up: Up, tmp_path: Path) -> None:
    up = shared_up
    folder = write_app(tmp_path / "app")
    (folder / "app.py").write_text(APP)
    up.deploy(folder, min_replica=1)
    assert call(up, "first", "mine-1").headers["x-request-id"] == "mine-1"
    made = call(up, "second").headers["x-request-id"]
    bad = call(up, "bad", "mine-2")
    assert bad.status_code == 500 and bad.headers["x-request-id"] == "mine-2"
    assert call(up, "third", "not an id!").headers["x-request-id"] != "not an id!"

    def found(*words: str) -> list[str]:
        done = up.puna("logs", "app", *words)
        assert done.returncode == 0, done.stderr
        return [line.partition(" | ")[2] for line in done.stdout.splitlines()]

    said = ["asked for first", "to stderr", "logged"]
    assert found("--request", "mine-1") == [f"[mine-1] {text}" for text in said]
    assert found("--request", made)[0] == f"[{made}] asked for second"
    failed = found("--request", "mine-2")
    assert failed[-1] == "[mine-2] ValueError: no such thing" and "puna: [mine-2] infer raised:" in failed
    assert len(found("--search", "ASKED FOR", "--since", "10m")) == 4
    assert found("--search", "8 GB") == ["a model of 8 GB was loaded"] and found("--since", "0s") == []
    (replica,) = up.client.endpoint("app")["replicas"]
    assert len(list(up.client.logs("app", replica=replica["id"], search="asked for third"))) == 1
    assert up.puna("logs", "app", "--since", "soon").returncode == 2

    page = up.client.log_lines("app", limit=2, request="mine-1")
    assert [(item["stream"], item["text"], item["request"]) for item in page["items"]] == [
        ("stderr", "[mine-1] logged", "mine-1"),
        ("stderr", "[mine-1] to stderr", "mine-1"),
    ]
    rest = up.client.log_lines("app", limit=2, request="mine-1", after=page["next"])
    assert [item["stream"] for item in rest["items"]] == ["stdout"] and rest["next"] is None
    build = up.client.builds()[-1]["id"]
    whole, some = list(up.client.build_log(build, follow=False)), list(up.client.build_log(build, False, "8 gb"))
    assert len(some) == 1 and some[0] in whole and len(whole) > 1


def test_the_platforms_calls_pass_through_the_gateway_with_its_key(shared_up: Up) -> None:
    up = shared_up
    key = str(up.client.create_key(["deploy"], endpoints=["app"])["key"])
    body = {"model_id": "app", "time_from": "2024-05-28T00:00:00.000Z", "time_to": "2099-01-01T00:00:00.000Z"}
    headers = {"authorization": key}
    told = up.http.post("/rest/model/logs/get/", json=body, headers=headers).json()
    logged = [detail for detail in told["details"] if detail["log"].endswith("] logged")]
    assert told["status"] == "success" and {detail["stream"] for detail in logged} == {"stderr"}
    update = {"model_id": "app", "data": {"min_replica": 0, "max_replica": 2, "scale_down_delay": 30}}
    url = f"{up.url}/rest/model/settings/update/"
    assert httpx.post(url, json=update).status_code == 401
    assert httpx.post(url, json=update, headers={"authorization": up.key}).status_code == 403
    told = httpx.post(url, json=update, headers=headers).json()
    assert told == {"status": "success", "details": "Model updated successfully"}
    settings = up.client.endpoint("app")["settings"]
    assert (settings["max_replica"], settings["scale_down_delay_s"]) == (2, 30)


def test_a_search_is_followed(shared_up: Up) -> None:
    up, come = shared_up, []

    def follow() -> None:
        for line in up.client.logs("app", follow=True, lines=0, search="followed"):
            come.append(line)
            return

    thread = threading.Thread(target=follow)
    thread.start()
    up.until(lambda: call(up, "followed", "f-1").status_code == 200 and not thread.is_alive(), 20, "the line")
    assert come[0].endswith("[f-1] asked for followed")
