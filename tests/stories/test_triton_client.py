"""Triton's own client with its defaults, binary tensors both ways, and with compressed bodies."""

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
import numpy as np
import tritonclient.http as triton
host, key = sys.argv[1:]
headers = {"Authorization": "Bearer " + key}
client = triton.InferenceServerClient(host)
told = {"live": client.is_server_live(), "ready": client.is_model_ready("triton", headers=headers)}
text = triton.InferInput("prompt", [1], "BYTES")
text.set_data_from_numpy(np.array(["héllo"], dtype=object))
numbers = triton.InferInput("numbers", [2, 3], "FP32")
numbers.set_data_from_numpy(np.arange(6, dtype=np.float32).reshape(2, 3))
reply = client.infer("triton", [text, numbers], headers=headers)  # every output, as bytes
told["text"] = reply.as_numpy("text")[0].decode()
told["doubled"] = reply.as_numpy("doubled").tolist()
told["is_binary"] = "data" not in reply.get_output("doubled")
wanted = [triton.InferRequestedOutput("doubled", binary_data=False)]
for packing in (None, "gzip", "deflate"):
    options = {"request_compression_algorithm": packing, "headers": dict(headers)}  # it writes into them
    one = client.infer("triton", [text, numbers], outputs=wanted, model_version="1", **options)
    told[str(packing)] = [o["name"] for o in one.get_response()["outputs"]]
for name, words in {"nope": {"outputs": [triton.InferRequestedOutput("nope")]}, "99": {"model_version": "99"}}.items():
    try:
        client.infer("triton", [text, numbers], headers=dict(headers), **words)
    except triton.InferenceServerException as error:
        told[name] = str(error)
print(json.dumps(told))
"""

APP = """
class InferlessPythonModel:
    def infer(self, inputs):
        return {"text": inputs["prompt"].upper(), "doubled": [[2 * float(n) for n in row] for row in inputs["numbers"]]}
"""

SCHEMA = """
INPUT_SCHEMA = {
    "prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["hi"]},
    "numbers": {"datatype": "FP32", "required": True, "shape": [-1, 3], "example": [[1.0, 2.0, 3.0]]},
}
"""


@pytest.fixture(scope="module")
def client_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the real client in it; it pins a greenlet of its own, so it cannot share Puna's."""
    home = Home(tmp_path_factory.mktemp("client"))
    spec = parse_text("build:\n  python_packages:\n    - tritonclient[http]==2.73.0\n")
    lines: list[str] = []
    return build(spec, home, lines.append, cancelled=lambda: False).python


def test_the_real_client_calls_an_endpoint_with_its_defaults(
    shared_up: Up, client_python: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "app.py").write_text(APP)
    (folder / "input_schema.py").write_text(SCHEMA)
    (folder / "inferless-runtime-config.yaml").write_text("build:\n  python_packages: []\n")
    shared_up.deploy(folder, "triton")
    host = shared_up.url.removeprefix("http://")
    call = subprocess.run(
        [str(client_python), "-c", CALLER, host, shared_up.key], capture_output=True, text=True, timeout=60, check=False
    )
    assert call.returncode == 0, call.stderr
    told = json.loads(call.stdout)
    assert told["live"] is told["ready"] is True
    assert told["text"] == "HÉLLO" and told["is_binary"] is True
    assert told["doubled"] == [[0.0, 2.0, 4.0], [6.0, 8.0, 10.0]]
    assert told["None"] == told["gzip"] == told["deflate"] == ["doubled"]
    assert "400" in told["nope"] and "output 'nope' is not there; the app's are: text, doubled" in told["nope"]
    assert "404" in told["99"] and "no version 99" in told["99"]
