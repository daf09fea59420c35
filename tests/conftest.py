"""What is skipped, and why: heavy engines unless asked for, GPU tests where there is no GPU."""

import os
import shutil

import pytest

if not shutil.which("nvidia-smi"):
    os.environ["TRITON_INTERPRET"] = "1"  # the kernels' tests run in Triton's interpreter; read when it is imported


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip with a reason rather than leave out in silence."""
    engine = pytest.mark.skip(reason="installs an engine of 3 GB; run: make engine")
    gpu = pytest.mark.skip(reason="needs an NVIDIA GPU")
    for item in items:
        if item.get_closest_marker("engine") and not os.environ.get("PUNA_ENGINE_TESTS"):
            item.add_marker(engine)
        if item.get_closest_marker("gpu") and not shutil.which("nvidia-smi"):
            item.add_marker(gpu)
