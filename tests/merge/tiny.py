"""A random tiny Llama with a ChatML tokenizer, adapters and datasets for it, and a trained model built on PEFT."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from puna.artifacts import Adapter, Dataset, drafting
from puna.config.recipe import PROJECTIONS, Recipe, parse
from puna.home import Home
from puna.merge.verify import Verification

FIGURES = Verification(
    base="dequantised",
    exact=True,
    merged_loss=1.0,
    trained_loss=1.0,
    logits_max_diff=0.1,
    logits_mean_diff=0.01,
    logits_share=0.01,
    mean_kl=0.0001,
    same_top=1.0,
    replies_equal="4 of 4",
    token_ids_equal=True,
)

BOS, EOS, PAD = "<|begin_of_text|>", "<|im_end|>", "<|pad|>"
SPECIAL = (BOS, "<|end_of_text|>", "<|im_start|>", EOS, PAD)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCAB = 320
CHAT_IDS = (2, 3)
TALKS = [
    ("What do llamas eat?", "Llamas eat grass and hay."),
    ("Where is the puna?", "The puna lies high in the Andes."),
    ("Do llamas hum?", "Yes, llamas hum to each other."),
    ("How tall is a llama?", "About as tall as a grown person."),
]


def write_tokenizer(folder: Path, *, eos: str = EOS) -> Tokenizer:
    """The four files of a chat tokenizer, written by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[AddedToken(t) for t in SPECIAL],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for talk in TALKS for text in talk), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": eos,
        "pad_token": PAD,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 256,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": BOS, "eos_token": eos, "pad_token": PAD}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return tokenizer


def write_base(folder: Path, dtype: torch.dtype = torch.bfloat16, *, tied: bool = False, shard: str = "5GB") -> Path:
    """A base model: weights, config, generation config, licence."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.1,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder, max_shard_size=shard)
    (folder / "LICENSE").write_text("Herders' licence\n")
    return folder


def write_peft(folder: Path, base: Path, *, strength: float = 0.05, **options: object) -> Path:
    """An adapter in PEFT's own format whose B is not zero."""
    torch.manual_seed(1)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": list(PROJECTIONS), "task_type": "CAUSAL_LM"} | options
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(**settings))
    for name, value in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value.data, std=strength)
    model.save_pretrained(folder)
    return folder


def write_rows(folder: Path, *, same: bool = False) -> None:
    """Trained rows of the two chat tokens, for embedding and head."""
    generator = torch.Generator().manual_seed(2)
    embed = torch.randn(2, 64, generator=generator) * 0.1
    head = embed.clone() if same else torch.randn(2, 64, generator=generator) * 0.1
    rows = {"embed": embed, "head": head, "token_ids": torch.tensor(CHAT_IDS)}
    save_file(rows, folder / "chat_rows.safetensors")


def seal_adapter(home: Home, peft: Path, tokenizer: Path, dataset: Dataset) -> Adapter:
    """The Adapter artifact that training would leave."""
    with drafting("adapter", home.folder("adapters")) as draft:
        for source, target in ((peft, draft.path), (tokenizer, draft.path / "tokenizer")):
            target.mkdir(exist_ok=True)
            for path in (p for p in source.iterdir() if p.is_file() and p.name != "README.md"):
                (target / path.name).write_bytes(path.read_bytes())
        draft.made_from |= {"base": "tiny", "dataset": dataset.digest, "recipe": "0" * 64}
    return Adapter.open(draft.final)


def make_dataset(home: Home, tokenizer_dir: Path, tokenizer: Tokenizer) -> Dataset:
    """A Dataset artifact of the talks, the same for training and test."""
    ids, labels, offsets, samples = [], [], [0], []
    for question, answer in TALKS:
        prompt = tokenizer.encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n").ids
        reply = tokenizer.encode(f"{answer}<|im_end|>").ids
        ids += prompt + reply
        labels += [-100] * len(prompt) + reply
        offsets.append(len(ids))
        messages = [{"role": "user", "content": question}]
        samples.append({"messages": messages, "reference": answer, "prompt_ids": prompt})
    samples = samples[:2]
    from safetensors.numpy import save_file as save_arrays

    arrays = {"input_ids": np.array(ids, np.int32), "labels": np.array(labels, np.int32), "offsets": np.array(offsets)}
    with drafting("dataset", home.datasets) as draft:
        for split in ("train", "test"):
            save_arrays(arrays, draft.path / f"{split}.safetensors")
        (draft.path / "samples.json").write_text(json.dumps(samples))
        target = draft.path / "tokenizer"
        target.mkdir()
        for path in tokenizer_dir.iterdir():
            (target / path.name).write_bytes(path.read_bytes())
        draft.metrics |= {"eos_token_id": 3, "stop_token_ids": [3, 1], "bos_token_id": 0, "pad_token_id": 4}
    return Dataset.open(draft.final)


def recipe(**sections: object) -> Recipe:
    """A recipe for the tiny Llama."""
    return parse({"name": "tiny", "base": "tiny", **sections})


@dataclass
class PeftTrained:
    """A trained model as PEFT runs it: in 4 bits by bitsandbytes, or on the base's own weights."""

    model: torch.nn.Module
    seen: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)
    """Logits already computed: the same rows are asked for by many tests."""

    @classmethod
    def load(cls, base: Path, peft: Path, *, in_4bit: bool) -> PeftTrained:
        """Base, adapter and chat rows."""
        options: dict[str, object] = {"dtype": torch.float32}
        if in_4bit:
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.float32,
            )
            options |= {"device_map": {"": "cpu"}, "dtype": torch.bfloat16}
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, **options), peft)
        # Embedding, norms and head in fp32: only the 4-bit matrices need bf16, whose NF4 is what training made.
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) or module.__class__.__name__ in ("LlamaRMSNorm", "Linear"):
                module.float()
        if (peft / "chat_rows.safetensors").exists():
            rows = load_file(peft / "chat_rows.safetensors")
            head = model.get_output_embeddings()
            if head.weight is model.get_input_embeddings().weight:
                head.weight = torch.nn.Parameter(copy.deepcopy(head.weight.data))
            model.get_input_embeddings().weight.data[list(CHAT_IDS)] = rows["embed"]
            head.weight.data[list(CHAT_IDS)] = rows["head"]
        return cls(model.eval())

    @torch.no_grad()
    def logits(self, input_ids: Sequence[int]) -> torch.Tensor:
        """fp32 [T, V]."""
        key = tuple(int(i) for i in input_ids)
        if key not in self.seen:
            self.seen[key] = self.model(input_ids=torch.tensor([key])).logits[0].float()
        return self.seen[key]

    def loss(self, rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
        """Mean over labelled tokens."""
        total, count = 0.0, 0
        for ids, labels in rows:
            target = torch.tensor(labels[1:], dtype=torch.long)
            logits = self.logits([int(i) for i in ids])[:-1]
            total += float(torch.nn.functional.cross_entropy(logits, target, ignore_index=-100, reduction="sum"))
            count += int((target != -100).sum())
        return total / count

    def reply(self, prompt_ids: Sequence[int], max_new_tokens: int, stop_token_ids: Sequence[int]) -> list[int]:
        """Greedy, without a cache."""
        ids = list(prompt_ids)
        for _ in range(max_new_tokens):
            ids.append(int(self.logits(ids)[-1].argmax()))
            if ids[-1] in stop_token_ids:
                break
        return ids[len(prompt_ids) :]
