"""Which names are adapters, and what an engine is told to load them."""

import json
from pathlib import Path

import pytest

from puna.worker.engines import engine
from puna.worker.engines.vllm import options


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle's adapters.json, named by the environment as the control plane does."""
    monkeypatch.setenv("PUNA_ADAPTERS", str(tmp_path / "adapters.json"))
    write(tmp_path, takes_others=False)
    return tmp_path


def write(folder: Path, takes_others: bool) -> None:
    named = {"acme/tone": {"path": "adapters/acme--tone", "rank": 12}}
    (folder / "adapters.json").write_text(json.dumps({"adapters": named, "takes_others": takes_others}))


def test_an_adapters_name_leads_to_its_folder_and_a_models_to_nothing(bundle: Path) -> None:
    found = engine.adapter_of("acme/tone")
    assert found is not None and (found.name, found.path) == ("acme/tone", str(bundle / "adapters/acme--tone"))
    assert engine.adapter_of("acme/whole") is None and options.adapter_options({"model": "acme/whole"}) == {}
    assert options.adapter_options({"model": bundle}) == {}


def test_vllm_gets_room_for_the_rank_and_for_others_where_requests_bring_them(bundle: Path) -> None:
    assert options.adapter_options({"model": "acme/tone"}) == {"enable_lora": True, "max_lora_rank": 16}
    write(bundle, takes_others=True)
    more = options.adapter_options({"model": "acme/tone", "max_loras": 2})
    assert more == {"enable_lora": True, "max_lora_rank": 16, "max_cpu_loras": options.SHARED_IN_MEMORY}


def test_without_a_bundle_nothing_is_an_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PUNA_ADAPTERS", raising=False)
    assert engine.adapter_of("acme/tone") is None and options.adapter_options({"model": "acme/tone"}) == {}
