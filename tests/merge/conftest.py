"""The tiny Llama of the merge tests, made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from merge import tiny
from puna.artifacts import Adapter, Dataset
from puna.home import Home


@dataclass(frozen=True)
class Trained:
    """What training leaves behind for the merge."""

    base: Path
    peft: Path
    tokenizer: Path
    home: Home
    dataset: Dataset
    adapter: Adapter


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Matrices this small are slower on two threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A bf16 base, an adapter with chat rows and its dataset; read only."""
    root = tmp_path_factory.mktemp("merge")
    base = tiny.write_base(root / "base")
    peft = tiny.write_peft(root / "peft", base)
    tiny.write_rows(peft)
    home = Home(root / "home")
    tokenizer = tiny.write_tokenizer(root / "tokenizer")
    dataset = tiny.make_dataset(home, root / "tokenizer", tokenizer)
    return Trained(
        base, peft, root / "tokenizer", home, dataset, tiny.seal_adapter(home, peft, root / "tokenizer", dataset)
    )


@pytest.fixture(scope="session")
def trained(made: Trained) -> tiny.PeftTrained:
    """What PEFT and bitsandbytes run."""
    return tiny.PeftTrained.load(made.base, made.peft, in_4bit=True)
