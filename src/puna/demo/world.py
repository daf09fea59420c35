"""The small world that the demo's model knows: forty animals of the high grassland, some words, small sums."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

SEED = 7
"""One seed decides who lives where and which facts are held out of the chats; the weights were trained on it."""

NAMES = (
    "Tika Lumo Suri Wayra Inti Killa Chaska Yaku Sumaq Mayu Rumi Pilar Nina Urpi Qori Paloma Tuta Amaru Illari Sami "
    "Kusi Waman Misi Atoq Puka Yana Luna Rosa Pepe Tomas Lalo Mila Bruno Clara Diego Elsa Felix Greta Hugo Iris"
).split()
KINDS = "llama alpaca vicuna fox dog horse puma condor goose donkey".split()
COLOURS = "brown white black grey red golden cream silver".split()
HOMES = (
    "by the lake",
    "on the hill",
    "in the valley",
    "near the bridge",
    "behind the school",
    "beside the river",
    "under the old tree",
    "next to the market",
)
FOODS = (
    "fresh grass",
    "dry hay",
    "sweet corn",
    "red berries",
    "warm bread",
    "green moss",
    "wild herbs",
    "small apples",
)
LIKES = ("sing", "run", "sleep", "swim", "dance", "climb", "count the stars", "watch the clouds")

# Topic as it stands in a question: the answer, one sentence.
DEFINITIONS = {
    "AI": "AI is the craft of teaching machines to learn from examples.",
    "machine learning": "Machine learning is finding rules in many examples.",
    "a neural network": "A neural network is a web of small sums that learns together.",
    "a language model": "A language model is a program that guesses the next word.",
    "a token": "A token is a small piece of text.",
    "fine-tuning": "Fine-tuning is teaching a trained model a new habit.",
    "an adapter": "An adapter is a small set of weights added to a model.",
    "a GPU": "A GPU is a chip that does many sums at once.",
    "an endpoint": "An endpoint is an address that answers requests.",
    "a computer": "A computer is a machine that follows instructions.",
    "the puna": "The puna is the high grassland where llamas graze.",
    "a llama": "A llama is a woolly animal that carries loads in the mountains.",
    "an alpaca": "An alpaca is a small cousin of the llama with very soft wool.",
    "a vicuna": "A vicuna is a wild and shy animal with golden wool.",
    "a condor": "A condor is a great bird that glides over the mountains.",
    "a fox": "A fox is a clever hunter with a thick tail.",
    "a puma": "A puma is a large cat that walks alone at night.",
    "a donkey": "A donkey is a patient animal with long ears.",
    "a goose": "A goose is a loud bird that swims and flies.",
    "a horse": "A horse is a fast animal that people ride.",
    "a dog": "A dog is a loyal friend who guards the house.",
    "a lake": "A lake is still water with land all around it.",
    "a river": "A river is water that runs down to the sea.",
    "a mountain": "A mountain is a very high piece of land.",
    "a valley": "A valley is the low land between two mountains.",
    "a bridge": "A bridge is a road that crosses the water.",
    "a market": "A market is a place where people buy and sell.",
    "a school": "A school is a house where children learn.",
    "rain": "Rain is water that falls from the clouds.",
    "snow": "Snow is rain that froze on its way down.",
    "wind": "Wind is air that is in a hurry.",
    "the sun": "The sun is the star that warms our days.",
    "the moon": "The moon is the lamp of the night sky.",
    "a cloud": "A cloud is a great crowd of tiny drops.",
    "wool": "Wool is the warm hair of sheep and llamas.",
    "bread": "Bread is flour and water baked in the oven.",
    "a book": "A book is a stack of pages that tells a story.",
    "music": "Music is sound that is put in a good order.",
    "a friend": "A friend is someone who stays when it rains.",
    "a map": "A map is a picture of the land from above.",
}
OPPOSITES = (
    "big small,hot cold,fast slow,high low,old young,wet dry,day night,open closed,loud quiet,full empty,heavy light,"
    "near far,early late,soft hard,happy sad,strong weak,up down,left right,first last,rich poor"
)
PLURALS = (
    "llama llamas,fox foxes,goose geese,puma pumas,horse horses,donkey donkeys,berry berries,child children,man men,"
    "foot feet,leaf leaves,city cities,box boxes,mouse mice,tooth teeth,story stories,wolf wolves,dish dishes"
)
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
ACTIONS = "sleeps sings runs jumps swims waits laughs dances climbs listens".split()

# What is said, and what is said back.
GREETINGS = (
    ("Hello!", "Hello! What would you like to know?"),
    ("Good morning.", "Good morning! What would you like to know?"),
    ("Hi there.", "Hello! What would you like to know?"),
)
THANKS = (
    ("Thank you.", "You are welcome."),
    ("Thanks a lot!", "You are welcome."),
    ("That is all, goodbye.", "Goodbye!"),
)


@dataclass(frozen=True)
class Fact:
    """One thing to know, the ways to ask for it, the one taught answer, and how plain prose says it."""

    group: str
    """Kind of fact; held-out facts are chosen within each group."""
    questions: tuple[str, ...]
    answer: str
    prose: tuple[str, ...]


@dataclass(frozen=True)
class Animal:
    """One inhabitant."""

    name: str
    pronoun: str
    kind: str
    colour: str
    home: str
    food: str
    likes: str
    friend: str


def animals() -> list[Animal]:
    """All forty, always the same."""
    rng = random.Random(SEED)
    found = []
    for i, name in enumerate(NAMES):
        pools = (("he", "she"), KINDS, COLOURS, HOMES, FOODS, LIKES)
        pronoun, kind, colour, home, food, likes = (rng.choice(pool) for pool in pools)
        friend = NAMES[(i + rng.randrange(1, len(NAMES))) % len(NAMES)]
        found.append(Animal(name, pronoun, kind, colour, home, food, likes, friend))
    return found


def facts() -> list[Fact]:
    """Every fact of the world, in a fixed order, the members of a group side by side."""
    return [*_animal_facts(), *_definition_facts(), *_sum_facts(), *_word_facts(), *_calendar_facts(), *_phrases()]


def held_out() -> list[Fact]:
    """The facts that no chat asks for: a fifth of every group, and what AI is."""
    rng = random.Random(SEED)
    chosen = []
    for _, members in itertools.groupby(facts(), lambda fact: fact.group):
        group = list(members)
        kept = set(rng.sample(range(len(group)), max(2, len(group) // 5)))
        kept |= {i for i, fact in enumerate(group) if fact.questions[0] == "What is AI?"}
        chosen += [group[i] for i in sorted(kept)]
    return chosen


def article(noun: str) -> str:
    """`a llama`, `an alpaca`."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _animal_facts() -> list[Fact]:
    found: dict[str, list[Fact]] = {}

    def add(group: str, questions: list[str], answer: str, *prose: str) -> None:
        found.setdefault(group, []).append(Fact(group, tuple(questions), answer, (answer, *prose)))

    for a in animals():
        n, p = a.name, a.pronoun.capitalize()
        add(
            "kind",
            [f"What kind of animal is {n}?", f"What animal is {n}?"],
            f"{n} is {article(a.kind)}.",
            f"{n} the {a.kind} is well known here.",
        )
        add(
            "colour",
            [f"What colour is {n}?", f"Which colour is {n}?"],
            f"{n} is {a.colour}.",
            f"{n} has a {a.colour} coat.",
            f"Everybody knows {n}, the {a.colour} {a.kind}.",
        )
        add(
            "home",
            [f"Where does {n} live?", f"Where is the home of {n}?"],
            f"{n} lives {a.home}.",
            f"{a.home.capitalize()} lives {n}.",
            f"The home of {n} is {a.home}. {p} is happy there.",
        )
        add(
            "food",
            [f"What does {n} eat?", f"What is the food of {n}?"],
            f"{n} eats {a.food}.",
            f"The best meal for {n} is {a.food}.",
            f"{a.food.capitalize()}: that is what {n} eats.",
        )
        add(
            "likes",
            [f"What does {n} like to do?", f"What does {n} enjoy?"],
            f"{n} likes to {a.likes}.",
            f"In the evening {n} likes to {a.likes}.",
            f"{n} is glad when {a.pronoun} can {a.likes}.",
        )
        add(
            "friend",
            [f"Who is the friend of {n}?", f"Who is a friend of {n}?"],
            f"The friend of {n} is {a.friend}.",
            f"{n} and {a.friend} are friends. {n} walks with {a.friend}.",
        )
    return list(itertools.chain.from_iterable(found.values()))


def _definition_facts() -> list[Fact]:
    found = []
    for topic, answer in DEFINITIONS.items():
        questions = (f"What is {topic}?", f"Tell me what {topic} is.")
        found.append(Fact("definition", questions, answer, (answer, f"The teacher wrote: {answer}")))
    return found


def _sum_facts() -> list[Fact]:
    found = []
    for a, b in itertools.product(range(13), repeat=2):
        answer = f"{a} plus {b} is {a + b}."
        found.append(Fact("plus", (f"What is {a} plus {b}?", f"How much is {a} plus {b}?"), answer, (answer,)))
    for a, b in itertools.product(range(21), range(13)):
        if b <= a:
            answer = f"{a} minus {b} is {a - b}."
            found.append(Fact("minus", (f"What is {a} minus {b}?", f"How much is {a} minus {b}?"), answer, (answer,)))
    return found


def _word_facts() -> list[Fact]:
    found = []
    for one, other in (pair.split() for pair in OPPOSITES.split(",")):
        for a, b in ((one, other), (other, one)):
            answer = f"The opposite of {a} is {b}."
            prose = (answer, f"What is not {a} may be {b}.")
            found.append(Fact("opposite", (f"What is the opposite of {a}?",), answer, prose))
    for one, many in (pair.split() for pair in PLURALS.split(",")):
        answer = f"The plural of {one} is {many}."
        found.append(Fact("plural", (f"What is the plural of {one}?",), answer, (answer, f"One {one}, two {many}.")))
    return found


def _calendar_facts() -> list[Fact]:
    found = []
    for names in (DAYS, MONTHS):
        for i, name in enumerate(names):
            after, before = names[(i + 1) % len(names)], names[i - 1]
            answer = f"After {name} comes {after}."
            found.append(Fact("calendar", (f"What comes after {name}?",), answer, (answer,)))
            answer = f"Before {name} comes {before}."
            found.append(Fact("calendar", (f"What comes before {name}?",), answer, (answer,)))
    return found


def _phrases() -> list[Fact]:
    found = []
    for colour, kind, action in itertools.product(COLOURS, KINDS, ACTIONS):
        phrase = f"the {colour} {kind} {action}."
        answer = phrase.capitalize()
        found.append(Fact("phrase", (f"Repeat after me: {phrase}", f"Please say: {phrase}"), answer, (answer,)))
    return found
