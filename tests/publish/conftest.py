"""A tiny random Llama as a Model artifact, and a home to publish it in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from puna.artifacts import Model, drafting
from puna.home import Home

VERIFIED = {"passed": True, "reasons": [], "merged_loss": 1.2345, "trained_loss": 1.2346, "replies_equal": "4 of 4"}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def make_model(home: Home) -> Callable[..., Model]:
    """A model folder with as little in it as the registry looks at."""

    def make(text: str = "one", verification: object = VERIFIED) -> Model:
        with drafting("model", home.models) as draft:
            (draft.path / "config.json").write_text(json.dumps({"model_type": "llama", "text": text}))
            (draft.path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
            draft.made_from |= {"base": "hub:acme/base@abc", "dataset": "d" * 64, "adapter": "a" * 64}
            if verification is not None:
                draft.metrics["verification"] = verification
        return Model.open(draft.final)

    return make
