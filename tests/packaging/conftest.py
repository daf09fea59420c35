"""A home, a small project, and a tiny model in the Hugging Face layout."""

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
