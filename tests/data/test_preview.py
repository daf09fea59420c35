"""A prepared row, shown token by token."""

from pathlib import Path

import pytest

from data.made import MakeRecipe, chat, write_jsonl
from puna.data.prepare import prepare
from puna.data.preview import preview
from puna.errors import NotFoundError
from puna.home import Home


def test_the_texts_joined_are_the_row_and_the_labels_are_the_reply(
    base: Path, home: Home, tmp_path: Path, recipe: MakeRecipe
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": chat("hi 🦙", "hello é 🦙!")}])
    tokens = preview(prepare(recipe(path, test_fraction=0), base, home))
    assert "".join(t.text for t in tokens) == (
        "<|begin_of_text|><|im_start|>user\nhi 🦙<|im_end|>\n<|im_start|>assistant\nhello é 🦙!<|im_end|>\n"
    )
    assert "".join(t.text for t in tokens if t.label) == "hello é 🦙!<|im_end|>"


def test_a_row_that_is_not_there_is_an_error_that_says_how_many_are(
    base: Path, home: Home, chats: Path, recipe: MakeRecipe
) -> None:
    dataset = prepare(recipe(chats), base, home)
    assert preview(dataset, 2, "test")
    with pytest.raises(NotFoundError, match="no row 3 in the test split") as caught:
        preview(dataset, 3, "test")
    assert "3, counted from 0" in caught.value.hint
