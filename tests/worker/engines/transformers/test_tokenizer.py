"""One fast tokenizer, sixteen threads, different arguments: each gets what it would get alone."""

from __future__ import annotations

import importlib
import threading
from typing import Any

import pytest
from transformers import AutoTokenizer

from puna import demo
from puna.worker.engines import engine
from puna.worker.engines.transformers import tokenizer as transformers_tokenizer

MODULE = "transformers.tokenization_utils_tokenizers"
THREADS, ROUNDS = 16, 40


@pytest.fixture
def tokenizer() -> Any:
    transformers_tokenizer.shim(importlib.import_module(MODULE))
    made = AutoTokenizer.from_pretrained(demo.base_dir())
    made.pad_token = made.pad_token or made.eos_token
    return made


def work(tokenizer: Any, number: int) -> list[Any]:
    """What one caller asks: its own length, padding and text."""
    texts = [f"caller {number} says {'word ' * (number + n)}" for n in range(2)]
    padded = tokenizer(texts, padding="max_length", max_length=8 + number, truncation=True)
    plain = tokenizer.encode(texts[1], add_special_tokens=False)
    return [padded["input_ids"], plain, tokenizer.decode(plain), tokenizer.batch_decode(padded["input_ids"])]


def test_sixteen_threads_with_different_arguments_each_get_their_own(tokenizer: Any) -> None:
    alone = [work(tokenizer, number) for number in range(THREADS)]
    wrong: list[str] = []
    start = threading.Barrier(THREADS)

    def call(number: int) -> None:
        start.wait()
        for _ in range(ROUNDS):
            try:
                found = work(tokenizer, number)
            except BaseException as error:  # noqa: BLE001 - "Already borrowed", asserted below
                wrong.append(repr(error))
                continue
            if found != alone[number]:
                wrong.append(f"caller {number} got another's")

    threads = [threading.Thread(target=call, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, f"{len(wrong)} of {THREADS * ROUNDS}: {wrong[0]}"


def test_a_second_look_changes_nothing_more(tokenizer: Any) -> None:
    kind = importlib.import_module(MODULE).TokenizersBackend
    before = kind._decode
    transformers_tokenizer.shim(importlib.import_module(MODULE))
    assert kind._decode is before and getattr(before, engine.SAFE)
