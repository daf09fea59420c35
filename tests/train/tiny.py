"""Builders that the train tests share: random Llamas of a few hundred kilobytes, counting rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, LlamaConfig

from puna.artifacts import Dataset, drafting
from puna.config import recipe as recipes
from puna.config.recipe import Recipe
from puna.train.model.quant import FrozenWeight

VOCAB = 300
START, END, EOS = 290, 291, 1


def write_base(folder: Path, config: Any = None, **changes: Any) -> Path:
    """A random model in the Hub's layout; `changes` go into a small LlamaConfig when no config is given."""
    values: dict[str, Any] = {
        "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "bos_token_id": 0, "eos_token_id": EOS, "tie_word_embeddings": False,
    }  # fmt: skip
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config or LlamaConfig(**(values | changes)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:  # all ones or zeros otherwise, which would hide a mistake
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.copy_(torch.randn_like(parameter) * 0.08)
    model.save_pretrained(folder)
    return folder


def whole(weight: FrozenWeight) -> torch.Tensor:
    """The weight [outputs, inputs] in the compute dtype."""
    weight.write(out_OI := torch.empty(weight.shape, dtype=weight.dtype, device=weight.device))
    return out_OI


def random_rows(count: int, seed: int = 0, longest: int = 40) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of a language that can be learnt: each word is the last plus a step that the row repeats."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        length = int(rng.integers(8, longest))
        words = (rng.integers(2, 200) + int(rng.integers(1, 4)) * np.arange(length - 3)) % 280 + 2
        ids = np.array([0, START, *words, END], dtype=np.int32)
        labels = ids.copy()
        labels[: length // 3] = -100
        rows.append((ids, labels))
    return rows


def write_split(path: Path, rows: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """One split in the dataset's format."""
    offsets = np.cumsum([0, *(len(ids) for ids, _ in rows)]).astype(np.int64)
    ids = np.concatenate([ids for ids, _ in rows]) if rows else np.zeros(0, np.int32)
    labels = np.concatenate([labels for _, labels in rows]) if rows else np.zeros(0, np.int32)
    save_file({"input_ids": ids, "labels": labels, "offsets": offsets}, path)


def write_dataset(parent: Path, train: int = 24, test: int = 5, chat_tokens: bool = True, longest: int = 40) -> Dataset:
    """A dataset folder as the data stage leaves it."""
    splits = {"train": random_rows(train, 1, longest), "test": random_rows(test, 2, longest)}
    with drafting("dataset", parent) as draft:
        for name, rows in splits.items():
            write_split(draft.path / f"{name}.safetensors", rows)
        (draft.path / "tokenizer").mkdir()
        words = {f"w{i}": i for i in range(VOCAB)}
        tokenizer = Tokenizer(WordLevel(words, unk_token="w2"))
        tokenizer.pre_tokenizer = Whitespace()
        tokenizer.save(str(draft.path / "tokenizer" / "tokenizer.json"))
        (draft.path / "tokenizer" / "tokenizer_config.json").write_text("{}")
        prompt = [0, START, 20, 21, 22]
        sample = {"messages": [{"role": "user", "content": "count on"}], "reference": "w23", "prompt_ids": prompt}
        (draft.path / "samples.json").write_text(json.dumps([sample]))
        draft.config = {"base": "tiny"}
        draft.metrics = {
            "rows_train": train, "rows_test": test,
            "tokens_train": sum(len(ids) for ids, _ in splits["train"]),
            "tokens_test": sum(len(ids) for ids, _ in splits["test"]),
            "labelled_share": 0.7, "lengths": {"p50": 20, "p90": 36, "p99": 39, "max": 39},
            "chat_token_ids": {"<|im_start|>": START, "<|im_end|>": END} if chat_tokens else {},
            "eos_token_id": END, "stop_token_ids": [END, EOS], "bos_token_id": 0, "pad_token_id": 2,
        }  # fmt: skip
    return Dataset.open(draft.final)


def make_recipe(**sections: Any) -> Recipe:
    """A recipe that trains the tiny base in a second: a few steps of six rows."""
    training = {
        "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "learning_rate": 5e-3, "warmup_steps": 1,
        "optim": "adamw", "save_steps": 2, "logging_steps": 1, "eval_steps": 2, "num_train_epochs": 2,
    }  # fmt: skip
    values: dict[str, Any] = {"name": "tiny", "base": "tiny", "training": training | sections.pop("training", {})}
    values["lora"] = {"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0} | sections.pop("lora", {})
    values["quantization"] = {"bnb_4bit_compute_dtype": "float32"} | sections.pop("quantization", {})
    return recipes.parse(values | sections)
