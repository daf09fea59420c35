"""What others make of the same rows: transformers, TRL and datasets must agree with this room."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data.made import MakeRecipe, chat, write_jsonl
from puna.config.recipe import DataRecipe
from puna.data.load import open_source
from puna.data.prepare import prepare, sample, split
from puna.data.template import BUILT_IN, load_template
from puna.errors import DataError
from puna.home import Home
from puna.tokens import NOT_LEARNT, TokenRows

# Importing transformers, datasets and TRL takes 5, 3 and 20 seconds.
pytestmark = pytest.mark.process

CHATS = [
    [{"role": "system", "content": "Be brief."}, *chat("hi é 🦙", "hello 🦙")],
    chat("What is AI?", "It is\n\nthe art of making machines think.", "more?", "no"),
    chat("  spaces ", " leading and trailing \n", "\n\nand lines", "\n\nso be it"),
]


def prepared(
    base: Path, home: Home, tmp_path: Path, recipe: MakeRecipe, template: str
) -> tuple[Any, list[Any], list[Any]]:
    """The tokenizer as a server loads it, the conversations, and the rows in the same order."""
    from transformers import AutoTokenizer

    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": m} for m in CHATS])
    dataset = prepare(recipe(path, test_fraction=0, template=template), base, home)
    order = sample(len(CHATS), None, 42)
    tokenizer = AutoTokenizer.from_pretrained(dataset.path / "tokenizer")
    return tokenizer, [CHATS[i] for i in order], list(TokenRows.load(dataset, "train"))


@pytest.mark.parametrize("template", BUILT_IN)
def test_a_servers_tokenizer_gives_the_ids_trained_on_by_both_paths(
    base: Path, home: Home, tmp_path: Path, recipe: MakeRecipe, template: str
) -> None:
    tokenizer, chats, rows = prepared(base, home, tmp_path, recipe, template)
    for messages, (ids, _) in zip(chats, rows, strict=True):
        assert tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"] == ids.tolist()
        assert tokenizer(tokenizer.apply_chat_template(messages, tokenize=False))["input_ids"] == ids.tolist()


@pytest.mark.parametrize("template", BUILT_IN)
def test_prompts_have_the_ids_that_a_server_gives_them(
    base: Path, home: Home, tmp_path: Path, recipe: MakeRecipe, template: str
) -> None:
    from transformers import AutoTokenizer

    path = write_jsonl(tmp_path / "b.jsonl", [{"messages": m} for m in CHATS])
    dataset = prepare(recipe(path, test_fraction=0.5, template=template), base, home)
    tokenizer = AutoTokenizer.from_pretrained(dataset.path / "tokenizer")
    samples = json.loads((dataset.path / "samples.json").read_text())
    assert len(samples) == 2
    for held_out in samples:
        text = tokenizer.apply_chat_template(held_out["messages"], tokenize=False, add_generation_prompt=True)
        assert tokenizer(text)["input_ids"] == held_out["prompt_ids"]


@pytest.mark.parametrize("template", BUILT_IN)
def test_the_mask_is_the_one_transformers_makes(
    base: Path, home: Home, tmp_path: Path, recipe: MakeRecipe, template: str
) -> None:
    tokenizer, chats, rows = prepared(base, home, tmp_path, recipe, template)
    training = load_template(template).training
    for messages, (ids, labels) in zip(chats, rows, strict=True):
        theirs = tokenizer.apply_chat_template(
            messages, chat_template=training, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        assert theirs["input_ids"] == ids.tolist()
        assert theirs["assistant_masks"] == (labels != NOT_LEARNT).astype(int).tolist()


def test_the_tokenizer_survives_being_saved_and_loaded_with_a_models_config(
    base: Path, home: Home, tmp_path: Path, recipe: MakeRecipe
) -> None:
    from transformers import AutoTokenizer

    tokenizer, chats, rows = prepared(base, home, tmp_path, recipe, "chatml")
    tokenizer.save_pretrained(tmp_path / "again")
    (tmp_path / "again" / "config.json").write_text((base / "config.json").read_text())
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again.apply_chat_template(chats[0])["input_ids"] == rows[0][0].tolist()
    assert (again.eos_token, again.pad_token) == ("<|im_end|>", "<|reserved_special_token_2|>")
    assert len(again) == len(AutoTokenizer.from_pretrained(base))
    assert set(again("hi")) == {"input_ids", "attention_mask"}


def test_trl_learns_the_same_tokens(base: Path, home: Home, tmp_path: Path, recipe: MakeRecipe) -> None:
    import warnings

    tokenizer, chats, rows = prepared(base, home, tmp_path, recipe, "chatml")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's, its dependencies' and torch's own
        theirs = _trl_rows(tokenizer, load_template("chatml").training, chats, tmp_path)
    for (ids, labels), row in zip(rows, theirs, strict=True):
        assert row["input_ids"] == ids.tolist()
        learnt = (
            row["labels"]
            if "labels" in row
            else [i if m else NOT_LEARNT for i, m in zip(row["input_ids"], row["assistant_masks"], strict=True)]
        )
        assert learnt == labels.tolist()


def _trl_rows(tokenizer: Any, training_template: str, chats: list[Any], folder: Path) -> list[Any]:
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer.chat_template = training_template
    tiny = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    config = SFTConfig(str(folder / "trl"), assistant_only_loss=True, max_length=2024, use_cpu=True, bf16=False)
    trainer = SFTTrainer(
        model=LlamaForCausalLM(tiny),
        args=config,
        train_dataset=Dataset.from_list([{"messages": m} for m in chats]),
        processing_class=tokenizer,
    )
    return list(trainer.train_dataset)


def test_the_tutorials_rows_are_chosen_and_held_out() -> None:
    from datasets import Dataset

    rows = Dataset.from_dict({"i": list(range(5000))})
    theirs = rows.shuffle(seed=42).select(range(1000))
    chosen = sample(5000, 1000, 42)
    assert theirs["i"][:] == chosen
    parts = theirs.train_test_split(test_size=0.01, seed=42)
    train, test = split(1000, 0.01, 42)
    assert parts["train"]["i"][:] == [chosen[i] for i in train]
    assert parts["test"]["i"][:] == [chosen[i] for i in test]


def test_a_folder_in_the_hubs_layout_is_read_through_datasets(
    base: Path, home: Home, tmp_path: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hub").mkdir()
    write_jsonl(tmp_path / "hub" / "train.jsonl", [{"messages": m, "prompt_id": "x"} for m in CHATS])
    as_folder = recipe(tmp_path / "hub", split="train")
    dataset = prepare(as_folder, base, home)
    assert prepare(as_folder, base, home) == dataset
    as_file = prepare(recipe(tmp_path / "hub" / "train.jsonl"), base, home)
    assert as_file.digest == dataset.digest
    with pytest.raises(DataError, match="Unknown split") as caught:
        open_source(DataRecipe(dataset=str(tmp_path / "hub"), split="train_sft"))
    assert "data.split" in caught.value.hint


def test_without_a_network_the_hub_is_said_to_be_out_of_reach_with_a_way_out(tmp_path: Path) -> None:
    code = (
        "from puna.data.load import open_source; from puna.config.recipe import DataRecipe\n"
        "from puna.errors import DataError\n"
        "try: open_source(DataRecipe())\n"
        "except DataError as error: print(error.message, '|', error.hint)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "the Hub cannot be reached for dataset HuggingFaceH4/ultrachat_200k" in ran.stdout
    assert "`dataset: demo` needs no network" in ran.stdout


def test_neither_preparing_nor_its_processes_import_torch(base: Path, tmp_path: Path, chats: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from puna.home import Home; from puna.config.recipe import parse\n"
        "from puna.data.prepare import prepare\n"
        f"data = {{'dataset': {str(chats)!r}, 'processes': 1}}\n"
        "recipe = parse({'name': 'r', 'base': 'b', 'data': data})\n"
        f"prepare(recipe, Path({str(base)!r}), Home(Path({str(tmp_path)!r})))\n"
        "assert 'torch' not in sys.modules and 'datasets' not in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
