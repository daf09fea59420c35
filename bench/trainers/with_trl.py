"""TRL's SFTTrainer with the tutorial's recipe, and the same trainer with Unsloth's model.

The tutorial says float16; TRL keeps LoRA weights in bf16 and its float16 gradient scaler then fails, so: bf16.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from puna.config.recipe import PROJECTIONS
from trainers import gauge
from trainers.job import Job
from trainers.variants import VARIANTS, Variant
from trainers.workload import LORA_RANK, ROWS_PER_STEP

ALPHA = 64
TARGETS = list(PROJECTIONS)


def run_trl(job: Job) -> dict[str, Any]:
    """The base by transformers and bitsandbytes, prepared by PEFT, as the tutorial has it."""
    import torch
    from peft import LoraConfig, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    clock, dropout = gauge.Clock(), _variant(job).dropout
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )
    place: dict[str, Any] = {"": 0 if torch.cuda.is_available() else "cpu"}
    model = AutoModelForCausalLM.from_pretrained(
        str(job.base_dir), quantization_config=quantization, device_map=place, dtype=torch.bfloat16
    )
    model = prepare_model_for_kbit_training(model)
    lora = LoraConfig(
        r=LORA_RANK, lora_alpha=ALPHA, lora_dropout=dropout, bias="none", task_type="CAUSAL_LM", target_modules=TARGETS
    )
    return _fit(job, clock, model, lora)


def run_unsloth(job: Job) -> dict[str, Any]:
    """The base and the LoRA by Unsloth, with its own checkpointing."""
    # No statistics, and no question to the Hub about a folder on this disk.
    os.environ |= {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1"}
    import unsloth  # type: ignore[import-not-found, unused-ignore]  # first of all: it patches transformers, peft and trl as they are imported

    clock, longest = gauge.Clock(), job.workload.longest
    import torch

    model, _ = unsloth.FastLanguageModel.from_pretrained(
        str(job.base_dir), max_seq_length=longest, dtype=torch.bfloat16, load_in_4bit=True, local_files_only=True
    )
    model = unsloth.FastLanguageModel.get_peft_model(
        model,
        r=LORA_RANK,
        lora_alpha=ALPHA,
        lora_dropout=_variant(job).dropout,
        bias="none",
        target_modules=TARGETS,
        use_gradient_checkpointing="unsloth",
    )
    return _fit(job, clock, model, None)


TRAINERS: dict[str, Callable[[Job], dict[str, Any]]] = {"trl": run_trl, "unsloth": run_unsloth}


def _fit(job: Job, clock: gauge.Clock, model: Any, lora: Any) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Marks(TrainerCallback):  # type: ignore[misc, unused-ignore]
        """Marks the end of each optimiser step."""

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            clock.tick()

    rows, workload = job.workload.rows(), job.workload
    columns = {"input_ids": [ids.tolist() for ids, _ in rows]}
    if workload.loss_on == "assistant":  # else none: Unsloth leaves out padding only where it makes labels itself
        columns["labels"] = [labels.tolist() for _, labels in rows]
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "max_steps": workload.all_steps,
        "max_length": workload.longest, "optim": "paged_adamw_8bit", "learning_rate": 8e-6, "warmup_steps": 30,
        "lr_scheduler_type": "linear", "logging_steps": 5, "save_strategy": "no", "report_to": [], "bf16": True,
    }  # fmt: skip
    config = SFTConfig(output_dir=str(job.folder / "out"), use_cpu=not torch.cuda.is_available(), **settings)
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_dict(columns),
        processing_class=AutoTokenizer.from_pretrained(str(job.base_dir)),
        peft_config=lora,
        callbacks=[Marks()],
    )
    kept = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    if kept != [len(ids) for ids, _ in rows]:
        raise RuntimeError("the trainer has changed the conversations' lengths: its tokens would be counted wrongly")
    # Every trainer takes the conversations in the order in which they came.
    trainer._get_train_sampler = lambda dataset=None: SequentialSampler(dataset or trainer.train_dataset)
    trainer.train()
    found = gauge.speed(clock, gauge.tokens_of_steps(rows, ROWS_PER_STEP), workload.warm)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    lora_settings = {"r": LORA_RANK, "alpha": ALPHA, "dropout": _variant(job).dropout, "target_modules": TARGETS}
    return found | {"losses": losses, "config": settings, "lora": lora_settings}


def _variant(job: Job) -> Variant:
    return job.variant or VARIANTS[0]
