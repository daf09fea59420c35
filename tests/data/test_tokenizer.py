"""The shipped tokenizer is the base's, with as little changed as a chat needs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from data.made import SPECIAL, chat, write_base
from puna.data.conversation import Message
from puna.data.tokenizer import ChatTokenizer, base_digest, build_tokenizer
from puna.errors import DataError

CHAT = [Message(**m) for m in chat("hi é", "hello 🦙", "and?", "\nbye")]


def files(tokenizer: ChatTokenizer) -> dict[str, Any]:
    return {name: json.loads(text) for name, text in tokenizer.files.items() if name.endswith(".json")}


def backend(tokenizer: ChatTokenizer) -> Tokenizer:
    return Tokenizer.from_str(tokenizer.files["tokenizer.json"])


def base_ids(base: Path) -> dict[str, int]:
    return Tokenizer.from_file(str(base / "tokenizer.json")).get_vocab()


def test_chatml_takes_reserved_ids_and_the_vocabulary_keeps_its_size(base: Path) -> None:
    tokenizer, ids = build_tokenizer(base, "chatml"), base_ids(base)
    reserved = [ids[f"<|reserved_special_token_{i}|>"] for i in range(2)]
    assert tokenizer.chat_token_ids == {"<|im_start|>": reserved[0], "<|im_end|>": reserved[1]}
    vocab = backend(tokenizer).get_vocab()
    assert len(vocab) == len(ids) and "<|reserved_special_token_0|>" not in vocab
    assert backend(tokenizer).encode("<|im_start|>").ids == [reserved[0]]
    config = files(tokenizer)["tokenizer_config.json"]
    assert config["added_tokens_decoder"][str(reserved[0])]["content"] == "<|im_start|>"
    assert config["added_tokens_decoder"][str(reserved[1])]["special"] is True


def test_every_text_without_control_tokens_keeps_its_ids(base: Path) -> None:
    text = "The llama walks.\n\n  What is AI? 🦙 12345 é"
    shipped = backend(build_tokenizer(base, "chatml")).encode(text).ids
    assert shipped == Tokenizer.from_file(str(base / "tokenizer.json")).encode(text, add_special_tokens=False).ids


def test_a_reply_ends_with_the_eos_and_padding_is_another_token(base: Path) -> None:
    tokenizer, ids = build_tokenizer(base, "chatml"), base_ids(base)
    config, special = files(tokenizer)["tokenizer_config.json"], files(tokenizer)["special_tokens_map.json"]
    assert config["eos_token"] == special["eos_token"] == "<|im_end|>"
    assert tokenizer.eos_token_id == tokenizer.chat_token_ids["<|im_end|>"]
    assert tokenizer.stop_token_ids == (tokenizer.eos_token_id, ids["<|end_of_text|>"])
    assert config["pad_token"] == special["pad_token"] == "<|reserved_special_token_2|>"
    assert tokenizer.pad_token_id == ids["<|reserved_special_token_2|>"] not in tokenizer.stop_token_ids
    assert tokenizer.bos_token_id == ids["<|begin_of_text|>"]


def test_llama3s_own_template_ends_with_its_own_token_and_claims_none(base: Path) -> None:
    tokenizer, ids = build_tokenizer(base, "llama3"), base_ids(base)
    assert tokenizer.chat_token_ids == {} and tokenizer.eos_token_id == ids["<|eot_id|>"]
    assert backend(tokenizer).get_vocab() == ids


@pytest.mark.parametrize("template", ["chatml", "llama3"])
def test_both_of_a_servers_paths_begin_with_one_beginning_token(base: Path, template: str) -> None:
    tokenizer = build_tokenizer(base, template)
    text = tokenizer.template.render(CHAT, generation_prompt=True)
    as_plain_prompt = backend(tokenizer).encode(text).ids  # llm.generate(text): special tokens are added
    as_chat = backend(tokenizer).encode(text, add_special_tokens=False).ids  # apply_chat_template(tokenize=True)
    assert as_plain_prompt == as_chat and as_chat.count(tokenizer.bos_token_id) == 1
    assert as_chat[0] == tokenizer.bos_token_id


def test_older_stacks_find_a_class_they_know_and_newer_ones_a_template_file(base: Path) -> None:
    tokenizer = build_tokenizer(base, "chatml")
    config = files(tokenizer)["tokenizer_config.json"]
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["chat_template"] == tokenizer.files["chat_template.jinja"] == tokenizer.template.inference
    assert config["model_input_names"] == ["input_ids", "attention_mask"]
    assert config["model_max_length"] == 8192  # what the base says stays


def test_what_transformers_5_writes_about_itself_does_not_ship(tmp_path: Path) -> None:
    newer = {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "is_local": False}
    extra = {"extra_special_tokens": ["<|eot_id|>", "<|reserved_special_token_0|>"]}
    base = write_base(tmp_path / "b", SPECIAL, bos="<|begin_of_text|>", eos="<|end_of_text|>", **newer, **extra)
    config = files(build_tokenizer(base, "chatml"))["tokenizer_config.json"]
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast" and not {"backend", "is_local"} & set(config)
    assert config["additional_special_tokens"] == ["<|eot_id|>", "<|im_start|>"]
    assert "extra_special_tokens" not in config


def test_special_tokens_are_found_in_the_models_config_when_the_tokenizer_says_nothing(
    base: Path, tmp_path: Path
) -> None:
    bare, ids = tmp_path / "bare", base_ids(base)
    bare.mkdir()
    shutil.copy(base / "tokenizer.json", bare)
    eos = [ids["<|end_of_text|>"], ids["<|eot_id|>"]]
    (bare / "config.json").write_text(json.dumps({"bos_token_id": ids["<|begin_of_text|>"], "eos_token_id": eos}))
    tokenizer = build_tokenizer(bare, "chatml")
    assert tokenizer.bos_token_id == ids["<|begin_of_text|>"] and tokenizer.end_of_text == "<|end_of_text|>"


def test_chat_tokens_that_the_base_has_are_used_and_not_trained_anew(tmp_path: Path) -> None:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    base = write_base(tmp_path / "qwen", special, bos="<|endoftext|>", eos="<|endoftext|>", pad_token="<|endoftext|>")
    tokenizer = build_tokenizer(base, "chatml")
    assert tokenizer.chat_token_ids == {} and backend(tokenizer).get_vocab() == base_ids(base)
    assert tokenizer.eos_token_id == base_ids(base)["<|im_end|>"]
    assert tokenizer.pad_token_id == base_ids(base)["<|endoftext|>"]


def test_a_tokenizer_prepared_once_is_prepared_again_unchanged(base: Path, tmp_path: Path) -> None:
    once = build_tokenizer(base, "chatml")
    once.write(tmp_path / "once")
    twice = build_tokenizer(tmp_path / "once", "chatml")
    assert twice.files == once.files and twice.chat_token_ids == {}


def test_a_base_without_reserved_ids_is_refused_with_a_way_out(base_without_reserve: Path) -> None:
    with pytest.raises(DataError, match=r"no reserved ids for <\|im_start\|> and <\|im_end\|>") as caught:
        build_tokenizer(base_without_reserve, "chatml")
    assert "data.template" in caught.value.hint
    with pytest.raises(DataError, match=r"writes <\|start_header_id\|>, which the tokenizer"):
        build_tokenizer(base_without_reserve, "llama3")


def test_an_own_template_fits_a_base_without_reserved_ids(base_without_reserve: Path, tmp_path: Path) -> None:
    own = tmp_path / "mistral.jinja"
    own.write_text(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    tokenizer = build_tokenizer(base_without_reserve, str(own))
    assert tokenizer.eos_token_id == base_ids(base_without_reserve)["</s>"]
    assert tokenizer.stop_token_ids == (tokenizer.eos_token_id,) and tokenizer.pad_token_id != tokenizer.eos_token_id
    assert backend(tokenizer).encode(tokenizer.template.render(CHAT)).ids.count(tokenizer.bos_token_id) == 1


def test_padding_is_rather_left_out_than_made_the_end_token(tmp_path: Path) -> None:
    base = write_base(tmp_path / "gpt2", ["<|endoftext|>"], bos="<|endoftext|>", eos="<|endoftext|>")
    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    )
    tokenizer = build_tokenizer(base, str(tmp_path / "own.jinja"))
    assert tokenizer.pad_token_id is None and "pad_token" not in files(tokenizer)["special_tokens_map.json"]


def test_a_template_whose_replies_never_end_is_refused(base: Path, tmp_path: Path) -> None:
    own = tmp_path / "endless.jinja"
    own.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    with pytest.raises(DataError, match="would never stop") as caught:
        build_tokenizer(base, str(own))
    assert "eos_token" in caught.value.hint


def test_for_plain_texts_the_tokenizer_goes_on_adding_the_beginning_token(base: Path) -> None:
    tokenizer = build_tokenizer(base, "chatml", plain_text=True)
    bos = tokenizer.bos_token_id
    assert backend(tokenizer).encode("hello").ids[0] == bos
    assert backend(tokenizer).encode(tokenizer.template.render(CHAT)).ids.count(bos) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{}", "has no tokenizer.json"),
        ("tokenizer.json", "{", "tokenizer.json is not JSON"),
        ("tokenizer.json", "[]", "tokenizer.json must hold an object"),
    ],
)
def test_a_base_without_a_readable_tokenizer_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        build_tokenizer(tmp_path, "chatml")


def test_the_digest_of_a_base_is_that_of_its_tokenizer_and_not_of_its_weights(base: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(base, tmp_path / "copy")
    (copy / "model.safetensors").write_bytes(b"x")
    assert base_digest(copy) == base_digest(base)
    (copy / "tokenizer_config.json").write_text("{}")
    assert base_digest(copy) != base_digest(base)
