"""Tiny bases and datasets that the train tests share."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from puna.artifacts import Dataset
from train.tiny import END, START, write_base, write_dataset

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with grouped heads; the chat tokens' rows are zero, as Llama-3's reserved rows are."""
    folder = write_base(tmp_path_factory.mktemp("base") / "tiny")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for matrix in (model.model.embed_tokens.weight, model.lm_head.weight):
            matrix[[START, END]] = 0
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Twenty-four rows to learn, five held out."""
    return write_dataset(tmp_path_factory.mktemp("datasets"))


@pytest.fixture
def bases(tmp_path: Path) -> Callable[..., Path]:
    """Write a base with changes to its config."""
    return lambda config=None, **changes: write_base(tmp_path / "base", config, **changes)
