"""What a vLLM engine compiles at first use, done once when an app is validated, so that no request waits for it.

Triton kernels are compiled anew for a batch of one, for one whose size 16 divides, and for all others, and by what its
requests ask of sampling. A compiled kernel lies in the bundle's caches; each later start only loads it.
"""

from __future__ import annotations

import threading
from typing import Any, Dict, List, Tuple

PROMPT_TOKENS = 24
LONG_PROMPT_TOKENS = 600  # over one block of the KV cache, and over what is decoded at once
REPLY_TOKENS = 3
# Each way of sampling has kernels of its own: greedy, plain random, top-p, top-k, both, penalties, min-p, a seed.
SAMPLING: Tuple[Dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.8},
    {"temperature": 0.8, "top_p": 0.95},
    {"temperature": 0.8, "top_k": 40},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
    {"temperature": 0.8, "presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1},
    {"temperature": 0.8, "top_p": 0.95, "seed": 1},
)


def bake(engine: Any) -> None:
    """Run batches of `engine` of every kind of size, each with every way of sampling.

    Raises:
        Exception: the first that a request raised.
    """
    for number, size in enumerate(sizes(engine.concurrency)):
        # All ways at the sizes that differ in kind; at the others, which only differ in CUDA graph, the usual one.
        ways = SAMPLING if size in (1, 3, 16) else SAMPLING[2:3]
        for way in ways:
            run(engine, [prompt(engine, number, i) for i in range(size)], way)


def sizes(most: int) -> List[int]:
    """Batch sizes to run: one, odd and even small ones, powers of two, the largest, and one between."""
    wanted = [1, 2, 3, 5, 8, 16, 24, 32, 48, 64, 100, 128, 192, 256]
    return [size for size in wanted if size < most] + [most]


def prompt(engine: Any, batch: int, number: int) -> List[int]:
    """Token ids that no other request of the bake begins with: a prefix that is cached would be skipped."""
    length = min(LONG_PROMPT_TOKENS if number == 1 else PROMPT_TOKENS + number % 7, engine.max_model_len // 2)
    return [1 + (batch * 31 + number * 7 + place * place) % 200 for place in range(max(1, length))]


def run(engine: Any, prompts: List[List[int]], way: Dict[str, Any]) -> None:
    """One batch: all prompts at once, each from a thread of its own."""
    errors: List[BaseException] = []

    def one(tokens: List[int]) -> None:
        try:
            for _ in engine.stream(tokens, dict(way, max_tokens=REPLY_TOKENS, ignore_eos=True)):
                pass
        except BaseException as error:  # noqa: BLE001 - raised below, in the thread that validates
            errors.append(error)

    threads = [threading.Thread(target=one, args=(tokens,), daemon=True) for tokens in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
