"""Runtimes and builds in a running Puna, by the command line: versions, what differs, a move, a cancelled build."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from load import load_factor
from stories.conftest import Up, write_app

pytestmark = pytest.mark.process


def said(up: Up, *words: str) -> Any:
    """The JSON of a command that is to succeed."""
    done = up.puna(*words, "--json")
    assert done.returncode == 0, done.stderr + up.evidence()
    return json.loads(done.stdout)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_an_endpoint_is_moved_from_one_version_to_the_next(shared_up: Up, tmp_path: Path) -> None:
    up, file = shared_up, tmp_path / "rt.yaml"
    said(up, "runtime", "upload", str(write(file, 'build:\n  python_packages: ["six==1.16.0"]\n')), "--name", "rt")
    app = write_app(tmp_path / "moved")
    (app / "inferless-runtime-config.yaml").unlink()
    said(up, "deploy", str(app), "--name", "moved", "--runtime", "rt", "--gpu", "cpu")
    said(up, "runtime", "upload", str(write(file, 'build:\n  python_packages: ["six==1.17.0"]\n')), "--name", "rt")
    shown = said(up, "runtime", "show", "rt", "--version", "1")
    assert {"name": "six", "version": "1.16.0"} in shown["packages"] and shown["size_bytes"] > 0
    assert [(e["endpoint"], e["version"], e["is_serving"]) for e in shown["endpoints"]] == [("moved", 1, True)]
    found = said(up, "runtime", "diff", "rt", "1", "2")
    assert {"name": "six", "before": "1.16.0", "after": "1.17.0"} in found["packages"]["changed"]
    assert '+  python_packages: ["six==1.17.0"]' in found["yaml"]
    refused = up.puna("runtime", "delete", "rt", "--version", "1", "--yes")
    assert refused.returncode == 4 and "is used by revision 1 of `moved`" in refused.stderr
    assert up.call("a", "moved").status_code == 200
    moved = said(up, "runtime", "use", "moved", "rt")
    assert moved["revision"] == 2 and moved["revisions"][0]["runtime_version"] == 2
    assert up.call("b", "moved").status_code == 200
    assert said(up, "runtime", "delete", "rt", "--version", "1")["deleted"] == [1]
    assert [(r["name"], r["version"]) for r in said(up, "runtime", "list")] == [("rt", 2)]
    for words in (["runtime", "show", "rt"], ["runtime", "list"], ["build", "list"]):
        plain = up.puna(*words)
        assert plain.returncode == 0 and "rt" in plain.stdout


def test_a_build_that_hangs_is_cancelled_within_five_seconds(shared_up: Up, tmp_path: Path) -> None:
    up = shared_up
    # It ignores what it is asked, and so does its child in a session of its own.
    line = "trap '' TERM INT; setsid sh -c 'trap \"\" TERM; sleep 3600' & echo hanging; sleep 3600"
    file = write(tmp_path / "rt.yaml", json.dumps({"build": {"run": [line]}}))
    made = said(up, "runtime", "upload", str(file), "--name", "hanging", "--no-wait")
    up.until(lambda: "hanging" in "\n".join(up.client.build_log(made["build_id"], follow=False)), 60, "the line")
    began = time.monotonic()
    said(up, "build", "cancel", made["build_id"])
    up.until(lambda: up.client.build(made["build_id"])["status"] == "cancelled", 10, "the cancelling")
    assert time.monotonic() - began < 5 * load_factor()
    assert not any("sleep" in Path(f"/proc/{pid}/cmdline").read_text(errors="replace") for pid in up.pids("sleep"))
    assert said(up, "build", "show", made["build_id"])["status"] == "cancelled"
    assert said(up, "runtime", "show", "hanging")["status"] == "cancelled"
    assert said(up, "runtime", "delete", "hanging")["deleted"] == [1]
    assert up.puna("build", "cancel", made["build_id"]).returncode == 4
