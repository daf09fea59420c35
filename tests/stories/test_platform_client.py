"""The platform's own client package calls an endpoint: blocking, in a thread, and when it is wrong."""

import json
import subprocess
from pathlib import Path

import pytest

from puna.config.runtime import parse_text
from puna.home import Home
from puna.packaging.environment import build
from stories.conftest import Up

pytestmark = pytest.mark.process

CALLER = """
import json, sys
import inferless
url, key = sys.argv[1:]
data = {"prompt": "hi", "count": 2, "scale": 0.5, "loud": True, "words": ["a", "b"]}
told = {"plain": inferless.call(url, key, data=data)}
callback = lambda error, reply: told.update(later=[str(error), reply])
thread = inferless.call_async(url, key, data={"prompt": "later"}, callback=callback)
thread.join()
wrong = {"no_key": (url, "wrong", {"prompt": "hi"}), "unknown": (url, key, {"prompt": "hi", "nope": 1})}
for name, words in wrong.items():
    try:
        inferless.call(words[0], words[1], data=words[2])
    except Exception as error:
        told[name] = str(error)
print(json.dumps(told))
"""

APP = """
class InferlessPythonModel:
    def initialize(self):
        pass
    def infer(self, inputs):
        kinds = {name: type(value).__name__ for name, value in sorted(inputs.items())}
        text = str(inputs["prompt"]) * int(inputs.get("count", 1))
        return {"text": text.upper() if inputs.get("loud") else text, "scaled": float(inputs.get("scale", 1.0)) * 2,
                "words": list(inputs.get("words", ["-"])), "kinds": str(kinds)}
    def finalize(self):
        pass
"""

SCHEMA = """
INPUT_SCHEMA = {
    "prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["hi"]},
    "count": {"datatype": "INT16", "required": False, "shape": [1], "example": [2]},
    "scale": {"datatype": "FP32", "required": False, "shape": [1], "example": [0.5]},
    "loud": {"datatype": "BOOL", "required": False, "shape": [1], "example": [True]},
    "words": {"datatype": "STRING", "required": False, "shape": [-1], "example": ["a", "b"]},
}
"""


@pytest.fixture(scope="module")
def client_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the real client in it; it pins rich below 13, so it cannot share Puna's own."""
    home = Home(tmp_path_factory.mktemp("client"))
    spec = parse_text("build:\n  python_packages:\n    - inferless==0.2.15\n")
    lines: list[str] = []
    return build(spec, home, lines.append, cancelled=lambda: False).python


def test_the_real_client_calls_an_endpoint(shared_up: Up, client_python: Path, tmp_path: Path) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "app.py").write_text(APP)
    (folder / "input_schema.py").write_text(SCHEMA)
    (folder / "inferless-runtime-config.yaml").write_text("build:\n  python_packages: []\n")
    shared_up.deploy(folder, "clients")
    url = shared_up.client.endpoint("clients")["url"]
    call = subprocess.run(
        [str(client_python), "-c", CALLER, url, shared_up.key], capture_output=True, text=True, timeout=60, check=False
    )
    assert call.returncode == 0, call.stderr
    told = json.loads(call.stdout)
    outputs = {out["name"]: out for out in told["plain"]["outputs"]}
    assert outputs["text"]["data"] == ["HIHI"] and outputs["text"]["datatype"] == "BYTES"
    assert outputs["scaled"]["data"] == [1.0] and outputs["scaled"]["datatype"] == "FP64"
    assert outputs["words"]["data"] == ["a", "b"] and outputs["words"]["shape"] == [2]
    assert told["plain"]["model_name"] and told["plain"]["model_version"] == "1"
    error, reply = told["later"]
    assert error == "None" and reply["outputs"][0]["data"] == ["later"]
    assert "401" in told["no_key"]
    assert "400" in told["unknown"] and "nope" in told["unknown"]


def test_the_client_is_what_the_contract_was_read_from(client_python: Path) -> None:
    code = "import importlib.metadata as m; print(m.version('inferless'))"
    assert subprocess.check_output([str(client_python), "-c", code], text=True).strip() == "0.2.15"
