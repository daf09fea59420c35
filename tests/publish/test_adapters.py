"""Adapters under names: sealed with what they are served on, found by it, and kept apart from models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from puna.artifacts import Adapter, Model, drafting
from puna.errors import ConflictError, NotFoundError, PublishError, UsageError
from puna.home import Home
from puna.publish.hub import push
from puna.publish.registry import SERVING_BASE, Registry, of_base, rank_of, seal
from puna.publish.resolve import resolve_base

Make = Callable[..., Model]


@pytest.fixture
def make_adapter(home: Home, tmp_path: Path) -> Callable[[str], Adapter]:
    """An adapter as a run leaves it."""

    def make(text: str) -> Adapter:
        with drafting("adapter", tmp_path / "run", name=text) as draft:
            (draft.path / "adapter_config.json").write_text(json.dumps({"r": 16, "text": text}))
            (draft.path / "tokenizer").mkdir()
            (draft.path / "tokenizer" / "tokenizer.json").write_text("{}")
            draft.made_from |= {"base": "demo", "dataset": "d" * 64}
        return Adapter.open(draft.final)

    return make


def test_an_adapter_keeps_its_lineage_and_needs_no_verification(
    home: Home, make_model: Make, make_adapter: Callable[[str], Adapter]
) -> None:
    base, adapter = make_model("base"), make_adapter("tone")
    version = Registry(home).publish(seal(adapter, base, home), "acme/tone")
    assert (version.kind, version.digest, version.ref) == ("adapter", adapter.digest, "acme/tone:1")
    assert version.lineage == {"base": "demo", "dataset": "d" * 64, SERVING_BASE: base.digest}
    assert Registry(home).serving_base(version).digest == base.digest
    assert rank_of(version.path) == 16
    assert not Adapter.open(version.path).damage()
    assert (version.path / "adapter_config.json").samefile(adapter.path / "adapter_config.json")


def test_the_adapters_of_a_base_are_found_by_name_and_by_version(
    home: Home, make_model: Make, make_adapter: Callable[[str], Adapter]
) -> None:
    base, other, registry = make_model("base"), make_model("other"), Registry(home)
    first = registry.publish(seal(make_adapter("one"), base, home), "acme/tone")
    second = registry.publish(seal(make_adapter("two"), base, home), "acme/tone")
    registry.publish(seal(make_adapter("three"), other, home), "acme/law")
    registry.publish(make_model("whole"), "acme/whole")
    assert of_base(registry, base.digest) == {
        "acme/tone": str(second.path),
        "acme/tone:1": str(first.path),
        "acme/tone:2": str(second.path),
    }
    registry.alias("acme/tone:1", "latest")
    assert of_base(registry, base.digest)["acme/tone"] == str(first.path)


def test_a_name_is_a_models_or_an_adapters(
    home: Home, make_model: Make, make_adapter: Callable[[str], Adapter]
) -> None:
    registry, base, adapter = Registry(home), make_model("base"), make_adapter("tone")
    registry.publish(make_model(), "acme/whole")
    with pytest.raises(ConflictError, match="acme/whole is published as model, not as adapter"):
        registry.publish(seal(adapter, base, home), "acme/whole")
    version = registry.publish(seal(adapter, base, home), "acme/tone")
    with pytest.raises(ConflictError, match="published as adapter"):
        registry.publish(make_model(), "acme/tone")
    with pytest.raises(UsageError, match="is an adapter"):
        resolve_base("acme/tone", None, home)
    with pytest.raises(PublishError, match="only whole models are pushed"):
        push(version, "acme/tone")


def test_the_model_below_goes_with_its_last_adapter(
    home: Home, make_model: Make, make_adapter: Callable[[str], Adapter]
) -> None:
    registry, base = Registry(home), make_model("base")
    one = registry.publish(seal(make_adapter("one"), base, home), "acme/one")
    registry.publish(seal(make_adapter("two"), base, home), "acme/two")
    registry.delete("acme/one", force=True)
    assert not one.path.exists() and base.path.is_dir()
    registry.delete("acme/two", force=True)
    assert not base.path.exists()


def test_a_damaged_adapter_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="adapter_config.json cannot be read"):
        rank_of(tmp_path)
