"""The check before a build lets every app of the worker's corpus through, and reads schemas as the worker does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from puna.config import schema
from puna.packaging import source
from puna.worker.app.schema import read
from worker import corpus


@pytest.mark.parametrize("name", corpus.NAMES)
def test_an_app_that_runs_passes_the_check(name: str, tmp_path: Path) -> None:
    source.check(corpus.read(name).write(tmp_path))


@pytest.mark.parametrize("name", corpus.NAMES)
def test_control_plane_and_worker_read_one_schema(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = corpus.read(name)
    for key, value in app.env.items():
        monkeypatch.setitem(os.environ, key, value)
    folder = app.write(tmp_path)
    written = schema.read_literal(folder / "input_schema.py")
    if written is None:
        pytest.skip("no input_schema.py, or one that has to be run")
    run = schema.from_json(read(str(folder)).as_json())
    assert [(i.name, i.datatype, i.required, i.example) for i in written.inputs] == [
        (i.name, i.datatype, i.required, i.example) for i in run.inputs
    ]
    assert written.flags == run.flags
