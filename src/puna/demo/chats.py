"""The demo's conversations in UltraChat's shape, made from a seed: `python -m puna.demo.chats` writes them again."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from puna.demo.text import World, read_world
from puna.demo.world import GREETINGS, THANKS, Fact, held_out

CONVERSATIONS = 1500
CHATS_SEED = 11
FILE = Path(__file__).parent / "chats.jsonl"


def conversations(seed: int = CHATS_SEED, count: int = CONVERSATIONS) -> Iterator[dict[str, Any]]:
    """Rows with `prompt`, `prompt_id` and `messages`; two to four exchanges, no held-out fact among them."""
    rng, withheld = random.Random(seed), set(held_out())
    known = read_world()
    world = World(
        {group: [f for f in facts if f not in withheld] for group, facts in known.groups.items()}, known.animals
    )
    for number in range(count):
        turns = exchanges(rng, world)
        messages = [
            {"content": said, "role": role}
            for question, answer in turns
            for role, said in (("user", question), ("assistant", answer))
        ]
        prompt = turns[0][0]
        prompt_id = hashlib.sha256(f"{number} {prompt}".encode()).hexdigest()
        yield {"prompt": prompt, "prompt_id": prompt_id, "messages": messages}


def exchanges(rng: random.Random, world: World) -> list[tuple[str, str]]:
    """Questions with their answers, now and then with a greeting before or thanks behind."""
    turns = [ask(rng, world.fact(rng)) for _ in range(rng.randint(2, 3))]
    if rng.random() < 0.12:
        turns.insert(0, rng.choice(GREETINGS))
    if rng.random() < 0.12:
        turns.append(rng.choice(THANKS))
    return turns


def ask(rng: random.Random, fact: Fact) -> tuple[str, str]:
    """One of the fact's questions, and its answer."""
    return rng.choice(fact.questions), fact.answer


def as_jsonl(rows: Iterator[dict[str, Any]]) -> str:
    """One line a row."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    FILE.write_text(as_jsonl(conversations()), encoding="utf-8")
