"""A home, a small project, and a tiny model in the Hugging Face layout."""

import time
from pathlib import Path

import pytest

from puna.home import Home

APP = """\
class InferlessPythonModel:
    def initialize(self):
        self.model_id = "acme/tiny"

    def infer(self, inputs):
        return {"generated_text": inputs["prompt"]}

    def finalize(self):
        pass
"""
SCHEMA = "INPUT_SCHEMA = {'prompt': {'datatype': 'STRING', 'required': True, 'shape': [1], 'example': ['hi']}}\n"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "app"
    (path / "lib").mkdir(parents=True)
    (path / "app.py").write_text(APP)
    (path / "input_schema.py").write_text(SCHEMA)
    (path / "lib" / "words.py").write_text("WORDS = ['深']\n")
    (path / "inferless-runtime-config.yaml").write_text("build:\n  python_packages:\n  - six==1.17.0\n")
    return path


def leftovers(home: Home) -> list[str]:
    """What is left of environments; what is on its way out has a moment."""
    end = time.monotonic() + 10
    while any(home.environments.glob(".gone-*")) and time.monotonic() < end:
        time.sleep(0.02)
    return [p.name for p in home.environments.iterdir() if not p.name.endswith(".lock")]
