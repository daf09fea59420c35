"""The stories' own `puna up`, for engines too, and a Python with vLLM for workers without one."""

import os

import pytest

from engine.test_tutorial_app import RUNTIME
from puna.config import runtime
from puna.home import Home
from puna.packaging import environment
from stories.conftest import lasting_up as lasting_up
from stories.conftest import shared_up as shared_up


@pytest.fixture(scope="session")
def vllm_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with vLLM: the one that PUNA_TEST_VLLM_PYTHON names, or one built as for an endpoint."""
    if os.environ.get("PUNA_TEST_VLLM_PYTHON"):
        return os.environ["PUNA_TEST_VLLM_PYTHON"]
    folder = tmp_path_factory.mktemp("home")
    (folder / "runtime.yaml").write_text(RUNTIME)
    return str(environment.build(runtime.load(folder / "runtime.yaml"), Home(folder), print).python)
