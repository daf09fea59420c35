"""The tutorial's project folder."""

from pathlib import Path

import pytest

from config.tutorial_files import FILES


@pytest.fixture
def tutorial(tmp_path: Path) -> Path:
    folder = tmp_path / "Llama-3"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder
