"""The training recipe: one YAML file, one frozen dataclass a section, the tutorial's numbers as defaults."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from puna import names
from puna.config import settings
from puna.config.reading import Number, Origin, Whole, read_yaml
from puna.errors import RecipeError

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STRICT = ConfigDict(extra="forbid", coerce_numbers_to_str=True)
SERVE = Origin(RecipeError, {name: f"serve.{name}" for name in settings.Settings.model_fields})
Positive = Annotated[int, Field(ge=1), Whole]
NotNegative = Annotated[int, Field(ge=0), Whole]
Fraction = Annotated[FiniteFloat, Field(ge=0, lt=1), Number]
Flag = Annotated[bool, Field(strict=True)]
NAMES = ("demo", "chatml", "llama3")  # never paths, whatever lies beside the recipe
FILES = (".json", ".jsonl", ".parquet", ".csv", ".jinja", ".jinja2", ".j2")  # always paths, even of nothing


@dataclass(frozen=True, config=STRICT)
class DataRecipe:
    """The conversations to learn from."""

    dataset: str = "HuggingFaceH4/ultrachat_200k"
    """A hub id, or a local .json, .jsonl, .parquet or .csv file (relative to the recipe), or `demo`."""
    split: str = "train_sft"
    """The split of a hub dataset; local files have none."""
    revision: str | None = None
    """The hub dataset's commit, for a run that can be repeated exactly."""
    take: Annotated[int, Field(ge=2), Whole] | None = 10_000
    """Rows to use, after shuffling; all when null."""
    shuffle_seed: NotNegative = 42
    test_fraction: Fraction = 0.01
    """The share of rows held out for evaluation."""
    template: str = "chatml"
    """`chatml`, `llama3`, or a Jinja file (relative to the recipe)."""
    loss_on: Literal["assistant", "all"] = "assistant"
    """Which tokens are learnt: assistant turns with their end token, or every token."""
    max_length: Annotated[int, Field(ge=8), Whole] = 2024
    """Tokens a row is cut at."""
    skip_bad_rows: Flag = False
    """Skip and count malformed rows instead of stopping at the first."""
    processes: Positive | None = None
    """Processes that tokenise; the number of cores when null."""

    def __post_init__(self) -> None:
        check(self.dataset != "", "data.dataset is empty")


@dataclass(frozen=True, config=STRICT)
class QuantizationRecipe:
    """The form in which the frozen base is held."""

    load_in_4bit: Flag = True
    bnb_4bit_quant_type: Literal["nf4"] = "nf4"
    """The one that there is."""
    bnb_4bit_use_double_quant: Flag = True
    bnb_4bit_compute_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """float16 is accepted for the tutorial's sake; bf16 has its speed without its overflow."""


@dataclass(frozen=True, config=STRICT)
class LoraRecipe:
    """The weights that are trained."""

    lora_r: Positive = 16
    lora_alpha: Annotated[FiniteFloat, Field(gt=0), Number] = 64.0
    lora_dropout: Fraction = 0.05
    use_rslora: Flag = False
    """Scale by lora_alpha / sqrt(lora_r) instead of lora_alpha / lora_r (rsLoRA): for high ranks."""
    bias: Literal["none"] = "none"
    target_modules: tuple[str, ...] = PROJECTIONS
    train_chat_tokens: Flag = True
    """Also train the embedding and head rows of the template's new tokens: Llama-3's reserved rows are empty."""

    def __post_init__(self) -> None:
        check(len(self.target_modules) > 0, f"lora.target_modules is empty; valid: {', '.join(PROJECTIONS)}")
        for name in self.target_modules:
            check(name in PROJECTIONS, f"lora.target_modules has `{name}`; valid: {', '.join(PROJECTIONS)}")
        check(len({*self.target_modules}) == len(self.target_modules), "lora.target_modules names one twice")


@dataclass(frozen=True, config=STRICT)
class TrainingRecipe:
    """Batches, optimiser, schedule and limits of the training."""

    per_device_train_batch_size: Positive = 8
    gradient_accumulation_steps: Positive = 2
    per_device_eval_batch_size: Positive = 8
    """The tutorial's; changes nothing: held-out rows go through in passes of as many tokens as fit."""
    num_train_epochs: Annotated[FiniteFloat, Field(gt=0), Number] = 1.0
    max_steps: Positive | None = None
    """Stop after this many optimiser steps, whatever the epochs."""
    learning_rate: Annotated[FiniteFloat, Field(gt=0), Number] = 8e-6
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_steps: NotNegative = 30
    optim: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "paged_adamw_8bit"
    weight_decay: Annotated[FiniteFloat, Field(ge=0), Number] = 0.0
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.999
    adam_epsilon: Annotated[FiniteFloat, Field(gt=0), Number] = 1e-8
    max_grad_norm: Annotated[FiniteFloat, Field(ge=0), Number] = 1.0
    save_steps: Positive = 50
    save_total_limit: Positive = 2
    """Checkpoints kept; older ones go."""
    logging_steps: Positive = 50
    eval_steps: Positive = 10
    seed: NotNegative = 42
    neftune_noise_alpha: Annotated[FiniteFloat, Field(ge=0), Number] | None = None
    """Noise on the embeddings of each document while training (NEFTune), uniform in alpha / sqrt(length x width)."""
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    tokens_per_batch: Positive | None = None
    """Token budget of one forward pass; chosen from the GPU's memory when null."""
    recompute_layers: NotNegative | None = None
    """Layers whose activations are recomputed; chosen from the GPU's memory when null."""
    memory: str | None = None
    """The most device memory to use, such as `16GiB`; all that is free when null."""
    precision: Literal["bf16", "fp8"] = "bf16"
    """`fp8` multiplies by the frozen matrices in 8 bits: faster, less exact; LoRA and the head stay in 16."""


@dataclass(frozen=True, config=STRICT)
class MergeRecipe:
    """The base to which the adapter is added."""

    base: Literal["auto", "original", "dequantised"] = "auto"
    """Which base the adapter is added to; `auto` measures both on the held-out rows."""


@dataclass(frozen=True, config=STRICT)
class PublishRecipe:
    """Names under which the model is published."""

    name: str | None = None
    """`owner/name` in the local registry; `puna/<recipe name>` when null."""
    hub: str | None = None
    """`owner/name` on the Hugging Face Hub; nothing is pushed when null."""

    def __post_init__(self) -> None:
        if self.hub is not None:
            names.check("hub", self.hub, what="publish.hub", error=RecipeError)
        if self.name is not None:
            names.check("hub", self.name, what="publish.name", error=RecipeError)


@dataclass(frozen=True, config=STRICT)
class ServeRecipe:
    """The endpoint that `puna ship` makes of it."""

    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """`auto`: vllm where there is a GPU, else transformers."""
    min_replica: Annotated[int, Whole] = settings.DEFAULTS.min_replica
    max_replica: Annotated[int, Whole] = settings.DEFAULTS.max_replica
    scale_down_delay_s: Annotated[FiniteFloat, Number] = settings.DEFAULTS.scale_down_delay_s
    inference_time_s: Annotated[FiniteFloat, Number] = settings.DEFAULTS.inference_time_s

    def __post_init__(self) -> None:
        # The runs of older versions are read again, which allowed more.
        settings.check(settings.at_most(self.settings), SERVE)

    @property
    def settings(self) -> dict[str, Any]:
        """The endpoint's settings, by their names in the API."""
        return {name: value for name, value in vars(self).items() if name in settings.Settings.model_fields}


EMPTY = BeforeValidator(lambda section: {} if section is None else section)
"""A section with nothing under it is as one that is not there."""


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """Everything about one run."""

    name: str
    """Of its runs, its model (`puna/<name>`) and its endpoint: `llama3.1-chat` serves as `llama3-1-chat`."""
    base: str
    """A hub id, a local folder, a published `owner/name`, or `demo` (the tiny Llama that ships with Puna)."""
    base_revision: str | None = None
    data: Annotated[DataRecipe, EMPTY] = field(default_factory=DataRecipe)
    quantization: Annotated[QuantizationRecipe, EMPTY] = field(default_factory=QuantizationRecipe)
    lora: Annotated[LoraRecipe, EMPTY] = field(default_factory=LoraRecipe)
    training: Annotated[TrainingRecipe, EMPTY] = field(default_factory=TrainingRecipe)
    merge: Annotated[MergeRecipe, EMPTY] = field(default_factory=MergeRecipe)
    publish: Annotated[PublishRecipe, EMPTY] = field(default_factory=PublishRecipe)
    serve: Annotated[ServeRecipe, EMPTY] = field(default_factory=ServeRecipe)

    def __post_init__(self) -> None:
        check(self.base != "", "base is empty: a hub id, a folder, a published name or `demo`")
        names.check("recipe", self.name, what="name", error=RecipeError)

    @property
    def model(self) -> str:
        """The published model that it becomes, `owner/name`."""
        return self.publish.name or names.model_of(self.name)

    @property
    def endpoint(self) -> str:
        """The endpoint, and its runtime, that `puna ship` makes of it."""
        return names.normalise(self.name)

    @property
    def rows_per_step(self) -> int:
        """Conversations that one optimiser step learns from."""
        return self.training.per_device_train_batch_size * self.training.gradient_accumulation_steps

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as they would stand in the YAML file."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[no-any-return]

    @property
    def digest(self) -> str:
        """sha256 of every value, in hex: two recipes with one digest ask for the same run."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()


def check(condition: bool, message: str) -> None:
    """Raise RecipeError with `message` unless `condition` holds."""
    if not condition:
        raise RecipeError(message)


def parse(values: dict[str, Any]) -> Recipe:
    """A recipe from plain values.

    Raises:
        RecipeError: an unknown or missing key, or a value that makes no sense.
    """
    try:
        return TypeAdapter(Recipe).validate_python(values)
    except ValidationError as problem:
        raise Origin(RecipeError).refusal(problem, Recipe) from None


def load(path: Path) -> Recipe:
    """Read a recipe file; relative local paths in it are taken from the file's folder.

    Raises:
        RecipeError: the file is missing, is not YAML, or says something that makes no sense, or that would be refused
            by a later stage.
    """
    recipe = parse(read_yaml(path, RecipeError))
    # Here and not where it is parsed: the recipes of runs that older versions made are read again.
    names.check("model", recipe.model, what="publish.name", error=RecipeError)
    settings.check(recipe.serve.settings, SERVE)
    data = recipe.data
    return dataclasses.replace(
        recipe,
        base=_absolute(recipe.base, path.parent),
        data=dataclasses.replace(
            data, dataset=_absolute(data.dataset, path.parent), template=_absolute(data.template, path.parent)
        ),
    )


def _absolute(value: str, folder: Path) -> str:
    # `a/b` is a hub id unless such a path lies beside the recipe; `./x`, `/x` and `x.jsonl` are always paths.
    if value in NAMES:
        return value
    if value.startswith(("./", "../", "/", "~")) or value.endswith(FILES) or (value and (folder / value).exists()):
        return str((folder / Path(value).expanduser()).resolve())
    return value
