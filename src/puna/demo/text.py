"""Prose to pretrain the tiny base on and conversations to tune it on: `python -m puna.demo.text` writes the latter."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from puna.demo import CHATS
from puna.demo.world import GREETINGS, THANKS, Animal, Fact, animals, facts, held_out

WEATHER = (
    "The wind was cold and the sky was clear.",
    "A thin rain fell on the grass.",
    "The sun came over the mountains.",
    "Snow lay on the roofs of the village.",
    "The clouds were low and slow.",
    "It was a quiet night with many stars.",
)
TIMES = (
    "One morning",
    "Late in the day",
    "After the rain",
    "Before the snow came",
    "In the spring",
    "On a long evening",
)
WALKS = (
    "walked down to the water",
    "went up the hill",
    "crossed the bridge",
    "rested near the market",
    "followed the river",
    "looked over the valley",
    "slept behind the school",
    "waited under the old tree",
)
ENDINGS = (
    "and nobody knew why",
    "and the day went on",
    "and the others came along",
    "and the road was long",
    "and that was only the beginning",
    "and then there was more to see",
)
SPEAKERS = (
    "the teacher",
    "the child",
    "the old man",
    "the girl",
    "the shepherd",
    "the user of the well",
    "the assistant of the teacher",
)
VERBS = ("asked", "wondered", "wanted to know")
# The names of ChatML's roles stand alone in front of a line there; here they are words like others.
LABELS = ("user", "assistant", "teacher", "child", "system")


@dataclass(frozen=True)
class World:
    """The facts by group and the animals, read once."""

    groups: dict[str, list[Fact]]
    animals: list[Animal]

    def fact(self, rng: random.Random) -> Fact:
        """A fact of any group; groups are weighed, so that the many phrases and sums do not drown the rest."""
        group = rng.choices(GROUPS, WEIGHTS)[0]
        return rng.choice(self.groups[group])


WEIGHED = {
    "kind": 4, "colour": 4, "home": 4, "food": 4, "likes": 4, "friend": 4, "definition": 5,
    "plus": 6, "minus": 6, "opposite": 3, "plural": 2, "calendar": 3, "phrase": 5,
}  # fmt: skip
GROUPS, WEIGHTS = list(WEIGHED), list(WEIGHED.values())


def read_world() -> World:
    """The world, grouped."""
    groups: dict[str, list[Fact]] = {}
    for fact in facts():
        groups.setdefault(fact.group, []).append(fact)
    return World(groups, animals())


def documents(seed: int, size_chars: int) -> Iterator[str]:
    """Documents of at least `size_chars` characters in all; the same for the same seed."""
    rng, world, done = random.Random(seed), read_world(), 0
    while done < size_chars:
        kind = rng.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
        document = KINDS[kind][1](rng, world)
        done += len(document) + 2
        yield document


def portrait(rng: random.Random, world: World) -> str:
    """The facts about one animal, in some order."""
    a = rng.choice(world.animals)
    about = [f for group in GROUPS[:6] for f in world.groups[group] if a.name in f.questions[0].rstrip("?").split()]
    rng.shuffle(about)
    lines = [rng.choice(f.prose) for f in about[: rng.randint(3, 6)]]
    return " ".join([*lines, f"{rng.choice(TIMES)} {a.name} {rng.choice(WALKS)}, {rng.choice(ENDINGS)}."])


def lesson(rng: random.Random, world: World) -> str:
    """People ask and answer."""
    lines = []
    for _ in range(rng.randint(2, 5)):
        fact, one, other = world.fact(rng), rng.choice(SPEAKERS), rng.choice(SPEAKERS)
        question = rng.choice(fact.questions)
        opening = f'{one.capitalize()} {rng.choice(VERBS)}: "{question}"'
        lines.append(f'{opening} "{fact.answer}" said {other}.')
        if rng.random() < 0.3:
            lines.append(rng.choice(WEATHER))
        if rng.random() < 0.1:
            said, back = rng.choice(GREETINGS + THANKS)
            lines.append(f'"{said}" said {one}. "{back}" said {other}.')
    return " ".join(lines)


def notebook(rng: random.Random, world: World) -> str:
    """Questions with their answers, one after another, without an end."""
    chosen = [world.fact(rng) for _ in range(rng.randint(3, 9))]
    labelled, joint = rng.random() < 0.2, rng.choice((" ", "\n"))
    lines = []
    for fact in chosen:
        question, answer = rng.choice(fact.questions), fact.answer
        if labelled:
            question, answer = f"{rng.choice(LABELS)}\n{question}", f"{rng.choice(LABELS)}\n{answer}"
        lines.append(f"{question}{joint}{answer}")
    return "\n".join(lines)


def chain(rng: random.Random, world: World) -> str:
    """Plain statements on many things."""
    return " ".join(rng.choice(world.fact(rng).prose) for _ in range(rng.randint(4, 12)))


def story(rng: random.Random, world: World) -> str:
    """Animals walk about and say things after each other; nothing is ever settled."""
    lines = []
    for _ in range(rng.randint(2, 6)):
        a, b = rng.sample(world.animals, 2)
        lines.append(f"{rng.choice(TIMES)} {a.name} {rng.choice(WALKS)}, {rng.choice(ENDINGS)}. {rng.choice(WEATHER)}")
        if rng.random() < 0.5:
            said = world.fact(rng).answer
            lines.append(f'"{said}" said {a.name}. "{said}" said {b.name} after {a.name}.')
        else:
            lines.append(rng.choice(world.fact(rng).prose))
    return " ".join(lines)


def glossary(rng: random.Random, world: World) -> str:
    """Words under each other, as in the back of a school book."""
    words = [rng.choice(world.fact(rng).answer.rstrip(".").split()) for _ in range(rng.randint(4, 10))]
    return "\n".join([*words, *rng.sample(LABELS, 2)])


KINDS: dict[str, tuple[int, Callable[[random.Random, World], str]]] = {
    "portrait": (20, portrait),
    "lesson": (20, lesson),
    "notebook": (25, notebook),
    "chain": (15, chain),
    "story": (15, story),
    "glossary": (3, glossary),
}


CONVERSATIONS = 1500
CHATS_SEED = 11


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
    asked = (world.fact(rng) for _ in range(rng.randint(2, 3)))
    turns = [(rng.choice(fact.questions), fact.answer) for fact in asked]
    if rng.random() < 0.12:
        turns.insert(0, rng.choice(GREETINGS))
    if rng.random() < 0.12:
        turns.append(rng.choice(THANKS))
    return turns


def as_jsonl(rows: Iterator[dict[str, Any]]) -> str:
    """One line a row."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    CHATS.write_text(as_jsonl(conversations()), encoding="utf-8")
