"""What a recipe's `base` may be, and what is said when it is nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from puna.artifacts import Model
from puna.errors import NotFoundError
from puna.home import Home
from puna.publish.registry import Registry
from puna.publish.resolve import resolve_base


def test_a_local_folder_is_a_base(make_model: Callable[..., Model], home: Home) -> None:
    path = make_model("one").path
    assert resolve_base(str(path), None, home).path == path
    assert resolve_base(str(path), None, home).ref == str(path)


def test_a_published_name_is_a_base_by_its_version(make_model: Callable[..., Model], home: Home) -> None:
    published = Registry(home).publish(make_model("one"), "acme/base")
    base = resolve_base("acme/base", None, home)
    assert (base.path, base.ref) == (published.path, "acme/base:1")
    assert resolve_base(base.ref, None, home) == base
    with pytest.raises(NotFoundError, match="no version 9"):
        resolve_base("acme/base:9", None, home)


def test_a_missing_folder_is_answered_with_a_similar_one(home: Home, tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    with pytest.raises(NotFoundError, match="is no folder") as caught:
        resolve_base(str(tmp_path / "lama"), None, home)
    assert str(tmp_path / "llama") in caught.value.hint


def test_pickled_weights_are_refused(home: Home, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(NotFoundError, match="never unpickles"):
        resolve_base(str(tmp_path), None, home)


def test_an_empty_folder_is_refused(home: Home, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no config.json"):
        resolve_base(str(tmp_path), None, home)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(NotFoundError, match="has no safetensors"):
        resolve_base(str(tmp_path), None, home)


@pytest.mark.parametrize("ref", ["a b", "acme/base/x", "acme/chat:x", ""])
def test_what_is_no_name_at_all_is_refused_without_asking_the_hub(home: Home, ref: str) -> None:
    with pytest.raises(NotFoundError, match="neither a folder"):
        resolve_base(ref, None, home)
