"""The base as it arrives: whole files or shards, chat rows with a start, and clear words when something is wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from puna.errors import TrainError
from puna.train.model.loading import Choices, add_fresh_chat_rows, load_llama
from puna.train.model.shape import read_shape
from train.tiny import END, START, write_base

PLAIN = Choices("cpu", torch.float32, nf4=False)
CHAT = {"<|im_start|>": START, "<|im_end|>": END}


def test_a_sharded_base_is_the_same_model(base_dir: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(base_dir).save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    ids = torch.arange(20)
    assert torch.equal(load_llama(base_dir, PLAIN).logits(ids), load_llama(tmp_path / "shards", PLAIN).logits(ids))


def test_rows_that_were_never_trained_start_at_the_mean_of_the_others(base_dir: Path) -> None:
    model = load_llama(base_dir, PLAIN)
    assert add_fresh_chat_rows(model, CHAT) == ["<|im_end|>", "<|im_start|>"]
    others = [i for i in range(300) if i not in CHAT.values()]
    assert model.chat is not None
    torch.testing.assert_close(model.chat.embed[0], model.embed_VD[others].mean(0))
    torch.testing.assert_close(model.chat.head[1], model.head_VD[others].mean(0))
    assert model.chat.embed.dtype == torch.float32


def test_rows_that_are_trained_already_are_kept(bases: Callable[..., Path]) -> None:
    model = load_llama(bases(), PLAIN)
    before = model.logits(torch.tensor([START, 5, END]))
    assert add_fresh_chat_rows(model, CHAT) == []
    torch.testing.assert_close(model.logits(torch.tensor([START, 5, END])), before)


def test_with_a_tied_base_one_set_of_rows_is_both(bases: Callable[..., Path]) -> None:
    model = load_llama(bases(tie_word_embeddings=True), PLAIN)
    add_fresh_chat_rows(model, CHAT)
    assert model.chat is not None and model.chat.head is model.chat.embed
    assert list(model.named_masters()) == ["chat.embed"]
    with torch.no_grad():
        model.chat.embed.mul_(2)
    ids = torch.tensor([START, 7, 8])
    theirs = AutoModelForCausalLM.from_pretrained(_doubled(bases))
    torch.testing.assert_close(model.logits(ids), theirs(ids[None]).logits[0], atol=1e-5, rtol=1e-5)


def _doubled(bases: Callable[..., Path]) -> Path:
    folder = bases(tie_word_embeddings=True)
    reference = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        reference.model.embed_tokens.weight[[START, END]] *= 2
    reference.save_pretrained(folder)
    return folder


def test_the_shape_is_read_without_weights(base_dir: Path) -> None:
    shape = read_shape(base_dir)
    assert (shape.vocab, shape.hidden, shape.layers, shape.kv_heads, shape.head_dim) == (300, 64, 2, 2, 16)
    assert shape.layer_parameters == 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt2"}, "'gpt2' model"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"rope_scaling": {"rope_type": "yarn"}, "rope_parameters": None}, "'yarn'"),
    ],
)
def test_a_base_of_another_architecture_is_refused_by_name(change: dict, words: str, tmp_path: Path) -> None:
    folder = write_base(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(TrainError, match=words):
        read_shape(folder)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    folder = write_base(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(TrainError, match="no .safetensors"):
        read_shape(folder)


@pytest.mark.parametrize("damage", [lambda whole: b"short", lambda whole: b"\xff" * 16, lambda whole: whole[:-100]])
def test_a_damaged_file_is_refused(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    file = write_base(tmp_path) / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(TrainError, match=r"model\.safetensors cannot be read"):
        read_shape(tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": 1}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index_is_refused(text: str, tmp_path: Path) -> None:
    write_base(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(TrainError, match=r"index\.json cannot be read"):
        read_shape(tmp_path)
