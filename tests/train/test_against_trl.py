"""Fifty steps beside TRL's SFTTrainer, PEFT and bitsandbytes: the same loss in every step, the same weights after."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.artifacts import Dataset
from puna.config.recipe import PROJECTIONS, Recipe
from puna.tokens import TokenRows
from puna.train.model.loading import Choices, add_fresh_lora, load_llama
from puna.train.reporting.record import Run
from puna.train.rows import step_rows
from puna.train.run import train
from puna.train.trained import load_trained
from train.tiny import make_recipe, write_base, write_dataset

pytestmark = pytest.mark.process  # starts none, but importing TRL takes twenty seconds

STEPS, ROWS_PER_STEP, PASSES = 50, 6, 2
RANK, ALPHA = 8, 16
Weights = dict[str, torch.Tensor]

LLAMA: dict[str, Any] = {
    "vocab_size": 4000, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "rope_parameters": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64, "rope_theta": 500000.0,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """What two trainers are compared by."""

    losses: list[float]
    norms: list[float]
    weights: Weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of Llama-3.1's shape, made small."""
    return write_base(tmp_path_factory.mktemp("base") / "llama", **LLAMA)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Fifteen whole steps an epoch, of rows as long as the rotary embedding's original length and a half."""
    return write_dataset(tmp_path_factory.mktemp("rows"), train=15 * ROWS_PER_STEP, longest=96)


def recipe_of(lr: float) -> Recipe:
    """The recipe that both follow."""
    values = {
        "per_device_train_batch_size": ROWS_PER_STEP // PASSES, "gradient_accumulation_steps": PASSES,
        "max_steps": STEPS, "learning_rate": lr, "warmup_steps": 5, "logging_steps": 1, "eval_steps": STEPS,
        "save_steps": STEPS,
    }  # fmt: skip
    lora = {"lora_r": RANK, "lora_alpha": ALPHA, "train_chat_tokens": False}  # TRL cannot train single rows of a head
    return make_recipe(training=values, lora=lora)


def with_puna(recipe: Recipe, folder: Path, rows: Dataset, run_dir: Path) -> Trained:
    adapter = train(recipe, folder, rows, run_dir, device="cpu")
    lines = [line for line in Run(run_dir).metrics() if "loss" in line]
    masters = load_trained(adapter, folder, recipe, "cpu").model.named_masters()
    weights = {name: master.detach() for name, master in masters.items()}
    return Trained([line["loss"] for line in lines], [line["grad_norm"] for line in lines], weights)


def first_weights(recipe: Recipe, folder: Path) -> Weights:
    model = load_llama(folder, Choices("cpu", torch.float32))
    add_fresh_lora(model, recipe)
    return {name: master.detach().clone() for name, master in model.named_masters().items()}


def rows_in_order(recipe: Recipe, rows: Dataset) -> dict[str, list[list[int]]]:
    """Every row that the run will see, in the order in which it sees them."""
    split = TokenRows.load(rows, "train")
    order = [int(i) for at in range(STEPS) for i in step_rows(len(split), ROWS_PER_STEP, at, recipe.training.seed)]
    assert len(order) == STEPS * ROWS_PER_STEP  # no epoch ends in the middle of a step
    ids, labels = zip(*(split[i] for i in order), strict=True)
    return {"input_ids": [row.tolist() for row in ids], "labels": [row.tolist() for row in labels]}


def with_trl(recipe: Recipe, folder: Path, rows: Dataset, out: Path) -> Trained:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's, its dependencies' and torch's own
        trainer = trl_trainer(recipe, folder, rows, out)
        # TRL casts the LoRA weights of a 4-bit base to bfloat16: ours are float32, and these are ours. The optimiser
        # is made later, by train(), and so holds what is put here.
        first = first_weights(recipe, folder)
        for name, value in first.items():
            trainer.model.get_parameter(name.replace(".weight", ".default.weight")).data = value.clone()
        trainer.train()
    assert {name.replace(".default", "") for name, p in trainer.model.named_parameters() if p.requires_grad} == {*first}
    lines = [line for line in trainer.state.log_history if "loss" in line]
    weights = {name: trainer.model.get_parameter(name.replace(".weight", ".default.weight")).data for name in first}
    return Trained([line["loss"] for line in lines], [line["grad_norm"] for line in lines], weights)


def quantised_base(folder: Path) -> Any:
    """In 4 bits by bitsandbytes, prepared by PEFT."""
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    # "eager", as attention that masks the padding in the plainest way.
    base = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=four_bits, device_map={"": "cpu"}, dtype=torch.float32, attn_implementation="eager"
    )
    return prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)


def trl_trainer(recipe: Recipe, folder: Path, rows: Dataset, out: Path) -> Any:
    import datasets
    from peft import LoraConfig
    from torch.utils.data import SequentialSampler
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    training = recipe.training
    config = SFTConfig(
        output_dir=str(out),
        use_cpu=True,
        bf16=False,  # TRL's default is bfloat16 autocast; ours computes in float32 on a CPU
        gradient_checkpointing=False,
        per_device_train_batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        max_steps=training.max_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.lr_scheduler_type,
        warmup_steps=training.warmup_steps,
        optim="adamw_torch",
        weight_decay=training.weight_decay,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_epsilon=training.adam_epsilon,
        max_grad_norm=training.max_grad_norm,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True},  # the rows are tokens and labels already, none is cut
    )

    class InOrder(SFTTrainer):
        """The same rows in every step: the data set lies in our order already, and transformers would shuffle it."""

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset)

    # The loss needs no setting: transformers counts the labels of all passes of a step, as we do, and TRL divides the
    # sum of each pass by that.
    return InOrder(
        model=quantised_base(folder),
        args=config,
        train_dataset=datasets.Dataset.from_dict(rows_in_order(recipe, rows)),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_file=str(rows.path / "tokenizer" / "tokenizer.json"), pad_token="w2", eos_token="w1"
        ),
        peft_config=LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
            target_modules=list(PROJECTIONS),
        ),
    )


def largest_difference(mine: list[float], theirs: list[float]) -> float:
    """Of one step, as a share of their value."""
    assert len(mine) == len(theirs) == STEPS
    return max(abs(a - b) / b for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("lr", [1e-4, 1e-3])
def test_fifty_steps_are_those_of_trl(lr: float, folder: Path, rows: Dataset, tmp_path: Path) -> None:
    recipe = recipe_of(lr)
    mine = with_puna(recipe, folder, rows, tmp_path / "run")
    theirs = with_trl(recipe, folder, rows, tmp_path / "trl")
    first = first_weights(recipe, folder)
    assert sum(theirs.losses[-10:]) < sum(theirs.losses[:10])
    assert max(theirs.norms) > recipe.training.max_grad_norm  # or clipping was never compared
    loss = largest_difference(mine.losses, theirs.losses)
    norm = largest_difference(mine.norms, theirs.norms)
    # Of what training did to the weights, not of the weights: A begins at numbers that would hide it.
    moved = {name: (mine.weights[name] - value, theirs.weights[name] - value) for name, value in first.items()}
    weights = max(float((a - b).norm() / b.norm()) for a, b in moved.values())
    # Measured: 2e-7, 2e-7 and 2e-6, which is float32's own rounding.
    found = f"loss {loss:.1e}, gradient norm {norm:.1e}, weights {weights:.1e}"
    assert loss < 1e-5 and norm < 1e-5 and weights < 1e-3, found
