"""The model card: a header that parses, figures that were measured, and nothing of the owner's disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import yaml

from puna.artifacts import MANIFEST, Model, write_json
from puna.config.recipe import parse
from puna.home import Home
from puna.publish.card import hub_id, model_card
from puna.publish.registry import RegisteredVersion, Registry


@pytest.fixture
def version(home: Home, make_model: Callable[..., Model]) -> RegisteredVersion:
    model = make_model("one")
    recipe = parse({"name": "chat", "base": "meta-llama/Meta-Llama-3-8B", "data": {"template": "/home/me/t.jinja"}})
    write_json(model.path / MANIFEST, {**model.manifest.__dict__, "config": {"recipe": recipe.as_dict()}})
    published = Registry(home).publish(model, "acme/chat")
    return dataclasses.replace(published, lineage={"base": "hub:meta-llama/Meta-Llama-3-8B@abc", "adapter": "a" * 64})


def header(card: str) -> dict[str, object]:
    return dict(yaml.safe_load(card.split("---\n")[1]))


def test_the_header_names_base_data_and_licence(version: RegisteredVersion) -> None:
    found = header(model_card(version, "acme/llama3-chat"))
    assert found["base_model"] == "meta-llama/Meta-Llama-3-8B" and found["license"] == "llama3"
    assert found["datasets"] == ["HuggingFaceH4/ultrachat_200k"] and found["library_name"] == "transformers"


def test_recipe_figures_lineage_and_use_stand_in_it(version: RegisteredVersion) -> None:
    card = model_card(version, "acme/llama3-chat")
    for text in ("rank 16, alpha 64.0", "1.2345", "4 of 4", "a" * 64, 'model="acme/llama3-chat"', "acme/chat:1"):
        assert text in card, text


def test_local_paths_stay_at_home(version: RegisteredVersion) -> None:
    local = dataclasses.replace(version, lineage={"base": "/home/me/llama"})
    card = model_card(local, "acme/chat")
    assert "/home/me" not in card and "local folder" in card and "base_model" not in header(card)


def test_a_base_of_unknown_licence_gets_no_label(version: RegisteredVersion) -> None:
    other = dataclasses.replace(version, lineage={"base": "hub:acme/own@abc"}, verification=None)
    card = model_card(other, "acme/chat")
    assert "license" not in header(card) and "It was not." in card


@pytest.mark.parametrize(
    ("ref", "name"),
    [("hub:a/b@c", "a/b"), ("a/b", "a/b"), ("/a/b", None), ("demo", None), ("./a/b", None), ("a/b:2", None)],
)
def test_a_hub_id_is_told_from_other_refs(ref: str, name: str | None) -> None:
    assert hub_id(ref) == name
