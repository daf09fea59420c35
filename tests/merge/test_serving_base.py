"""The base that an adapter is served on: base and adapter together are the trained model, and many share one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from merge import tiny
from merge.conftest import Trained
from puna.artifacts import Adapter, Model
from puna.home import Home
from puna.merge.stream import merge, serving_base

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def under(made: Trained, home: Home, adapter: Adapter, base: Path | None = None, **recipe: object) -> Model:
    return serving_base(adapter, base or made.base, home, base_ref="tiny", recipe=tiny.recipe(**recipe))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


def test_only_the_chat_rows_differ_from_the_original_base(made: Trained, home: Home) -> None:
    model = under(made, home, made.adapter, merge={"base": "original"})
    before, after = weights(made.base), weights(model.path)
    rows = load_file(made.adapter.path / "chat_rows.safetensors")
    ids = rows["token_ids"].tolist()
    assert set(before) == set(after)
    for name, tensor in after.items():
        same = (tensor == before[name]).flatten(1).all(1) if tensor.dim() > 1 else tensor == before[name]
        changed = (~same).nonzero().flatten().tolist()
        assert changed == (ids if name in (EMBED, HEAD) else []), name
    torch.testing.assert_close(after[EMBED][ids], rows["embed"].bfloat16())
    config = json.loads((model.path / "generation_config.json").read_text())
    assert config["eos_token_id"] and (model.path / "tokenizer.json").is_file()
    assert (model.manifest.made_from, model.manifest.config["base"]) == ({"base": "tiny"}, "original")


def test_with_the_adapter_on_it_replies_as_the_merged_model(made: Trained, tmp_path: Path, home: Home) -> None:
    base = tiny.write_base(tmp_path / "base", torch.float32)
    peft = tiny.write_peft(tmp_path / "peft", base)
    tiny.write_rows(peft)
    adapter = tiny.seal_adapter(home, peft, made.tokenizer, made.dataset)
    model = under(made, home, adapter, base)
    whole = merge(adapter, base, home, base="dequantised", base_ref="tiny", recipe=tiny.recipe())
    ids = torch.arange(4, 24)[None]
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(whole.path, dtype=torch.float32)(ids).logits
        served = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32)
        alone = served(ids).logits
        together = PeftModel.from_pretrained(served, adapter.path)(ids).logits
    torch.testing.assert_close(together, merged, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(alone, merged, rtol=1e-2, atol=1e-2)


def test_adapters_that_share_chat_rows_share_a_base_and_others_do_not(
    made: Trained, tmp_path: Path, home: Home
) -> None:
    first = under(made, home, made.adapter)
    peft = tiny.write_peft(tmp_path / "stronger", made.base, strength=0.2)
    tiny.write_rows(peft)
    assert under(made, home, tiny.seal_adapter(home, peft, made.tokenizer, made.dataset)).digest == first.digest
    tiny.write_rows(peft, same=True)
    assert under(made, home, tiny.seal_adapter(home, peft, made.tokenizer, made.dataset)).digest != first.digest
    assert under(made, home, made.adapter, merge={"base": "original"}).digest != first.digest
