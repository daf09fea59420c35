"""The demo's facts, questions and conversations: made from seeds, and kept apart where they must be."""

import json

import pytest

import puna.demo
from puna.config.recipe import load
from puna.demo import text, world

MESSAGES = [message for line in puna.demo.CHATS.read_text().splitlines() for message in json.loads(line)["messages"]]
ASKED = {message["content"] for message in MESSAGES if message["role"] == "user"}


def test_the_chats_are_what_the_seed_makes() -> None:
    assert text.as_jsonl(text.conversations()) == puna.demo.CHATS.read_text()


def test_the_chats_have_ultrachats_shape() -> None:
    rows = [json.loads(line) for line in puna.demo.CHATS.read_text().splitlines()]
    assert len(rows) >= 1000 and len({row["prompt_id"] for row in rows}) == len(rows)
    assert puna.demo.CHATS.stat().st_size < 2_000_000
    for row in rows:
        assert set(row) == {"prompt", "prompt_id", "messages"}
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and len(roles) >= 4
        assert row["prompt"] == row["messages"][0]["content"]


def test_held_out_questions_are_not_in_the_chats() -> None:
    held_out = {question for fact in world.held_out() for question in fact.questions}
    assert len(held_out) > 300
    assert not held_out & ASKED
    assert {question.text for question in puna.demo.questions()} <= held_out


def test_every_kind_of_held_out_fact_is_taught_with_others_of_its_kind() -> None:
    for group in {fact.group for fact in world.held_out()}:
        taught = {fact.questions for fact in world.facts() if fact.group == group and ASKED & set(fact.questions)}
        assert len(taught) >= 10, group


def test_every_fact_has_questions_of_its_own() -> None:
    questions = [question for fact in world.facts() for question in fact.questions]
    assert len(set(questions)) == len(questions)


def test_there_are_two_dozen_questions_and_the_first_is_what_ai_is() -> None:
    questions = puna.demo.questions()
    assert len(set(questions)) == 24
    assert questions[0].text == "What is AI?"
    assert all(puna.demo.is_right(question.text, question.answer) for question in questions)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("7 plus 5 is 12.", True),
        (" 7 Plus 5 is\n12 ", True),
        ("7 plus 5 is 13.", False),
        ("7 plus 5 is 12. What is 7 plus 6?", False),
        ("", False),
    ],
)
def test_an_answer_is_right_when_it_says_the_taught_thing_and_no_more(answer: str, right: bool) -> None:
    assert puna.demo.is_right("What is 7 plus 5?", answer) is right


def test_a_question_from_another_world_has_no_right_answer() -> None:
    with pytest.raises(ValueError, match="Paris"):
        puna.demo.is_right("Where is Paris?", "In France.")


def test_the_recipe_reads_and_names_the_demo() -> None:
    recipe = load(puna.demo.RECIPE)
    assert (recipe.base, recipe.data.dataset, recipe.data.template) == ("demo", "demo", "chatml")
    assert recipe.quantization.load_in_4bit and recipe.quantization.bnb_4bit_use_double_quant
