"""The pretraining script, at a size that takes a second."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from puna.demo import pretrain
from puna.demo import pretrain as tokens

TINY = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 1,
    "num_hidden_layers": 1,
    "num_key_value_heads": 1,
}


def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**pretrain.CONFIG | TINY)).to(torch.float32)
    pretrain.empty_special_rows(model)
    return model


def test_learning_lowers_the_loss_and_leaves_special_rows_empty() -> None:
    model, stream = tiny_model(), torch.arange(400, dtype=torch.int32) % 7
    settings = pretrain.Pretraining(steps=12, rows=2, length=32, learning_rate=1e-2, warmup_steps=2, nf4_share=1)
    before = pretrain.evaluate(model, stream, 32)
    pretrain.learn(model, stream, settings)
    assert pretrain.evaluate(model, stream, 32) < before - 1
    assert float(model.lm_head.weight[tokens.ORDINARY :].detach().abs().max()) < 1e-4
    assert float(model.model.embed_tokens.weight[tokens.EOS :].detach().abs().max()) < 1e-4


def test_rows_begin_with_the_begin_token_and_go_on_with_the_stream() -> None:
    rows = pretrain.windows(torch.arange(100, dtype=torch.int32), torch.tensor([0, 50]), 4)
    assert rows.tolist() == [[tokens.BOS, 0, 1, 2], [tokens.BOS, 50, 51, 52]]


def test_weights_are_rounded_inside_and_exact_again_outside() -> None:
    model = tiny_model()
    weight = model.model.layers[0].mlp.up_proj.weight.detach()
    exact = weight.clone()
    with pretrain.seen_as_nf4(model):
        assert len(torch.unique(weight[0])) <= 16
        assert 0.05 < float((weight - exact).norm() / exact.norm()) < 0.15
    assert torch.equal(weight, exact)


def test_rounding_is_bitsandbytes_without_its_double_quantisation() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(128, 64, generator=torch.Generator().manual_seed(1))
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    ours = pretrain.round_to_nf4(weight, torch.tensor(pretrain.NF4))
    assert torch.equal(ours, functional.dequantize_4bit(packed, state))


def test_the_script_writes_a_model_that_loads(tmp_path: Path) -> None:
    settings = pretrain.Pretraining(text_chars=200_000, steps=2, rows=2, length=64)
    loss = pretrain.pretrain(settings, tmp_path, "cpu", pretrain.CONFIG | TINY)
    assert 0 < loss < 9
    assert json.loads((tmp_path / "config.json").read_text())["hidden_size"] == 64
    assert LlamaForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
