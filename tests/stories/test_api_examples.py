"""The examples of the API's page, run as they stand: curl's in one shell, Python's in one interpreter."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from stories.conftest import Up, write_app

pytestmark = pytest.mark.process

PAGE = Path(__file__).parent.parent.parent / "docs" / "10-api.md"


def examples(language: str, url: str) -> str:
    """Every block of a language, one after the other, for a Puna at `url`."""
    found = "\n".join(re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL))
    return found.replace("http://127.0.0.1:8000", url)


def run(up: Up, folder: Path, *command: str, **variables: str) -> str:
    """What a command prints; it must end well."""
    bin_folder = str(Path(sys.executable).parent)
    env = up.env | variables | {"PATH": f"{bin_folder}:{up.env['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + up.evidence()
    return done.stdout


def test_the_examples_do_what_the_page_says(shared_up: Up, tmp_path: Path) -> None:
    write_app(tmp_path / "my-app")
    said = run(shared_up, tmp_path, "bash", "-euo", "pipefail", "-c", examples("bash", shared_up.url))
    assert '"scope":["admin"]' in said and "v1:What is AI?" in said
    assert said.count('"name":"monday"') == 2 and "some words" in said and '"created":true' in said
    assert [v["name"] for v in shared_up.client.volumes()] == ["data", "monday"]
    place = {"PUNA_URL": shared_up.url, "PUNA_KEY": str(shared_up.client.create_key(["admin"])["key"])}
    said = run(shared_up, tmp_path, sys.executable, "-c", examples("python", shared_up.url), **place)
    assert "v1:What is AI?" in said and "my-app ready" in said and "['my-app']" in said
    assert "copy/app.py" in said and "did you mean `my-app`?" in said
