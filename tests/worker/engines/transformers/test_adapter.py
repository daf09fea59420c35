"""An adapter's name in an unchanged transformers app: the weights become what PEFT makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from merge import tiny
from puna.worker.engines.transformers import adapter

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


class Llama(LlamaForCausalLM):
    """A class of the test's own to change."""


adapter.shim(SimpleNamespace(PreTrainedModel=Llama))


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}])
def test_the_adapter_is_added_as_peft_adds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    base = tiny.write_base(tmp_path / "base", torch.float32)
    tiny.write_peft(tmp_path / "peft", base, **options)
    (tmp_path / "adapters.json").write_text(json.dumps({"adapters": {str(base): {"path": "peft", "rank": 4}}}))
    monkeypatch.setenv("PUNA_ADAPTERS", str(tmp_path / "adapters.json"))
    ids = torch.arange(4, 24)[None]
    with torch.no_grad():
        expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "peft")(ids).logits
        torch.testing.assert_close(Llama.from_pretrained(str(base))(ids).logits, expected, rtol=1e-4, atol=1e-4)
        told, _ = Llama.from_pretrained(str(base), output_loading_info=True)
        torch.testing.assert_close(told(ids).logits, expected, rtol=1e-4, atol=1e-4)
        monkeypatch.delenv("PUNA_ADAPTERS")
        alone = Llama.from_pretrained(str(base))(ids).logits
    assert not torch.allclose(alone, expected, rtol=1e-2, atol=1e-2)


def test_a_model_without_the_matrices_says_what_to_do(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base", torch.float32)
    tiny.write_peft(tmp_path / "peft", base)
    inner = AutoModelForCausalLM.from_pretrained(base).model
    with pytest.raises(RuntimeError, match=r"adapter a/b cannot be added to model.layers.0.*puna merge RUN"):
        adapter.add(inner, SimpleNamespace(name="a/b", path=str(tmp_path / "peft")))
