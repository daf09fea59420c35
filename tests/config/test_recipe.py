"""A recipe says what it means, or what is wrong with it."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from puna.config.recipe import PROJECTIONS, Recipe, load, parse
from puna.errors import RecipeError

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "llama3"
LEAST: dict[str, Any] = {"name": "r", "base": "demo"}

# Every argument that the tutorial passes to its two config objects, its loader, its split and its trainer.
TUTORIAL = {
    "quantization": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "float16",
    },
    "lora": {"lora_alpha": 64, "lora_dropout": 0.05, "lora_r": 16, "bias": "none", "target_modules": PROJECTIONS},
    "training": {
        "optim": "paged_adamw_8bit",
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "per_device_eval_batch_size": 8,
        "save_steps": 50,
        "logging_steps": 50,
        "learning_rate": 8e-6,
        "eval_steps": 10,
        "num_train_epochs": 1,
        "warmup_steps": 30,
        "lr_scheduler_type": "linear",
    },
    "data": {
        "dataset": "HuggingFaceH4/ultrachat_200k",
        "split": "train_sft",
        "take": 10_000,
        "shuffle_seed": 42,
        "test_fraction": 0.01,
        "template": "chatml",
        "max_length": 2024,
    },
}
WITHOUT_A_KEY = (
    "task_type", "output_dir", "evaluation_strategy", "do_eval", "log_level", "dataset_text_field", "device_map",
    "token", "max_seq_length", "tokenizer", "num_proc", "prepare_model_for_kbit_training", "setup_chat_format",
    "push_to_hub", "merge_and_unload",
)  # fmt: skip


def with_key(section: str, key: str, value: Any) -> dict[str, Any]:
    return {**LEAST, section: {key: value}} if section else {**LEAST, key: value}


def test_the_tutorials_recipe_has_the_tutorials_numbers() -> None:
    recipe = load(EXAMPLES / "recipe-tutorial.yaml")
    for section, values in TUTORIAL.items():
        for key, value in values.items():
            assert getattr(getattr(recipe, section), key) == value, key
    assert recipe.base == "meta-llama/Meta-Llama-3-8B" and recipe.rows_per_step == 16
    assert recipe.publish.name == "rbgo/inferless-llama-3-8B"  # the tutorial's app.py loads this name


def test_the_tutorials_recipe_writes_each_number_or_says_why_there_is_no_key() -> None:
    text = (EXAMPLES / "recipe-tutorial.yaml").read_text()
    written = yaml.safe_load(text)
    for section, values in TUTORIAL.items():
        assert set(values) <= set(written[section]), section
    comments = " ".join(line.partition("#")[2] for line in text.splitlines())
    for word in WITHOUT_A_KEY:
        assert word in comments, word


def test_the_recommended_recipe_is_what_it_says() -> None:
    recipe = load(EXAMPLES / "recipe.yaml")
    assert 1e-4 <= recipe.training.learning_rate <= 2e-4 and recipe.training.optim == "adamw"
    assert recipe.quantization.bnb_4bit_compute_dtype == "bfloat16" and recipe.lora.lora_dropout == 0
    assert recipe.data.loss_on == "assistant" and recipe.data.max_length == 2048
    assert recipe.training.eval_steps == 100 and recipe.merge.base == "auto"


@pytest.mark.parametrize("name", ["recipe", "recipe-tutorial"])
def test_a_recipe_survives_being_written_down(name: str) -> None:
    recipe = load(EXAMPLES / f"{name}.yaml")
    again = parse(yaml.safe_load(yaml.safe_dump(recipe.as_dict())))
    assert again == recipe and again.digest == recipe.digest


def test_the_defaults_survive_being_written_down() -> None:
    recipe = parse(LEAST)
    assert parse(recipe.as_dict()).digest == recipe.digest == Recipe(**LEAST).digest


def test_a_run_of_version_0_1_is_known_by_its_digest_still() -> None:
    before = "7981242f2a5a3e14f7aac7bdcae724543b80eb5da3b1be4133aa78069bcaebb2"
    assert parse({"name": "a", "base": "demo"}).digest == before


def test_every_value_counts_in_the_digest() -> None:
    digests = {parse(with_key("training", "seed", seed)).digest for seed in (1, 2)} | {parse(LEAST).digest}
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("values", "message", "hint"),
    [
        (with_key("", "trainig", {}), "unknown key `trainig`", "did you mean `training`?"),
        (
            with_key("training", "learningrate", 1),
            "unknown key `training.learningrate`",
            "did you mean `learning_rate`?",
        ),
        (with_key("data", "max_len", 1), "unknown key `data.max_len`", "did you mean `max_length`?"),
        (with_key("lora", "r", 16), "unknown key `lora.r`", "lora_r"),
        (with_key("data", "loss_on", "assistent"), "`data.loss_on` is 'assistent'", "did you mean `assistant`?"),
        (with_key("training", "optim", "sgd"), "`training.optim` is 'sgd'", "adamw"),
        (with_key("training", "report_to", "wandb"), "`training.report_to` must be a list", "write [wandb]"),
        ({"base": "demo"}, "`name` is missing", "add `name:`"),
        (with_key("", "data", 5), "`data` must hold keys and values, not 5", ""),
    ],
)
def test_a_slip_gets_the_nearest_key(values: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(values)
    assert message in caught.value.message and hint in caught.value.hint


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("", "name", "Has Spaces"),
        ("", "base", ""),
        ("data", "max_length", 7),
        ("data", "test_fraction", 1),
        ("data", "take", 1),
        ("data", "processes", 0),
        ("data", "shuffle_seed", -1),
        ("lora", "lora_r", 0),
        ("lora", "lora_alpha", 0),
        ("lora", "lora_dropout", 1),
        ("lora", "target_modules", []),
        ("lora", "target_modules", ["lm_head"]),
        ("lora", "target_modules", ["q_proj", "q_proj"]),
        ("training", "per_device_train_batch_size", 0),
        ("training", "max_steps", 0),
        ("training", "tokens_per_batch", 0),
        ("training", "recompute_layers", -1),
        ("training", "learning_rate", 0),
        ("training", "learning_rate", ".nan"),
        ("training", "num_train_epochs", float("inf")),
        ("training", "warmup_steps", 1.5),
        ("training", "adam_beta2", 1),
        ("training", "weight_decay", -0.1),
        ("training", "seed", True),
        ("quantization", "load_in_4bit", "yes"),
        ("publish", "name", "no-owner"),
        ("publish", "hub", "a/b/c"),
        ("serve", "max_replica", 0),
        ("serve", "min_replica", 2),
        ("serve", "inference_time_s", 0),
        ("", "name", "Llama-3"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(section: str, key: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=key):
        parse(with_key(section, key, value))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("publish", "name", "acme/a--b"),
        ("publish", "name", "acme/chat-"),
        ("serve", "max_replica", 1001),
        ("serve", "inference_time_s", 7201),
        ("serve", "scale_down_delay_s", 86401),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_when_the_file_is_read(
    tmp_path: Path, section: str, key: str, value: Any
) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(with_key(section, key, value)))
    with pytest.raises(RecipeError, match=f"{section}.{key}"):
        load(tmp_path / "r.yaml")
    parse(with_key(section, key, value))  # a run of an older version is read still


def test_what_a_recipe_becomes_is_named_after_it() -> None:
    made = parse(LEAST | {"name": "llama3.1--chat-"})
    assert (made.model, made.endpoint) == ("puna/llama3.1-chat", "llama3-1--chat")
    assert parse(LEAST | {"publish": {"name": "acme/x"}}).model == "acme/x"


@pytest.mark.parametrize("value", ["8e-6", 8e-6, "0.000008"])
def test_numbers_are_read_as_people_write_them(value: Any) -> None:
    assert parse(with_key("training", "learning_rate", value)).training.learning_rate == 8e-6


def test_whole_numbers_of_any_size_are_kept() -> None:
    assert parse(with_key("training", "seed", 2**60 + 1)).training.seed == 2**60 + 1
    assert parse(with_key("data", "take", "1e4")).data.take == 10_000
    assert parse(with_key("data", "take", None)).data.take is None


def test_every_section_may_be_empty() -> None:
    sections = [f.name for f in dataclasses.fields(Recipe) if dataclasses.is_dataclass(getattr(parse(LEAST), f.name))]
    assert parse({**LEAST, **dict.fromkeys(sections)}) == parse(LEAST)


def written(folder: Path, base: str, dataset: str, template: str) -> Recipe:
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump({"name": "r", "base": base, "data": {"dataset": dataset, "template": template}})
    )
    return load(folder / "recipe.yaml")


def test_paths_are_taken_from_the_recipes_folder(tmp_path: Path) -> None:
    (tmp_path / "models" / "base").mkdir(parents=True)
    recipe = written(tmp_path, "models/base", "./chats.jsonl", "own.jinja")
    assert recipe.base == str(tmp_path / "models" / "base")
    assert recipe.data.dataset == str(tmp_path / "chats.jsonl")
    assert recipe.data.template == str(tmp_path / "own.jinja")


def test_a_missing_file_is_looked_for_beside_the_recipe_and_not_elsewhere(tmp_path: Path) -> None:
    assert written(tmp_path, "demo", "chats.jsonl", "chatml").data.dataset == str(tmp_path / "chats.jsonl")


def test_names_stay_names_whatever_lies_beside_the_recipe(tmp_path: Path) -> None:
    for name in ("demo", "llama3"):
        (tmp_path / name).mkdir()
    recipe = written(tmp_path, "demo", "owner/dataset", "llama3")
    assert (recipe.base, recipe.data.dataset, recipe.data.template) == ("demo", "owner/dataset", "llama3")


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [", "is not YAML"), ("- a", "must hold keys and values, not a list"), ("", "`name` is missing")],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(content)
    with pytest.raises(RecipeError, match=message):
        load(tmp_path / "r.yaml")


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(RecipeError, match=str(path)):
            load(path)
