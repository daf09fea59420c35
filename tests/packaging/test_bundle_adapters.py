"""Bundles of adapters: the name leads to the base, the adapter lies beside it, and adapters.json says so."""

import dataclasses
import json
from pathlib import Path

import pytest

from puna.artifacts import ADAPTER_BASE, SHORT, Adapter, Model, drafting
from puna.errors import ProjectError
from puna.home import Home
from puna.packaging import source
from puna.packaging.bundle import ModelRef, app_env, bundle
from puna.packaging.environment import Environment


@pytest.fixture
def environment(home: Home) -> Environment:
    path = home.environments / ("e" * SHORT)
    return Environment(path, "e" * 64, path / "venv" / "bin" / "python", ())


def base(home: Home, weights: bytes) -> Model:
    with drafting("model", home.models) as draft:
        (draft.path / "model.safetensors").write_bytes(weights)
    return Model.open(draft.final)


@pytest.fixture
def adapter(home: Home) -> ModelRef:
    """The adapter that the project's app.py names."""
    with drafting("adapter", home.models) as draft:
        (draft.path / "adapter_config.json").write_text('{"r": 16}')
        (draft.path / "adapter_model.safetensors").write_bytes(b"pairs")
    made = Adapter.open(draft.final)
    return ModelRef("acme/tiny", 1, made.digest, made.path, base(home, b"base" * 1000), 16)


def test_the_name_leads_to_the_base_and_the_adapter_lies_beside_it(
    folder: Path, home: Home, environment: Environment, adapter: ModelRef
) -> None:
    made = bundle(source.snapshot(folder, home), environment, [adapter], home)
    assert not made.damage()
    view = made.path / "hub" / "models--acme--tiny"
    assert adapter.base is not None
    snapshot = view / "snapshots" / (view / "refs" / "main").read_text()
    assert (snapshot / "model.safetensors").samefile(adapter.base.path / "model.safetensors")
    told = json.loads((made.path / "adapters.json").read_text())
    assert told == {"adapters": {"acme/tiny": {"path": "adapters/acme--tiny", "rank": 16}}, "takes_others": False}
    assert (made.path / "adapters/acme--tiny/adapter_model.safetensors").read_bytes() == b"pairs"
    assert app_env(made, extra={})["PUNA_ADAPTERS"] == str(made.path / "adapters.json")
    assert ADAPTER_BASE not in made.manifest.config


def test_serve_adapter_opens_the_engine_to_others_of_the_same_base(
    folder: Path, home: Home, environment: Environment, adapter: ModelRef
) -> None:
    (folder / "inferless.yaml").write_text("serve: adapter\n")
    kept = source.snapshot(folder, home)
    made = bundle(kept, environment, [adapter], home)
    assert adapter.base is not None and made.manifest.config[ADAPTER_BASE] == adapter.base.digest
    assert json.loads((made.path / "adapters.json").read_text())["takes_others"] is True
    other = dataclasses.replace(adapter, name="acme/other", base=base(home, b"other"))
    with pytest.raises(ProjectError, match="adapters of different bases: acme/tiny, acme/other"):
        bundle(kept, environment, [adapter, other], home)
    whole = ModelRef("acme/tiny", 1, adapter.base.digest, adapter.base.path)
    with pytest.raises(ProjectError, match="the app names no published adapter") as caught:
        bundle(kept, environment, [whole], home)
    assert "--adapter" in caught.value.hint


def test_a_bundle_without_adapters_says_nothing_of_them(folder: Path, home: Home, environment: Environment) -> None:
    made = bundle(source.snapshot(folder, home), environment, [], home)
    assert not (made.path / "adapters.json").exists() and "PUNA_ADAPTERS" not in app_env(made, extra={})
