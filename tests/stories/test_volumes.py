"""A volume in a running Puna: filled by the command line, read by an app at import, kept when the app changes."""

import json
import os
import signal
from pathlib import Path

import pytest

from puna.backends import workspace
from stories.conftest import SCHEMA, Up

pytestmark = pytest.mark.process

APP = """
import json
import os
WORDS = open(os.environ["NFS_VOLUME"] + "/models/words.txt").read()
TOKEN = os.environ["HF_TOKEN"]
class InferlessPythonModel:
    def infer(self, inputs):
        with open(os.path.join(os.environ["NFS_PATH"], "calls"), "a") as file:
            file.write("x")
        if inputs["prompt"] == "drop":
            return {"other": 1}
        return {"out": "VERSION %s %s" % (WORDS, TOKEN)}
"""


def test_an_app_finds_its_volume_and_its_secret_at_import(shared_up: Up, tmp_path: Path) -> None:
    path = str(tmp_path / "mnt" / "data")
    why = workspace._refusal(json.dumps({path: str(tmp_path)}))
    if why:
        pytest.skip(f"this kernel lets nobody mount for himself: {why}")
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "app.py").write_text(APP)
    (folder / "input_schema.py").write_text(SCHEMA)
    (folder / "inferless-runtime-config.yaml").write_text("build:\n  python_packages: []\n")
    (folder / "inferless.yaml").write_text(
        f"name: keeper\nsecrets: [hub]\nvolumes:\n  - my_files: {path}\nconfiguration:\n  gpu_type: cpu\n"
    )
    refused = shared_up.puna("deploy", str(folder), "--json")
    assert refused.returncode == 3 and "puna volume create my_files" in refused.stdout, refused
    (tmp_path / "words.txt").write_text("words")
    shared_up.client.set_secret("hub", {"HF_TOKEN": "hf_abc"})
    assert shared_up.puna("volume", "create", "my_files").returncode == 0
    assert shared_up.puna("volume", "cp", str(tmp_path / "words.txt"), "my_files:/models/").returncode == 0
    deployed = shared_up.puna("deploy", str(folder))
    assert deployed.returncode == 0, deployed.stderr + shared_up.evidence()
    reply = shared_up.call(name="keeper")
    assert reply.status_code == 200 and reply.json()["outputs"][0]["data"] == ["VERSION words hf_abc"], reply.text
    dropped = shared_up.call("drop", name="keeper")
    assert dropped.status_code == 500
    assert dropped.json()["error"].startswith("Requried Output out not found in the inference response")

    # A replica that is forked from a zygote sees the volume too, though its guard never made a namespace for it.
    def warm() -> bool:
        return bool((shared_up.client.endpoint("keeper")["warm"] or {}).get("state") == "ready")

    shared_up.until(warm, what="a zygote")
    (first,) = shared_up.worker_pids("keeper")
    os.kill(first, signal.SIGKILL)
    shared_up.until(lambda: first not in shared_up.worker_pids("keeper"), what="the death of a replica")
    assert shared_up.call(name="keeper").json()["outputs"][0]["data"] == ["VERSION words hf_abc"]
    (second,) = shared_up.worker_pids("keeper")
    status = Path(f"/proc/{second}/cmdline").read_bytes()
    assert b"zygote" in status, status  # a fork has its zygote's command line

    (folder / "app.py").write_text(APP.replace("VERSION", "2:"))
    assert shared_up.puna("deploy", str(folder)).returncode == 0
    assert shared_up.call(name="keeper").json()["outputs"][0]["data"] == ["2: words hf_abc"]
    listed = shared_up.puna("volume", "ls", "my_files")
    assert "calls" in listed.stdout and "models/" in listed.stdout
    kept = shared_up.puna("volume", "rm", "my_files", "--json")
    assert kept.returncode == 4 and "used by keeper" in kept.stdout
    shared_up.client.delete("keeper")
    shared_up.until(lambda: shared_up.puna("volume", "rm", "my_files").returncode == 0, what="deleting the volume")
    assert os.listdir(path) == []
