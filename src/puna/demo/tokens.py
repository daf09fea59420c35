"""The tiny base's tokenizer: byte-level BPE in Llama-3's layout, ordinary tokens first, 256 special ones last."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

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


def write_json(path: Path, value: Any) -> None:
    """JSON for people: two spaces, a line end at the end."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
