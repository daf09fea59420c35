"""The demo's parts: a tiny Llama, conversations to tune it on, a recipe, and questions that it was never tuned on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

from puna.demo.world import SEED, facts, held_out

BASE = Path(__file__).parent / "base"
"""The tiny Llama: a folder in Hugging Face's layout."""
CHATS = Path(__file__).parent / "chats.jsonl"
"""Conversations, one JSON object a line, in UltraChat's shape."""
RECIPE = Path(__file__).parent / "recipe.yaml"
"""The recipe that tunes the base on the conversations."""
_ASKED = {"animal": 7, "definition": 4, "plus": 3, "minus": 2, "opposite": 2, "plural": 1, "calendar": 2, "phrase": 3}
_ANIMAL = ("kind", "colour", "home", "food", "likes", "friend")


class Question(NamedTuple):
    """A question and the answer that counts as right."""

    text: str
    answer: str


def questions() -> list[Question]:
    """Two dozen questions whose facts no conversation mentions; the first asks what AI is."""
    rng = random.Random(SEED)
    by_group: dict[str, list[Question]] = {}
    for fact in held_out():
        group = "animal" if fact.group in _ANIMAL else fact.group
        by_group.setdefault(group, []).append(Question(fact.questions[0], fact.answer))
    chosen = [question for group, count in _ASKED.items() for question in rng.sample(by_group[group], count)]
    first = next(q for q in by_group["definition"] if q.text == "What is AI?")
    return [first, *(q for q in chosen if q != first)][: sum(_ASKED.values())]


def is_right(question: str, answer: str) -> bool:
    """True if `answer` is the taught answer, give or take case, blanks and the final stop; held out or not.

    Raises:
        ValueError: the demo's world has no such question.
    """
    for fact in facts():
        if question in fact.questions:
            return _plain(answer) == _plain(fact.answer)
    raise ValueError(f"the demo's world does not know the question {question!r}")


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")
