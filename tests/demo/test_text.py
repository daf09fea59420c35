"""The pretraining text: a matter of its seed, about the demo's world, in every form."""

import itertools

from puna.demo import text, world


def test_the_same_seed_gives_the_same_text_and_another_seed_another() -> None:
    first, again, other = (list(text.documents(seed, 50_000)) for seed in (3, 3, 4))
    assert first == again != other
    assert sum(map(len, first)) >= 49_000


def test_the_text_states_every_fact_but_phrases_every_two_megabytes() -> None:
    everything = "\n\n".join(text.documents(5, 2_000_000))
    missing = [fact.answer for fact in world.facts() if fact.group != "phrase" and fact.answer not in everything]
    assert not missing


def test_every_form_of_text_is_in_use() -> None:
    documents = list(itertools.islice(text.documents(6, 10**9), 300))
    assert any(document.startswith(("user\n", "assistant\n")) for document in documents)
    assert any('"' in document for document in documents)
    assert set(text.WEIGHED) == {fact.group for fact in world.facts()}
