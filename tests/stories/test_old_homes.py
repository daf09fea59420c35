"""A home of every version before this one opens and serves: what was deployed then answers, with the keys of then.

`tests/homes` has them as that version's `puna` left them after a `puna down`, less what is made anew: environments,
logs, the worker. When what lies on disk changes, add the home of the version before: `make home ARGS=v0.1.0`.
"""

from __future__ import annotations

import json
import sqlite3
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from puna.config.runtime import parse_text
from puna.errors import ConflictError
from puna.home import Home
from puna.packaging.environment import build
from stories.conftest import Up
from webhook import push, signed

pytestmark = pytest.mark.process

HOMES = sorted((Path(__file__).parents[1] / "homes").glob("*.tar.gz"))
WHOLE = HOMES[1:]
"""Made by scripts/old_home.py: with a run, a model, a volume, a split and a webhook."""
FIRST_KEYS = {
    "all": "puna_4f6d4e49_OZqCpFo6D5ap3OBpx0EFzhGhKaFYDqrApDp7KG8XYAY",
    "plain": "puna_0ceab552_gLKndnzlnnlbuNjObIzuMfK4BuEREKg6scbnOvgk8Wo",
}
"""Of the first home, which does not say them itself."""
APP = """import os


class InferlessPythonModel:
    def initialize(self):
        self.greeting = os.environ.get("GREETING", "hello")

    def infer(self, inputs):
        return {"text": "%s, %s: %s" % (self.greeting, inputs["prompt"], os.environ.get("TOKEN", "no token"))}
"""


def opened(archive: Path, root: Path) -> Iterator[Up]:
    """A `puna up` of today in a home of then."""
    root.mkdir()
    with tarfile.open(archive) as packed:
        for member in packed.getmembers():
            packed.extract(member, root)
    lines: list[str] = []
    made = build(parse_text("build:\n  python_packages: []\n"), Home(root), lines.append, cancelled=lambda: False)
    with sqlite3.connect(root / "puna.db") as database:
        named = {row[0] for row in database.execute("select environment from revisions")}
    assert named == {made.digest}, "a runtime of then has another digest today: every environment would be built anew"
    up = Up(root)
    try:
        yield up
    finally:
        up.down()


def name_of(archive: Path) -> str:
    return archive.name.removesuffix(".tar.gz")


@pytest.fixture(params=HOMES, ids=name_of)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Up]:
    yield from opened(request.param, tmp_path / "home")


@pytest.fixture(params=WHOLE, ids=name_of)
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Up]:
    yield from opened(request.param, tmp_path / "home")


def known(up: Up) -> dict[str, Any]:
    """What whoever made the home wrote down: keys, the webhook's secret."""
    path = up.home.root / "old_home.json"
    return dict(json.loads(path.read_text())) if path.exists() else {"keys": FIRST_KEYS}


def text(up: Up, name: str, key: str = "all") -> str:
    reply = up.call("you", name, known(up)["keys"][key])
    assert reply.status_code == 200, reply.text
    return str(reply.json()["outputs"][0]["data"][0])


def test_what_was_deployed_then_answers_with_the_keys_of_then(old: Up) -> None:
    serving = {e["name"]: e["revision"] for e in old.client.endpoints()}
    assert {"plain": 2, "scaled": 1}.items() <= serving.items()
    assert text(old, "plain") == "hello, you: no token" and text(old, "plain", "plain") == "hello, you: no token"
    assert text(old, "scaled") == "hey you, s3cret"  # its variable, and its secret, which the home's own key opens
    assert old.call("you", "scaled", known(old)["keys"]["plain"]).status_code == 403
    assert old.puna("call", "plain", "prompt=me").stdout.startswith("hello, me")
    assert {"app", "mine"} <= {r["name"] for r in old.client.runtimes()}
    assert old.client.usage()["items"], "what was counted then is counted still"


def test_work_goes_on_in_it(old: Up, tmp_path: Path) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "app.py").write_text(APP)
    (folder / "input_schema.py").write_text(
        'INPUT_SCHEMA = {"prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["hi"]}}\n'
    )
    (folder / "inferless-runtime-config.yaml").write_text("build:\n  python_packages: []\n")
    gpu = old.client.endpoint("plain")["settings"]["gpu_type"]
    again = old.puna("deploy", str(folder), "--name", "plain", *(("--gpu", gpu) if gpu else ()), "--json")
    assert again.returncode == 0 and json.loads(again.stdout)["revision"] == 2, again.stdout + again.stderr
    back = old.puna("rollback", "plain", "--revision", "1")
    assert back.returncode == 0, back.stderr
    old.until(lambda: text(old, "plain") == "hello you, no token", what="the rollback")
    rebuilt = old.puna("rebuild", "scaled")
    assert rebuilt.returncode == 0, rebuilt.stdout + rebuilt.stderr
    assert text(old, "scaled") == "hey you, s3cret"


def test_a_run_and_its_model_are_listed_and_an_endpoint_still_has_model_and_volume(whole: Up) -> None:
    (run,) = whole.client.runs()
    assert (run["name"], run["state"], run["step"]) == ("tiny-1", "finished", 4)
    shown = whole.puna("run", "show", "tiny-1", "--json")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    (model,) = whole.client.models()
    assert (model["name"], model["version"], model["run"]) == ("acme/tiny", 1, "tiny-1")
    assert model["endpoints"] == [{"endpoint": "shelf", "revision": 1}]
    listed = whole.puna("model", "show", "acme/tiny@stable", "--json")
    assert listed.returncode == 0, listed.stdout + listed.stderr
    assert text(whole, "shelf") == "you: words of then, 1 layer"
    assert b"".join(whole.client.volume_file("words", "words.txt")) == b"words of then"


def test_a_split_of_then_goes_on_and_is_promoted(whole: Up) -> None:
    assert text(whole, "divided") in ("hello you, no token", "hello, you: no token")
    whole.until(lambda: len({text(whole, "divided") for _ in range(4)}) == 2, what="both revisions' turn")
    answers = Counter(text(whole, "divided") for _ in range(40))
    assert answers == {"hello you, no token": 30, "hello, you: no token": 10}
    whole.client.promote("divided")
    whole.client.wait_for_traffic("divided", 2)
    whole.until(lambda: {text(whole, "divided") for _ in range(4)} == {"hello, you: no token"}, what="the promotion")


def test_a_webhook_of_then_is_believed_and_its_delivery_is_known_again(whole: Up) -> None:
    hook, secret = whole.client.webhook("hooked"), known(whole)["webhook_secret"]
    assert hook["secret"] == secret and hook["auto_rebuild"]
    (before,) = whole.client.deliveries("hooked")
    assert (before["outcome"], before["revision"]) == ("deployed", 2)
    body = push(hook["git"]["url"], before["commit"])
    again = httpx.post(hook["url"], content=body, headers=signed(body, secret, "d-1"))
    assert again.status_code == 200 and "come before" in again.json()["message"], again.text
    ping = httpx.post(hook["url"], content=body, headers=signed(body, secret, "d-2", "ping"))
    assert ping.json()["message"] == "the address works", ping.text
    assert text(whole, "hooked") == "hello, you: no token"


def test_everything_of_then_can_be_deleted(whole: Up) -> None:
    with pytest.raises(ConflictError, match="shelf"):
        whole.client.delete_model("acme/tiny", 1)
    whole.clear()
    whole.client.unalias_model("acme/tiny", "stable")
    whole.client.delete_model("acme/tiny", 1, force=True)  # `latest` stays for as long as there is a version
    for key in whole.client.keys():
        whole.client.delete_key(key["id"])
    left = whole.client.endpoints(), whole.client.volumes(), whole.client.runtimes(), whole.client.secrets()
    assert left == ([], [], [], []) and whole.client.models() == [] and whole.client.keys() == []
    used = {row["endpoint"] for row in whole.client.usage()["items"]}
    assert used >= {"plain", "divided"}, "use outlives what was used"
