"""The second cold start of an endpoint comes from its zygote, whose own death or refusal costs no request."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from stories.conftest import SCHEMA, Callers, Up, write_app

pytestmark = pytest.mark.process
LIBRARY = "import os\nPID = os.getpid()\n"
APP = """
import os, imported_once
class InferlessPythonModel:
    def infer(self, inputs):
        return {"out": "v:" + inputs["prompt"], "imported_in": str(imported_once.PID), "pid": str(os.getpid())}
"""
BUSY = "import threading, time\nthreading.Thread(target=time.sleep, args=(9e5,), daemon=True, name='busy').start()\n"


def deploy(up: Up, folder: Path, name: str, library: str, **settings: Any) -> None:
    """An app that imports a module which stands outside of its folder, as packages do."""
    write_app(folder / name)
    (folder / name / "app.py").write_text(APP)
    (folder / name / "input_schema.py").write_text(SCHEMA)
    libraries = folder / f"{name}-libraries"
    libraries.mkdir()
    (libraries / "imported_once.py").write_text(LIBRARY + library)
    up.deploy(folder / name, name, env={"PYTHONPATH": str(libraries)}, **settings)


def warm(up: Up, name: str) -> dict[str, Any]:
    return up.client.endpoint(name)["warm"] or {"state": "none"}


def messages(up: Up, name: str) -> str:
    return "\n".join(event["message"] for event in up.client.events(name))


def outputs(up: Up, name: str) -> dict[str, str]:
    reply = up.call(name=name)
    assert reply.status_code == 200, reply.text
    return {output["name"]: output["data"][0] for output in reply.json()["outputs"]}


def at_zero(up: Up, name: str) -> bool:
    return not up.client.endpoint(name)["replicas"]


def test_the_second_cold_start_is_a_fork_and_so_is_one_after_the_zygotes_death(shared_up: Up, tmp_path: Path) -> None:
    up = shared_up
    deploy(up, tmp_path, "warm", "", scale_down_delay_s=0.2)
    up.until(lambda: warm(up, "warm")["state"] == "ready" and at_zero(up, "warm"), 30, "zero, with a zygote")
    assert warm(up, "warm")["memory_bytes"] > 0 and "the zygote is ready" in messages(up, "warm")
    first = outputs(up, "warm")
    assert first["imported_in"] != first["pid"], "its imports were done in the zygote"
    zygote = int(first["imported_in"])
    with Callers(up, "warm", count=4) as callers:
        callers.more(10)
        os.kill(zygote, signal.SIGKILL)
        callers.more(20)
    assert callers.failed() == [] and callers.broken == 0
    up.until(lambda: warm(up, "warm")["state"] == "ready" and at_zero(up, "warm"), 30, "another zygote")
    assert "the zygote died and will be begun again: killed by SIGKILL" in messages(up, "warm")
    second = outputs(up, "warm")
    assert second["imported_in"] not in (second["pid"], str(zygote))


def test_imports_that_start_a_thread_are_left_to_each_start_and_an_event_says_why(
    shared_up: Up, tmp_path: Path
) -> None:
    up = shared_up
    deploy(up, tmp_path, "unforkable", BUSY, scale_down_delay_s=0.2)
    up.until(
        lambda: warm(up, "unforkable")["state"] == "refused" and at_zero(up, "unforkable"), 30, "a refusal at zero"
    )
    assert "an import started a thread (busy)" in warm(up, "unforkable")["reason"]
    assert "each start imports for itself: an import started a thread (busy)" in messages(up, "unforkable")
    told = outputs(up, "unforkable")
    assert told["imported_in"] == told["pid"]


def test_a_setting_does_without(shared_up: Up, tmp_path: Path) -> None:
    up = shared_up
    deploy(up, tmp_path, "lean", "", scale_down_delay_s=0.2, zygote=False)
    up.until(lambda: at_zero(up, "lean"), 30, "zero")
    told = outputs(up, "lean")
    assert told["imported_in"] == told["pid"] and warm(up, "lean") == {"state": "none"}
    up.client.patch("lean", zygote=True)
    up.until(lambda: warm(up, "lean")["state"] == "ready", 30, "a zygote after all")
