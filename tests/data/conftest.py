"""Fixtures of this room: bases, a home, a file of chats, recipes."""

from pathlib import Path
from typing import Any

import pytest

from data.made import SPECIAL, MakeRecipe, chat, write_base, write_jsonl
from puna.config.recipe import Recipe, parse
from puna.home import Home


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(
        tmp_path_factory.mktemp("base") / "llama3", SPECIAL, bos="<|begin_of_text|>", eos="<|end_of_text|>"
    )


@pytest.fixture(scope="session")
def base_without_reserve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "mistral", ["<unk>", "<s>", "</s>"], bos="<s>", eos="</s>")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """Twelve conversations of one to three rounds."""
    rows = [
        {
            "messages": chat(
                *(f"{i}: what is {i + r}?" if r % 2 == 0 else f"it is {i * r} é" for r in range(2 * (i % 3 + 1)))
            )
        }
        for i in range(12)
    ]
    return write_jsonl(tmp_path / "chats.jsonl", rows)


@pytest.fixture
def recipe() -> MakeRecipe:
    """A recipe whose data section is the given keys: all rows, a quarter held out, in one process."""

    def make(dataset: Path | str, **data: Any) -> Recipe:
        section = {"dataset": str(dataset), "take": None, "test_fraction": 0.25, "processes": 1} | data
        return parse({"name": "r", "base": "b", "data": section})

    return make
