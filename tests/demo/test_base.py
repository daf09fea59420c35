"""The tiny base as it ships: small, laid out as Llama-3 is, and, like a base model, without an end."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM

import puna.demo
from puna.demo import pretrain, text
from puna.demo import pretrain as tokens

BASE = puna.demo.BASE


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    with safe_open(BASE / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    torch.set_num_threads(threads)


def test_the_base_is_small(weights: dict[str, torch.Tensor]) -> None:
    assert sum(w.numel() for w in weights.values()) <= 4_000_000
    assert all(w.dtype == torch.bfloat16 for w in weights.values())
    assert sum(file.stat().st_size for file in BASE.iterdir()) <= 8_000_000


def test_four_bit_blocks_never_straddle_rows(weights: dict[str, torch.Tensor]) -> None:
    projections = [w for name, w in weights.items() if "_proj" in name]
    assert len(projections) == 7 * pretrain.CONFIG["num_hidden_layers"]
    assert all(side % 64 == 0 for w in projections for side in w.shape)


def test_special_rows_are_next_to_zero_as_in_llama_3(weights: dict[str, torch.Tensor]) -> None:
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        size = weights[name].float().norm(dim=1)
        assert size[: tokens.ORDINARY].min() > 0.05
        assert size[tokens.ORDINARY + 1 :].max() < 1e-3


def test_the_config_is_the_scripts() -> None:
    assert json.loads((BASE / "config.json").read_text()) == pretrain.CONFIG


def test_special_tokens_stand_last_in_llama_3s_order() -> None:
    tokenizer = Tokenizer.from_file(str(BASE / "tokenizer.json"))
    first = tokens.ORDINARY
    assert tokenizer.get_vocab_size() == first + 256 == pretrain.CONFIG["vocab_size"]
    named = {
        0: "<|begin_of_text|>",
        1: "<|end_of_text|>",
        2: "<|reserved_special_token_0|>",
        3: "<|reserved_special_token_1|>",
    }
    named |= {5: "<|reserved_special_token_3|>", 6: "<|start_header_id|>", 7: "<|end_header_id|>"}
    named |= {8: "<|reserved_special_token_4|>", 9: "<|eot_id|>", 10: "<|reserved_special_token_5|>"}
    named |= {255: "<|reserved_special_token_250|>"}
    assert {i: tokenizer.id_to_token(first + i) for i in named} == named
    assert not any(token.startswith("<|im_") for token in tokenizer.get_vocab())


def test_the_tokenizer_loads_in_old_and_new_stacks_and_has_no_chat_template() -> None:
    config = json.loads((BASE / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast" and "chat_template" not in config
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin_of_text|>", "<|end_of_text|>")
    ids = tokenizer("Tika's 123456 llamas\n\n  graze: 草.").input_ids
    assert ids[0] == tokens.BOS and tokens.EOS not in ids
    assert tokenizer.decode(ids[1:]) == "Tika's 123456 llamas\n\n  graze: 草."
    assert all(len(tokenizer(word, add_special_tokens=False).input_ids) == 1 for word in ("user", "assistant"))


def test_the_tokenizer_is_what_the_seed_makes(tmp_path: Path) -> None:
    settings = pretrain.Pretraining()
    tokenizer = tokens.learn_tokenizer(text.documents(settings.seed, settings.tokenizer_chars))
    tokens.save_tokenizer(tokenizer, tmp_path, pretrain.CONFIG["max_position_embeddings"])
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (BASE / file.name).read_bytes(), file.name


def test_the_base_goes_on_and_on(model: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    for prompt in ("One morning", "What is AI?", "Tika is", "user\nWhat is AI?\nassistant\n"):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        said = model.generate(ids, max_new_tokens=64, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        assert len(said) == 64 and int(said.max()) < tokens.ORDINARY, tokenizer.decode(said)


def test_the_base_knows_its_world_in_plain_prose(model: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    for question in puna.demo.questions()[:6]:
        prompt = f"\n\nWhat comes after Monday? After Monday comes Tuesday.\n{question.text}"
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        said = model.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        assert puna.demo.is_right(question.text, tokenizer.decode(said).strip().split("\n")[0])
