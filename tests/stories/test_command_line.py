"""The whole way by the commands that the README shows, as a person types them, in a home of its own."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from config import tutorial_files
from load import load_factor
from puna.cli.main import run
from stories.conftest import family, write_app

pytestmark = pytest.mark.process

# float32, since six held-out rows tell a loss to 0.005 only where a CPU computes in bf16; a rate at which four steps
# change weights by more than a merge rounds them.
RECIPE = """
name: story
base: demo
data: {dataset: demo, take: 60, test_fraction: 0.1, max_length: 128}
quantization: {bnb_4bit_compute_dtype: float32}
lora: {lora_r: 4, lora_alpha: 8, lora_dropout: 0}
training:
  per_device_train_batch_size: 2
  gradient_accumulation_steps: 2
  max_steps: STEPS
  learning_rate: 4.0e-3
  warmup_steps: 1
  logging_steps: 1
  eval_steps: 5
  save_steps: 2
merge: {base: dequantised}
publish: {name: acme/story}
"""


class Shell:
    """A terminal in one folder with one PUNA_HOME."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.env = {**os.environ, "PUNA_HOME": str(self.home), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}

    def start(self, *words: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "puna", *words]
        return subprocess.Popen(command, cwd=self.folder, env=self.env, stdout=pipe, stderr=pipe, text=True)

    def run(self, *words: str, code: int = 0) -> str:
        process = self.start(*words)
        out, err = process.communicate(timeout=180 * load_factor())
        assert process.returncode == code, f"puna {' '.join(words)} exited {process.returncode}\n{out}\n{err}"
        return out if code == 0 else out + err

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json"))


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    with tempfile.TemporaryDirectory(prefix="puna-") as folder:
        shell = Shell(Path(folder))
        (shell.folder / "recipe.yaml").write_text(RECIPE.replace("STEPS", "4"))
        (shell.folder / "long.yaml").write_text(RECIPE.replace("STEPS", "400").replace("story", "long"))
        yield shell
        shell.run("down")
        assert family(shell.home) == []


def test_a_recipe_becomes_a_published_model(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One process for all but the training itself: each would load torch anew."""
    monkeypatch.setenv("PUNA_HOME", str(shell.home))
    recipe = str(shell.folder / "recipe.yaml")

    def puna(*words: str) -> str:
        capsys.readouterr()
        code = run(list(words))
        said = capsys.readouterr()
        assert code == 0, said.err
        return said.out

    def told(*words: str) -> Any:
        return json.loads(puna(*words, "--json"))

    plan = told("train", recipe, "--dry-run")
    assert plan["plan"]["steps"] == 4 and plan["data"]["rows_train"] == 54
    assert "[" in puna("data", "preview", recipe)
    assert "story-1 has finished" in shell.run("train", "recipe.yaml")
    assert (shell.home / "runs" / "story-1" / "report.html").exists()
    (row,) = [r for r in told("runs") if r["name"] == "story-1"]
    assert row["state"] == "finished" and row["step"] == 4
    assert "•" in puna("run", "show", "last")
    assert told("merge", "story-1")["verification"]["passed"] is True
    first = told("publish", "story-1")
    assert (first["name"], first["version"]) == ("acme/story", 1)
    assert told("publish", "last", "--alias", "champion")["version"] == 1, "the same model is the same version"
    assert told("model", "show", "acme/story@champion")["version"] == 1
    assert "acme/story" in puna("model", "list")
    assert told("publish", "story-1", "--adapter")["name"] == "acme/story-adapter"
    shown = told("model", "show", "acme/story-adapter")
    assert shown["kind"] == "adapter" and shown["lineage"]["serving_base"]


def test_ctrl_c_saves_and_the_run_goes_on(shell: Shell) -> None:
    process = shell.start("train", "long.yaml")
    checkpoints = shell.home / "runs" / "long-1" / "checkpoints"
    began = time.monotonic()
    while not any(checkpoints.glob("step-*")):
        assert process.poll() is None and time.monotonic() - began < 60 * load_factor()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60 * load_factor())
    assert process.returncode != 0 and "--resume long-1" in err and "Traceback" not in err, err
    (row,) = [r for r in shell.json("runs") if r["name"] == "long-1"]
    assert row["state"] == "interrupted"
    assert "interrupted" in shell.run("merge", "long-1", code=3)


def test_a_folder_becomes_an_endpoint_and_goes_again(shell: Shell) -> None:
    assert "puna up" in shell.run("ps", code=7)
    assert "puna is up at" in shell.run("up", "--detach", "--port", "0")
    again = shell.run("up", "--detach", "--port", "0", code=4)
    assert "already, as process" in again and "did not start" not in again
    folder = write_app(shell.folder / "my-app")
    told = shell.run("deploy", "my-app", "--gpu", "cpu", "--scale-down-delay", "600")
    assert "my-app revision 1 serves" in told
    lines = dict(line.split(":", 1) for line in told.splitlines() if line[:4] in ("url:", "key:", "try:"))
    reply = subprocess.run(lines["try"].strip(), shell=True, capture_output=True, text=True, check=True)
    assert "v1:hi" in reply.stdout, "the curl line works as it is"
    assert "v1:there" in shell.run("call", "my-app", "prompt=there")
    assert shell.json("call", "my-app")["outputs"]["out"] == "v1:hi", "without inputs: the schema's examples"
    assert "prompt" in shell.run("call", "my-app", "promt=x", code=2)
    assert "my-app" in shell.run("ps") and "ready" in shell.run("logs", "my-app")

    again = shell.json("deploy", "my-app", "--gpu", "cpu", "--scale-down-delay", "600")
    assert again["revision"] == 1, "nothing changed: no new revision"
    write_app(folder, version="v2")
    assert shell.json("deploy", "my-app", "--gpu", "cpu")["revision"] == 2
    assert "v2:x" in shell.run("call", "my-app", "prompt=x")
    shell.run("rollback", "my-app")
    assert "v1:x" in shell.run("call", "my-app", "prompt=x")
    assert shell.json("scale", "my-app", "--max", "3")["settings"]["max_replica"] == 3
    shell.run("deactivate", "my-app")
    assert "deactivated" in shell.run("call", "my-app", "prompt=x", code=7)
    shell.run("activate", "my-app")
    assert "v1:x" in shell.run("call", "my-app", "prompt=x")
    assert "revision 2" in shell.run("events", "my-app")
    shell.run("delete", "my-app", "--yes")
    assert "no-such" in shell.run("delete", "no-such", "--yes", code=3) and shell.json("ps") == []


def test_a_project_of_the_platforms_with_a_name_of_its_own_serves_under_the_nearest_one(shell: Shell) -> None:
    folder = write_app(shell.folder / "Llama-3")
    (folder / "inferless.yaml").write_text(tutorial_files.PROJECT)
    assert "llama-3 revision 1 serves" in shell.run("deploy", "Llama-3")
    assert "v1:hi" in shell.run("call", "llama-3", "prompt=hi")
    assert "did you mean `llama-3`" in shell.run("call", "Llama-3", "prompt=hi", code=3)
    shell.run("delete", "llama-3", "--yes")


def test_keys_are_shown_once_and_revoked_at_once(shell: Shell) -> None:
    made = shell.json("key", "create", "ci", "--scope", "deploy")
    url = json.loads((shell.home / "up.json").read_text())["url"]
    headers = {"authorization": f"Bearer {made['key']}"}
    assert httpx.get(f"{url}/api/v1/endpoints", headers=headers).status_code == 200
    assert made["key"] not in shell.run("key", "list") and made["id"] in shell.run("key", "list")
    shell.run("key", "revoke", made["id"])
    assert httpx.get(f"{url}/api/v1/endpoints", headers=headers).status_code == 401
    assert httpx.get(f"{url}/api/v1/endpoints").status_code == 401


def test_an_app_is_tried_without_a_server(shell: Shell) -> None:
    write_app(shell.folder / "tried")
    assert "v1:hi" in shell.run("dev", "tried")
    broken = "import nothing_of_that_name\nclass InferlessPythonModel:\n    def infer(self, inputs): ...\n"
    (shell.folder / "tried" / "app.py").write_text(broken)
    told = shell.run("dev", "tried", code=1)
    assert "nothing_of_that_name" in told and "app.py:1" in told
