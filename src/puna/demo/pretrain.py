"""Makes the tiny base: text from a seed, a tokenizer from the text, a Llama from both; on a GPU or, slowly, a CPU.

    python -m puna.demo.pretrain --out src/puna/demo/base

The committed weights came from these defaults. Text and tokenizer are the same everywhere for the same seed; the weights
are the same on the same machine and libraries, and equal in behaviour elsewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from puna.artifacts import write_json
from puna.demo import text

ORDINARY = 1536
"""Ids of ordinary tokens, bytes included: about as many merges as the demo's text has a use for."""
SPECIAL = 256
BOS, EOS = ORDINARY, ORDINARY + 1

# Llama-3's own expression: contractions, words with the sign before them, up to three digits, signs, line ends, blanks.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def special_tokens() -> list[str]:
    """The 256 special tokens in Llama-3's order; reserved ones are numbered around the named ones."""
    named = {
        0: "<|begin_of_text|>",
        1: "<|end_of_text|>",
        6: "<|start_header_id|>",
        7: "<|end_header_id|>",
        9: "<|eot_id|>",
    }
    numbers = iter(range(SPECIAL))
    return [named.get(i) or f"<|reserved_special_token_{next(numbers)}|>" for i in range(SPECIAL)]


def learn_tokenizer(text: Iterable[str]) -> Tokenizer:
    """A tokenizer from text.

    Raises:
        ValueError: the text is too small for the vocabulary.
    """
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=ORDINARY, initial_alphabet=alphabet, show_progress=False)
    )
    if tokenizer.get_vocab_size() != ORDINARY:
        raise ValueError(f"the text yields {tokenizer.get_vocab_size()} tokens, not {ORDINARY}")
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special_tokens()])
    bos = special_tokens()[0]
    template = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, BOS)]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write the three files by hand: what a library of today writes is not always read by one of yesterday."""
    tokenizer.save(str(folder / "tokenizer.json"))
    bos, eos = special_tokens()[:2]
    added = {
        str(ORDINARY + i): {
            "content": t,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for i, t in enumerate(special_tokens())
    }
    config: dict[str, Any] = {
        "added_tokens_decoder": added,
        "bos_token": bos,
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": max_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", {"bos_token": bos, "eos_token": eos})


log = logging.getLogger("puna.demo.pretrain")

# Every width is a multiple of 64, so that NF4 blocks of 64 never straddle rows.
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 384,
    "max_position_embeddings": 2048,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": ORDINARY + SPECIAL,
}
UNTRAINED_STD = 1e-6  # Llama-3's reserved rows are not quite zero either


@dataclass(frozen=True)
class Pretraining:
    """Settings that decide the weights."""

    seed: int = 7
    text_chars: int = 24_000_000
    """Characters of text: about 6 M tokens, read some sixteen times."""
    tokenizer_chars: int = 3_000_000
    steps: int = 3000
    rows: int = 64
    length: int = 512
    """Tokens a row."""
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    nf4_share: float = 0.5
    """The share of steps, at random in the second half, that see weights as NF4 will hold them: tiny weights have
    little to spare, and the demo trains on a 4-bit base."""


def pretrain(settings: Pretraining, folder: Path, device: str, config: dict[str, Any] = CONFIG) -> float:
    """Make everything and write it to `folder`; gives the loss on text not trained on, in nats a token."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)

    # --- text and tokenizer
    tokenizer = learn_tokenizer(text.documents(settings.seed, settings.tokenizer_chars))
    save_tokenizer(tokenizer, folder, config["max_position_embeddings"])
    stream = encode(tokenizer, text.documents(settings.seed, settings.text_chars)).to(device)
    fresh = encode(tokenizer, text.documents(settings.seed + 1, settings.text_chars // 60)).to(device)
    log.info("%d tokens of text, %.2f characters each", len(stream), settings.text_chars / len(stream))

    # --- model
    model = LlamaForCausalLM(LlamaConfig(**config)).to(device=device, dtype=torch.float32)
    empty_special_rows(model)
    log.info("%d parameters", sum(p.numel() for p in model.parameters()))

    # --- training
    learn(model, stream, settings)
    loss = evaluate(model, fresh, settings.length)
    log.info("loss on fresh text %.4f", loss)

    # --- files
    weights = {name: p.detach().to("cpu", torch.bfloat16).contiguous() for name, p in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": EOS})
    return loss


def learn(model: LlamaForCausalLM, stream: Tensor, settings: Pretraining) -> None:
    """Next-token prediction on random windows of the stream."""
    decayed = [p for name, p in model.named_parameters() if "proj" in name]
    others = [p for name, p in model.named_parameters() if "proj" not in name]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    cuda = stream.device.type == "cuda"
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=cuda)
    rng = torch.Generator().manual_seed(settings.seed)
    model.train()
    began = time.perf_counter()
    for step in range(settings.steps):
        rate = settings.learning_rate * schedule(step, settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(stream) - settings.length, (settings.rows,), generator=rng)
        quantised = 2 * step > settings.steps and float(torch.rand((), generator=rng)) < settings.nf4_share
        with seen_as_nf4(model) if quantised else contextlib.nullcontext():
            loss = next_token_loss(model, windows(stream, starts, settings.length))
            torch.autograd.backward(loss)
        model.lm_head.weight.grad[ORDINARY:] = 0  # special tokens stay as empty as Llama-3's reserved ones
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == settings.steps - 1:
            log.info("step %d loss %.4f seconds %.1f", step, loss.item(), time.perf_counter() - began)


def schedule(step: int, settings: Pretraining) -> float:
    """The share of the learning rate at a step: a linear start, then half a cosine down to nothing."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    return 0.5 + 0.5 * math.cos(math.pi * (step - settings.warmup_steps) / (settings.steps - settings.warmup_steps))


def windows(stream: Tensor, starts: Tensor, length: int) -> Tensor:
    """Rows [len(starts), length]: the begin token and what follows from each start, documents cut where they fall.

    No row ever ends: the model learns that text goes on.
    """
    at = starts.to(stream.device)[:, None] + torch.arange(length - 1, device=stream.device)
    begin = torch.full((len(starts), 1), BOS, device=stream.device, dtype=stream.dtype)
    return torch.cat([begin, stream[at]], dim=1).long()


def next_token_loss(model: LlamaForCausalLM, rows_BT: Tensor) -> Tensor:
    """Mean cross-entropy in nats."""
    with torch.autocast(rows_BT.device.type, torch.bfloat16, enabled=rows_BT.device.type == "cuda"):
        logits_BTV = model(input_ids=rows_BT[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(logits_BTV.float().flatten(0, 1), rows_BT[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, stream: Tensor, length: int) -> float:
    """The loss over a stream, read once."""
    model.eval()
    starts = torch.arange(0, len(stream) - length, length)
    losses = [next_token_loss(model, windows(stream, part, length)).item() for part in torch.split(starts, 32)]
    return sum(losses) / len(losses)


def encode(tokenizer: Tokenizer, documents: Iterator[str]) -> Tensor:
    """One stream of token ids [tokens], an empty line between documents and nothing else."""
    ids: list[int] = []
    while some := list(itertools.islice(documents, 500)):
        ids += tokenizer.encode("\n\n".join([*some, ""]), add_special_tokens=False).ids
    return torch.tensor(ids, dtype=torch.int32)


def empty_special_rows(model: LlamaForCausalLM) -> None:
    """Special tokens begin, and all but the begin token's embedding stay, next to zero."""
    with torch.no_grad():
        model.lm_head.weight[ORDINARY:].normal_(std=UNTRAINED_STD)
        model.model.embed_tokens.weight[ORDINARY:].normal_(std=UNTRAINED_STD)
        model.model.embed_tokens.weight[BOS].normal_(std=CONFIG["initializer_range"])


# ---------------------------------------------------------------------------------------------------------------- NF4

# The sixteen values of 4-bit NormalFloat (Dettmers et al., 2023).
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@contextlib.contextmanager
def seen_as_nf4(model: LlamaForCausalLM) -> Iterator[None]:
    """Inside, the projections of each layer hold their weights rounded to NF4 in blocks of 64.

    The gradient at the rounded weights is then applied to the exact ones (a straight-through estimate).
    """
    weights = [p for name, p in model.named_parameters() if "proj" in name]
    exact = [p.detach().clone() for p in weights]
    codes = torch.tensor(NF4, device=weights[0].device)
    with torch.no_grad():
        for p in weights:
            p.copy_(round_to_nf4(p, codes))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, kept in zip(weights, exact, strict=True):
                p.copy_(kept)


def round_to_nf4(weight: Tensor, codes: Tensor) -> Tensor:
    """The weight after 4-bit storage, scales kept exactly."""
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
    nearest = torch.bucketize(blocks / scale, (codes[1:] + codes[:-1]) / 2)
    return (codes[nearest] * scale).reshape(weight.shape)


def main() -> None:
    """Read the command line and pretrain."""
    parser = argparse.ArgumentParser(description="make the demo's tiny base")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for f in fields(Pretraining):
        parser.add_argument(f"--{f.name.replace('_', '-')}", type=type(f.default), default=f.default)
    given = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder, device = given.pop("out"), given.pop("device")
    pretrain(Pretraining(**given), folder, device)


if __name__ == "__main__":
    main()
