"""The plan: steps as transformers counts them, read from headers, kept as JSON."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import MistralConfig

from puna.artifacts import Dataset
from puna.errors import MachineError, TrainError
from puna.train.planning.plan import Steps, TrainingPlan, describe, plan
from puna.train.rows import pack, share, step_rows
from train.tiny import VOCAB, make_recipe, write_dataset, write_split

LENGTHS = np.random.default_rng(0).integers(5, 60, 45).astype(np.int64)


@pytest.mark.parametrize("world", [1, 3])
def test_tokens_of_each_step_and_of_the_largest_pass(world: int) -> None:
    steps = Steps.foresee(LENGTHS, 10, 7, 42, world)
    taken = []
    for step in range(7):
        chosen = LENGTHS[step_rows(45, 10, step, 42)]
        taken += [[int(chosen[i]) for i in part] for part in share(chosen, world)]
    assert [sum(s) for s in steps.shares] == [sum(s) for s in taken]
    assert steps.mean_tokens == pytest.approx(sum(map(sum, taken)) / len(taken))
    assert steps.most_tokens == max(map(sum, taken))
    for budget in (60, 100, 100_000):
        passes = [sum(s[i] for i in one) for s in taken for one in pack(s, budget)]
        assert steps.largest_pass(budget) == max(passes)


def test_the_plan_counts_rows_tokens_and_steps(base_dir: Path, dataset: Dataset) -> None:
    made = plan(make_recipe(), base_dir, dataset, "cpu")
    assert (made.rows_train, made.rows_test, made.rows_per_step, made.steps, made.epochs) == (24, 5, 6, 8, 2.0)
    assert made.tokens_train == dataset.manifest.metrics["tokens_train"]
    # LoRA of rank 4 on two layers, and two rows of embedding and head.
    assert made.trainable_parameters == 2 * 4 * (128 + 96 + 96 + 128 + 192 + 192 + 192) + 2 * 2 * 64
    assert made.memory.total < made.memory_available_bytes and made.seconds > 0
    assert any("float32" in reason for reason in made.reasons)


@pytest.mark.parametrize(("training", "steps"), [
    ({"num_train_epochs": 1, "per_device_train_batch_size": 5, "gradient_accumulation_steps": 1}, 5),  # ceil(24 / 5)
    ({"num_train_epochs": 1.5}, 6),
    ({"max_steps": 3}, 3),
])  # fmt: skip
def test_steps_are_counted_as_transformers_does(training: dict, steps: int, base_dir: Path, dataset: Dataset) -> None:
    assert plan(make_recipe(training=training), base_dir, dataset, "cpu").steps == steps


def test_a_plan_survives_json(base_dir: Path, dataset: Dataset) -> None:
    made = plan(make_recipe(), base_dir, dataset, "cpu")
    assert TrainingPlan.from_dict(json.loads(json.dumps(made.as_dict()))) == made
    assert {name for name, _ in describe(made)} >= {"steps", "memory", "time"}


def test_doubtful_values_are_kept_and_said(base_dir: Path, dataset: Dataset) -> None:
    recipe = make_recipe(training={"learning_rate": 8e-6, "optim": "paged_adamw_8bit"})
    reasons = " ".join(plan(recipe, base_dir, dataset, "cpu").reasons)
    assert "8e-06" in reasons and "nothing to page" in reasons


def test_a_dataset_of_another_vocabulary_is_refused(base_dir: Path, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path)
    row = np.array([1, 5000, 2], np.int32)
    write_split(dataset.path / "train.safetensors", [(row, row)])
    with pytest.raises(TrainError, match="token 5000"):
        plan(make_recipe(), base_dir, dataset, "cpu")
    write_split(dataset.path / "train.safetensors", [(row, np.full(3, -100, np.int32))])
    with pytest.raises(TrainError, match="no token to learn"):
        plan(make_recipe(), base_dir, dataset, "cpu")


def test_a_device_that_is_not_there_is_refused(base_dir: Path, dataset: Dataset) -> None:
    with pytest.raises(MachineError, match="tpu"):
        plan(make_recipe(), base_dir, dataset, "tpu")


def test_a_row_may_fill_the_window_of_the_base_and_no_more(bases: Callable[..., Path], tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = bases(MistralConfig(vocab_size=VOCAB, num_key_value_heads=2, sliding_window=64, **sizes))
    dataset = write_dataset(tmp_path)
    for length in (64, 65):
        row = np.full(length, 7, np.int32)
        write_split(dataset.path / "train.safetensors", [(row, row)])
        if length == 64:
            assert plan(make_recipe(), base, dataset, "cpu").tokens_train == 64
        else:
            with pytest.raises(TrainError, match="sees 64 tokens at a time, a row has 65"):
                plan(make_recipe(), base, dataset, "cpu")
