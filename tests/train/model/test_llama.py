"""Puna's Llama against transformers' models: the same logits from the same files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig, Qwen2Config, Qwen3Config

from puna.train.batches import make_batch
from puna.train.model.block import Cache
from puna.train.model.loading import Choices, load_llama
from puna.train.model.lora import Dropout
from train.tiny import VOCAB, random_rows

PLAIN = Choices("cpu", torch.float32, nf4=False)
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
LLAMA31 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 500000.0,
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 4, "head_dim": 32},
        {"rope_parameters": LLAMA31},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        MistralConfig(**SMALL, sliding_window=None),
        Qwen2Config(**SMALL),
        Qwen3Config(**SMALL, head_dim=16, tie_word_embeddings=True),
    ],
    ids=["grouped", "one-kv-head", "own-head-dim", "llama3.1", "linear", "tied", "biases", "mistral", "qwen2", "qwen3"],
)
def test_logits_equal_those_of_transformers(config: Any, bases: Callable[..., Path]) -> None:
    folder = bases(**config) if isinstance(config, dict) else bases(config)
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    ids = torch.randint(0, VOCAB, (90,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, mine = theirs(ids[None], use_cache=False).logits[0], load_llama(folder, PLAIN).logits(ids)
    torch.testing.assert_close(mine, expected, atol=2e-5, rtol=1e-5)


def test_packed_documents_give_the_loss_of_each_alone(base_dir: Path) -> None:
    model = load_llama(base_dir, PLAIN)
    rows = random_rows(6, seed=5)
    batch = make_batch(rows, "cpu")
    packed = model.loss(batch)
    alone = [make_batch([row], "cpu") for row in rows]
    expected = sum(model.loss(b) for b in alone)
    torch.testing.assert_close(packed, expected, atol=1e-5, rtol=1e-6)


def test_the_cache_gives_the_logits_of_a_whole_pass(base_dir: Path) -> None:
    model, ids, cache = load_llama(base_dir, PLAIN), torch.arange(30) + 5, Cache()
    with torch.no_grad():
        whole = model.logits(ids)
        for start, end in ((0, 20), (20, 21), (21, 30)):
            torch.testing.assert_close(model.logits(ids[start:end], cache)[-1], whole[end - 1], atol=1e-5, rtol=1e-5)


def test_recomputing_layers_changes_no_gradient(base_dir: Path) -> None:
    batch, grads = make_batch(random_rows(4), "cpu"), []
    for recompute in (0, 2):
        model = load_llama(base_dir, PLAIN)
        model.recompute_layers = recompute
        for linear in model.linears:
            size = linear.weight.shape
            generator = torch.Generator().manual_seed(9)
            a = torch.randn(4, size[1], generator=generator)
            linear.add_lora(a, torch.randn(size[0], 4, generator=generator) * 0.1, 8)
        model.loss(batch, Dropout(0.2, 1, 2, 3)).backward()
        grads.append([p.grad for p in model.named_masters().values()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
