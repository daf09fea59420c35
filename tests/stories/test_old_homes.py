"""A home of every version before this one opens and serves: what was deployed then answers, with the keys of then.

`tests/homes` has them as that version's `puna` left them after a `puna down`, less what is made anew: environments,
logs, the worker. When what lies on disk changes, add the home of the version before.
"""

from __future__ import annotations

import json
import sqlite3
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from puna.config.runtime import parse_text
from puna.home import Home
from puna.packaging.environment import build
from stories.conftest import Up

pytestmark = pytest.mark.process

HOMES = sorted((Path(__file__).parents[1] / "homes").glob("*.tar.gz"))
ALL = "puna_4f6d4e49_OZqCpFo6D5ap3OBpx0EFzhGhKaFYDqrApDp7KG8XYAY"
PLAIN_ONLY = "puna_0ceab552_gLKndnzlnnlbuNjObIzuMfK4BuEREKg6scbnOvgk8Wo"
APP = """import os


class InferlessPythonModel:
    def initialize(self):
        self.greeting = os.environ.get("GREETING", "hello")

    def infer(self, inputs):
        return {"text": "%s, %s: %s" % (self.greeting, inputs["prompt"], os.environ.get("TOKEN", "no token"))}
"""


@pytest.fixture(params=HOMES, ids=[path.name.removesuffix(".tar.gz") for path in HOMES])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Up]:
    """A `puna up` of today in a home of then."""
    root = tmp_path / "home"
    root.mkdir()
    with tarfile.open(request.param) as archive:
        for member in archive.getmembers():
            archive.extract(member, root)
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


def text(up: Up, name: str, key: str = ALL) -> str:
    reply = up.call("you", name, key)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["outputs"][0]["data"][0])


def test_what_was_deployed_then_answers_with_the_keys_of_then(old: Up) -> None:
    assert {e["name"]: e["revision"] for e in old.client.endpoints()} == {"plain": 2, "scaled": 1}
    assert text(old, "plain") == "hello, you: no token" and text(old, "plain", PLAIN_ONLY) == "hello, you: no token"
    assert text(old, "scaled") == "hey you, s3cret"  # its variable, and its secret, which the home's own key opens
    assert old.call("you", "scaled", PLAIN_ONLY).status_code == 403
    assert old.puna("call", "plain", "prompt=me").stdout.startswith("hello, me")
    assert [r["name"] for r in old.client.runtimes()] == ["app", "mine"]
    assert old.client.usage()["items"], "what was counted then is counted still"


def test_work_goes_on_in_it(old: Up, tmp_path: Path) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "app.py").write_text(APP)
    (folder / "input_schema.py").write_text(
        'INPUT_SCHEMA = {"prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["hi"]}}\n'
    )
    (folder / "inferless-runtime-config.yaml").write_text("build:\n  python_packages: []\n")
    again = old.puna("deploy", str(folder), "--name", "plain", "--json")
    assert again.returncode == 0 and json.loads(again.stdout)["revision"] == 2, again.stdout + again.stderr
    back = old.puna("rollback", "plain", "--revision", "1")
    assert back.returncode == 0, back.stderr
    old.until(lambda: text(old, "plain") == "hello you, no token", what="the rollback")
    rebuilt = old.puna("rebuild", "scaled")
    assert rebuilt.returncode == 0, rebuilt.stdout + rebuilt.stderr
    assert text(old, "scaled") == "hey you, s3cret"
