"""What every trainer is given: a base of random weights on disk, and conversations of UltraChat-like lengths."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from puna.config.recipe import PROJECTIONS
from puna.tokens import NOT_LEARNT, Tokens
from puna.train.model.shape import read_shape, weight_name
from puna.train.rows import count_labelled

ROWS_PER_STEP = 16
"""8 rows at a time, 2 times a step: the tutorial's."""
LORA_RANK = 16
SPREAD = 0.5
"""Sigma of the lognormal that lengths are drawn from."""
LABELLED = 0.7
"""The assistant's share of a conversation."""
TURN_TOKENS = 400
SPECIAL = ("<|begin_of_text|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
"""The last tokens of the vocabulary, in this order."""
TEMPLATE = (
    "{% for m in messages %}{{'<|im_start|>'+m['role']+'\n'+m['content']+'<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}"
)
WEIGHT_DEVIATION = 0.02


@dataclass(frozen=True)
class Preset:
    """A model's numbers, and how long conversations with it are."""

    config: Mapping[str, int | float]
    median_tokens: int
    least_tokens: int
    most_tokens: int


PRESETS = {
    "llama3-8b": Preset(
        {
            "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
            "rope_theta": 500000.0, "rms_norm_eps": 1e-5,
        },
        1100, 64, 2024,
    ),
    # An eighth of the lengths, so that padded batches of a slow bf16 emulation take no minute on a CPU.
    "tiny": Preset(
        {
            "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
            "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
        },
        137, 8, 253,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Workload:
    """The work that is measured, the same for every trainer."""

    shape: str
    layers: int
    steps: int
    """Optimiser steps that are measured."""
    warm: int
    """Steps before them: compilation, caches, the chip's clock."""
    loss_on: str = "all"
    """Or `assistant`: seven tokens of ten."""
    patterned: bool = False
    """Whether there is something to learn in the tokens; they are drawn evenly otherwise."""
    seed: int = 42

    @property
    def all_steps(self) -> int:
        """Warm-up and measured."""
        return self.warm + self.steps

    @property
    def longest(self) -> int:
        """Tokens a conversation is cut at."""
        return PRESETS[self.shape].most_tokens

    def config(self) -> dict[str, Any]:
        """The model's config.json."""
        values = dict(PRESETS[self.shape].config) | {"num_hidden_layers": self.layers}
        first_special = int(values["vocab_size"]) - len(SPECIAL)
        return values | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "bos_token_id": first_special,
            "eos_token_id": first_special + SPECIAL.index("<|im_end|>"),
        }

    def token_id(self, token: str) -> int:
        """The id of one of SPECIAL."""
        return int(self.config()["vocab_size"]) - len(SPECIAL) + SPECIAL.index(token)

    def rows(self, count: int | None = None, part: int = 0) -> list[Tokens]:
        """`count` conversations, as many as the steps need when None; another `part`, other conversations."""
        rng, preset = np.random.default_rng((self.seed, part)), PRESETS[self.shape]
        wanted = count or self.all_steps * ROWS_PER_STEP
        lengths = rng.lognormal(math.log(preset.median_tokens), SPREAD, wanted).astype(int)
        return [self._row(rng, int(n)) for n in lengths.clip(preset.least_tokens, preset.most_tokens)]

    def _row(self, rng: np.random.Generator, length: int) -> Tokens:
        words = int(self.config()["vocab_size"]) - len(SPECIAL)
        ids = (_patterned(rng, length, words) if self.patterned else rng.integers(0, words, length)).astype(np.int32)
        labels = ids.copy()
        for start, end, learnt in _turns(length):
            ids[start], ids[end - 1] = self.token_id("<|im_start|>"), self.token_id("<|im_end|>")
            labels[start:end] = ids[start:end] if learnt or self.loss_on == "all" else NOT_LEARNT
        return ids, labels

    def as_dict(self) -> dict[str, Any]:
        """Every setting, as it stands in the results."""
        preset = PRESETS[self.shape]
        lengths = {
            "distribution": "lognormal", "median": preset.median_tokens, "sigma": SPREAD,
            "least": preset.least_tokens, "most": preset.most_tokens,
        }  # fmt: skip
        return dataclasses.asdict(self) | {"rows_per_step": ROWS_PER_STEP, "lengths": lengths}


def _turns(length: int) -> list[tuple[int, int, bool]]:
    """(start, end, whether the assistant speaks) of each turn, user and assistant by turns."""
    edges = np.linspace(0, length, max(1, round(length / TURN_TOKENS)) + 1).astype(int).tolist()
    found = []
    for start, end in zip(edges, edges[1:], strict=False):
        middle = start + round((end - start) * (1 - LABELLED))
        found += [(start, middle, False), (middle, end, True)]
    return found


def _patterned(rng: np.random.Generator, length: int, words: int) -> np.ndarray:
    # Some words are frequent and half of them foretell the next: a loss with something in it to fall.
    known = min(words, 2000)
    ids = np.minimum(rng.zipf(1.3, length), known) - 1
    follows = rng.random(length) < 0.5
    for at in range(1, length):
        if follows[at]:
            ids[at] = (ids[at - 1] * 7 + 3) % known
    return ids


def make_base(folder: Path, workload: Workload, device: str) -> Path:
    """Random bf16 weights from a fixed seed, config.json and a tokenizer; what is there already is kept.

    Written under a temporary name first, so that a folder of the final name is whole.
    """
    final = folder / f"base-{workload.shape}-{workload.layers}-seed{workload.seed}"
    if final.exists():
        return final
    draft = folder / f".draft-{uuid.uuid4().hex[:8]}"
    try:
        draft.mkdir(parents=True)
        (draft / "config.json").write_text(json.dumps(workload.config(), indent=2) + "\n")
        _write_weights(draft, workload, device)
        _write_tokenizer(draft, workload)
        draft.rename(final)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return final


def _write_weights(folder: Path, workload: Workload, device: str) -> None:
    import torch
    from safetensors.torch import save_file

    values, generator = workload.config(), torch.Generator(device).manual_seed(workload.seed)
    hidden, vocab = values["hidden_size"], values["vocab_size"]
    files = [f"model-{i + 1:05d}-of-{workload.layers + 1:05d}.safetensors" for i in range(workload.layers + 1)]
    place: dict[str, str] = {}

    def random(*size: int) -> torch.Tensor:
        tensor = torch.empty(size, dtype=torch.bfloat16, device=device)
        return tensor.normal_(0.0, WEIGHT_DEVIATION, generator=generator).cpu()

    def write(file: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / file, metadata={"format": "pt"})
        place.update(dict.fromkeys(tensors, file))

    ones = torch.ones(hidden, dtype=torch.bfloat16)
    ends = {"model.embed_tokens.weight": random(vocab, hidden), "lm_head.weight": random(vocab, hidden)}
    write(files[0], ends | {"model.norm.weight": ones})
    sizes = read_shape(folder).projections()
    for layer in range(workload.layers):
        tensors = {f"{weight_name(layer, name)}.weight": random(*size) for name, size in sizes.items()}
        norms = (f"model.layers.{layer}.{name}.weight" for name in ("input_layernorm", "post_attention_layernorm"))
        write(files[layer + 1], tensors | {name: ones.clone() for name in norms})
    total = sum((folder / file).stat().st_size for file in files)
    index = {"metadata": {"total_size": total}, "weight_map": place}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_tokenizer(folder: Path, workload: Workload) -> None:
    """Byte-level BPE without merges: no text is tokenised here, but trainers want a tokenizer of the right size."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = int(workload.config()["vocab_size"]) - len(SPECIAL)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:words]
    vocabulary = {letter: i for i, letter in enumerate(alphabet)}
    vocabulary |= {f"tok{i}": i for i in range(len(vocabulary), words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    begin, start, end, pad = SPECIAL
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=begin, eos_token=end, pad_token=pad, additional_special_tokens=[start]
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def flops_per_token(base_dir: Path, rows: list[Tokens]) -> float:
    """FLOPs of one real token, forward and backward, nothing recomputed.

    Counted here and not by Puna's plan, so that the yardstick stays where it is; a test compares the two.
    """
    shape, lengths = read_shape(base_dir), np.array([len(ids) for ids, _ in rows], dtype=np.float64)
    frozen, lora = shape.layers * shape.layer_parameters, shape.lora_parameters(LORA_RANK, PROJECTIONS)
    head = shape.vocab * shape.hidden * count_labelled(rows) / float(lengths.sum())
    seen = float((lengths**2).sum() / lengths.sum()) / 2  # a token's mean number of earlier ones
    attention = 2 * shape.layers * seen * shape.heads * shape.head_dim  # multiply-adds of QK' and PV
    # A frozen matrix has no gradient of its own; attention's backward pass is five products to its forward's two.
    multiply_adds = 2 * frozen + 3 * lora + 2 * head + 3.5 * attention
    return 2 * multiply_adds
