"""A dataset is prepared once per input, whole or not at all, and says what is in it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.made import MakeRecipe, chat, write_jsonl
from puna.artifacts import Dataset
from puna.data.prepare import prepare, sample, split
from puna.errors import DataError, NotFoundError
from puna.home import Home
from puna.tokens import NOT_LEARNT, TokenRows, length_histogram, preview


def test_the_same_seed_takes_the_same_rows() -> None:
    assert sample(1000, 10, 42) == sample(1000, 10, 42) != sample(1000, 10, 43)
    assert sample(1000, 20, 42)[:10] == sample(1000, 10, 42)


def test_all_rows_are_taken_when_there_are_no_more() -> None:
    assert sorted(sample(5, None, 42)) == sorted(sample(5, 10_000, 42)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("total", "fraction", "held_out"), [(10_000, 0.01, 100), (10, 0.01, 1), (9, 0.5, 5), (7, 0, 0)]
)
def test_no_row_is_lost_or_in_both_parts(total: int, fraction: float, held_out: int) -> None:
    train, test = split(total, fraction, 42)
    assert len(test) == held_out and sorted(train + test) == list(range(total))


def test_rows_to_train_on_must_be_left() -> None:
    with pytest.raises(DataError, match="1 row cannot be split") as caught:
        split(1, 0.01, 42)
    assert "test_fraction: 0" in caught.value.hint


class Watcher:
    """Keeps what it is told; Ctrl-C at the first sign of progress when asked."""

    def __init__(self, *, interrupts: bool = False) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []
        self.interrupts = interrupts

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def advance(self, done: int, total: int, **figures: float) -> None:
        if self.interrupts:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_the_artifact_holds_what_training_reads(base: Path, home: Home, chats: Path, recipe: MakeRecipe) -> None:
    dataset = prepare(recipe(chats), base, home)
    assert not dataset.damage()
    train, test = TokenRows.load(dataset, "train"), TokenRows.load(dataset, "test")
    metrics = dataset.manifest.metrics
    assert (len(train), len(test)) == (metrics["rows_train"], metrics["rows_test"]) == (9, 3)
    assert (train.lengths.sum(), test.lengths.sum()) == (metrics["tokens_train"], metrics["tokens_test"])
    labels = np.concatenate([train.labels, test.labels])
    assert metrics["labelled_share"] == (labels != NOT_LEARNT).mean() and 0.1 < metrics["labelled_share"] < 0.9
    assert metrics["lengths"]["max"] == max(train.lengths.max(), test.lengths.max()) >= metrics["lengths"]["p50"]
    assert metrics["truncated_rows"] == metrics["skipped_rows"] == 0
    assert set(metrics["chat_token_ids"]) == {"<|im_start|>", "<|im_end|>"}
    assert metrics["stop_token_ids"][0] == metrics["eos_token_id"] == metrics["chat_token_ids"]["<|im_end|>"]
    assert metrics["pad_token_id"] not in metrics["stop_token_ids"]
    assert train.input_ids[train.offsets[:-1]].tolist() == [metrics["bos_token_id"]] * 9
    assert dataset.path.parent == home.datasets and dataset.path.name == dataset.digest[:16]
    assert dataset.manifest.config["base"] == "b" and dataset.manifest.config["template"] == "chatml"
    assert {p.name for p in (dataset.path / "tokenizer").iterdir()} == {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    }


def test_samples_are_held_out_conversations_up_to_a_question(
    base: Path, home: Home, chats: Path, recipe: MakeRecipe
) -> None:
    dataset = prepare(recipe(chats), base, home)
    samples = json.loads((dataset.path / "samples.json").read_text())
    test = TokenRows.load(dataset, "test")
    assert len(samples) == 3
    for row, (ids, _) in zip(samples, test, strict=True):
        assert row["messages"][-1]["role"] == "user" and row["reference"].startswith("it is")
        assert ids[: len(row["prompt_ids"])].tolist() == row["prompt_ids"]


def test_a_long_conversation_is_asked_at_an_earlier_turn(
    base: Path, home: Home, tmp_path: Path, recipe: MakeRecipe
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": chat("short", "reply", "long " * 100, "end")}] * 4)
    samples = json.loads((prepare(recipe(path, max_length=60), base, home).path / "samples.json").read_text())
    assert [(len(s["messages"]), s["reference"]) for s in samples] == [(1, "reply")]


def test_the_same_input_is_prepared_once(base: Path, home: Home, chats: Path, recipe: MakeRecipe) -> None:
    first, again = Watcher(), Watcher()
    dataset = prepare(recipe(chats), base, home, first)
    changed = {p: p.stat().st_mtime_ns for p in home.datasets.rglob("*")}
    # another place and another number of processes make no difference
    chats = chats.rename(chats.with_name("moved.jsonl"))
    assert prepare(recipe(chats, processes=2), base, home, again) == dataset
    assert first.stages == ["load", "tokenise"] and again.stages == ["load"]
    assert changed == {p: p.stat().st_mtime_ns for p in home.datasets.rglob("*")}


def test_two_homes_give_one_digest(base: Path, tmp_path: Path, chats: Path, recipe: MakeRecipe) -> None:
    digests = {prepare(recipe(chats), base, Home(tmp_path / name)).digest for name in ("one", "other")}
    assert len(digests) == 1


@pytest.mark.parametrize(
    "choice",
    [
        {"max_length": 30},
        {"shuffle_seed": 1},
        {"template": "llama3"},
        {"loss_on": "all"},
        {"take": 8},
        {"test_fraction": 0.5},
    ],
    ids=str,
)
def test_another_choice_is_another_dataset(
    base: Path, home: Home, chats: Path, recipe: MakeRecipe, choice: dict[str, object]
) -> None:
    assert prepare(recipe(chats), base, home).digest != prepare(recipe(chats, **choice), base, home).digest


def test_an_edited_file_is_another_dataset(base: Path, home: Home, chats: Path, recipe: MakeRecipe) -> None:
    before = prepare(recipe(chats), base, home)
    chats.write_text(chats.read_text().replace("what", "which"))
    assert prepare(recipe(chats), base, home).digest != before.digest


def test_an_edited_template_is_another_dataset(
    base: Path, home: Home, chats: Path, tmp_path: Path, recipe: MakeRecipe
) -> None:
    own = tmp_path / "own.jinja"
    own.write_text("{% for m in messages %}{{ m.role }} {{ m.content }}<|eot_id|>{% endfor %}")
    before = prepare(recipe(chats, template=str(own)), base, home)
    own.write_text(own.read_text().replace("}} {{", "}}: {{"))
    assert prepare(recipe(chats, template=str(own)), base, home).digest != before.digest


def test_a_removed_dataset_is_made_again(base: Path, home: Home, chats: Path, recipe: MakeRecipe) -> None:
    dataset = prepare(recipe(chats), base, home)
    shutil.rmtree(dataset.path)
    assert prepare(recipe(chats), base, home).digest == dataset.digest
    assert Dataset.open(dataset.path)


def test_an_interrupt_leaves_nothing(base: Path, home: Home, chats: Path, recipe: MakeRecipe) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare(recipe(chats), base, home, Watcher(interrupts=True))
    assert list(home.datasets.iterdir()) == []


def test_a_malformed_row_stops_and_leaves_nothing(base: Path, home: Home, chats: Path, recipe: MakeRecipe) -> None:
    chats.write_text(chats.read_text() + '{"messages": [{"role": "user"}]}\n')
    with pytest.raises(DataError, match=r"^chats\.jsonl line 13: `messages\[0\]` has no `content`"):
        prepare(recipe(chats), base, home)
    assert list(home.datasets.iterdir()) == []


def test_malformed_rows_are_skipped_and_counted(base: Path, home: Home, chats: Path, recipe: MakeRecipe) -> None:
    chats.write_text(chats.read_text() + '{"messages": []}\n{"messages":\n')
    watcher = Watcher()
    metrics = prepare(recipe(chats, skip_bad_rows=True), base, home, watcher).manifest.metrics
    assert metrics["skipped_rows"] == 2 and metrics["rows_train"] + metrics["rows_test"] == 12
    assert any("2 malformed rows skipped" in note for note in watcher.notes)


def test_rows_that_the_template_refuses_are_named_or_counted(
    base: Path, home: Home, chats: Path, tmp_path: Path, recipe: MakeRecipe
) -> None:
    own = tmp_path / "own.jinja"
    own.write_text(
        "{% for m in messages %}{% if '7: ' in m.content %}{{ raise_exception('seven') }}{% endif %}"
        "{{ m.content }}<|eot_id|>{% endfor %}"
    )
    with pytest.raises(DataError, match=r"chats\.jsonl line 8: chat template own\.jinja refuses it: seven"):
        prepare(recipe(chats, template=str(own)), base, home)
    metrics = prepare(recipe(chats, template=str(own), skip_bad_rows=True), base, home).manifest.metrics
    assert metrics["skipped_rows"] == 1 and metrics["rows_train"] + metrics["rows_test"] == 11


def test_cut_rows_are_counted_and_rows_with_nothing_to_learn_left_are_dropped(
    base: Path, home: Home, tmp_path: Path, recipe: MakeRecipe
) -> None:
    long_reply, long_question = chat("hi", "long " * 50), chat("long " * 50, "hi")
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": m} for m in (long_reply, long_question, chat("a", "b"))] * 2)
    watcher = Watcher()
    dataset = prepare(recipe(path, max_length=40, test_fraction=0), base, home, watcher)
    metrics = dataset.manifest.metrics
    assert metrics["truncated_rows"] == 4 and metrics["truncated_share"] == 4 / 6
    assert metrics["unlearnable_rows"] == 2 and metrics["rows_train"] == 4 and metrics["rows_test"] == 0
    assert all((labels != NOT_LEARNT).any() for _, labels in TokenRows.load(dataset, "train"))
    assert metrics["lengths"]["max"] == 40 and "66.7% of the rows are cut at 40 tokens" in watcher.notes


def test_nothing_left_to_train_on_is_an_error(base: Path, home: Home, tmp_path: Path, recipe: MakeRecipe) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": chat("long " * 50, "hi")}] * 3)
    with pytest.raises(DataError, match="no row is left to train on"):
        prepare(recipe(path, max_length=20), base, home)


def test_plain_texts_have_tokens_and_no_samples(base: Path, home: Home, tmp_path: Path, recipe: MakeRecipe) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": f"Llama number {i}."} for i in range(4)])
    dataset = prepare(recipe(path), base, home)
    assert dataset.manifest.metrics["labelled_share"] == 1.0
    assert json.loads((dataset.path / "samples.json").read_text()) == []


def test_the_texts_joined_are_the_row_and_the_labels_are_the_reply(
    base: Path, home: Home, tmp_path: Path, recipe: MakeRecipe
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": chat("hi 🦙", "hello é 🦙!")}])
    tokens = preview(prepare(recipe(path, test_fraction=0), base, home))
    assert "".join(t.text for t in tokens) == (
        "<|begin_of_text|><|im_start|>user\nhi 🦙<|im_end|>\n<|im_start|>assistant\nhello é 🦙!<|im_end|>\n"
    )
    assert "".join(t.text for t in tokens if t.label) == "hello é 🦙!<|im_end|>"


def test_a_row_that_is_not_there_is_an_error_that_says_how_many_are(
    base: Path, home: Home, chats: Path, recipe: MakeRecipe
) -> None:
    dataset = prepare(recipe(chats), base, home)
    assert preview(dataset, 2, "test")
    with pytest.raises(NotFoundError, match="no row 3 in the test split") as caught:
        preview(dataset, 3, "test")
    assert "3, counted from 0" in caught.value.hint


def test_every_row_is_counted_by_its_length(base: Path, home: Home, chats: Path, recipe: MakeRecipe) -> None:
    dataset = prepare(recipe(chats), base, home)
    longest = dataset.manifest.metrics["lengths"]["max"]
    for bars in (1, 4, 12):
        found = length_histogram(dataset, bars)
        assert sum(found.rows) == dataset.manifest.metrics["rows_train"] + dataset.manifest.metrics["rows_test"]
        assert (
            len(found.rows) <= bars and (len(found.rows) - 1) * found.width < longest <= len(found.rows) * found.width
        )
