"""A row is read, or it is said what is wrong with it."""

import pytest

from data.made import chat
from puna.data.conversation import BadRowError, column_of, read_row

GOOD = chat("hi", "hello")


def test_messages_are_read_as_they_stand_without_other_keys() -> None:
    row = read_row({"messages": [{**turn, "id": 7} for turn in GOOD]}, "messages", "f row 1", need_assistant=True)
    assert list(row.messages) == GOOD and row.text == "" and row.where == "f row 1"


def test_sharegpt_names_become_roles() -> None:
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    row = read_row({"conversations": turns}, "conversations", "", need_assistant=True)
    assert [m["role"] for m in row.messages] == ["system", "user", "assistant"]
    assert row.messages[2]["content"] == "hello"


def test_roles_may_stand_in_sharegpts_column() -> None:
    assert list(read_row({"conversations": GOOD}, "conversations", "", need_assistant=True).messages) == GOOD


def test_a_prompt_and_its_completion_are_two_turns() -> None:
    row = read_row({"prompt": "hi", "completion": "hello"}, "prompt", "", need_assistant=True)
    assert list(row.messages) == GOOD
    row = read_row({"prompt": GOOD[:1], "completion": GOOD[1:]}, "prompt", "", need_assistant=True)
    assert list(row.messages) == GOOD


def test_a_list_of_turns_may_be_written_as_json_text() -> None:
    value = {"messages": '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]'}
    assert list(read_row(value, "messages", "", need_assistant=True).messages) == GOOD


def test_the_richest_column_is_taken() -> None:
    assert column_of({"prompt": "", "prompt_id": "", "messages": []}) == "messages"  # UltraChat's columns
    assert column_of({"prompt": "", "completion": "", "text": ""}) == "prompt"
    assert column_of({"text": ""}) == "text"
    assert column_of({"prompt": ""}) is None


TURN = {"role": "user", "content": "hi"}
BAD = [
    ("messages", 5, "must be an object with `messages`, not a number"),
    ("messages", {"other": 1}, "has no `messages`"),
    ("messages", {"messages": None}, "`messages` is null, not a list of turns"),
    ("messages", {"messages": "hi"}, "`messages` is text, not a list of turns"),
    ("messages", {"messages": {"role": "user"}}, "`messages` is an object, not a list of turns"),
    ("messages", {"messages": []}, "`messages` is empty"),
    ("messages", {"messages": ["hi"]}, "`messages[0]` is text, not an object with a role and content"),
    ("messages", {"messages": [TURN, {"content": "x"}]}, "`messages[1]` has no `role`"),
    ("messages", {"messages": [{"role": "user"}]}, "`messages[0]` has no `content`"),
    ("messages", {"messages": [{"role": "user", "content": None}]}, "`messages[0]` has no `content`"),
    ("messages", {"messages": [{"role": "user", "content": ["hi"]}]}, "has a `content` that is a list, not text"),
    (
        "messages",
        {"messages": [{"role": "robot", "content": "x"}]},
        "unknown role 'robot'; known: system, user, assistant",
    ),
    ("messages", {"messages": [{"role": 3, "content": "x"}]}, "has a `role` that is a number, not text"),
    ("messages", {"messages": [TURN]}, "has no assistant turn"),
    ("messages", {"messages": [TURN, {"role": "assistant", "content": " "}]}, "an assistant turn with empty `content`"),
    (
        "conversations",
        {"conversations": [{"from": "bot", "value": "x"}]},
        "unknown from 'bot'; known: human, user, gpt",
    ),
    ("conversations", {"conversations": [{"from": "human"}]}, "`conversations[0]` has no `value`"),
    ("prompt", {"prompt": "hi"}, "has no `completion`"),
    ("prompt", {"prompt": "hi", "completion": ""}, "`completion` is empty"),
    ("prompt", {"prompt": 1, "completion": "x"}, "`prompt` is a number, not text"),
    ("text", {"text": None}, "`text` is null, not text"),
    ("text", {"text": " \n"}, "`text` is empty"),
]


@pytest.mark.parametrize(("column", "value", "problem"), BAD, ids=[problem for _, _, problem in BAD])
def test_a_malformed_row_is_named_for_what_is_wrong(column: str, value: object, problem: str) -> None:
    with pytest.raises(BadRowError) as caught:
        read_row(value, column, "", need_assistant=True)  # type: ignore[arg-type]
    assert problem in str(caught.value)


def test_without_an_assistant_turn_there_is_still_something_to_learn_when_all_is_learnt() -> None:
    assert read_row({"messages": [TURN]}, "messages", "", need_assistant=False).messages == (TURN,)


def test_an_empty_user_turn_is_kept_and_an_empty_assistant_turn_is_not() -> None:
    row = read_row({"messages": chat("", "hello")}, "messages", "", need_assistant=True)
    assert [turn["content"] for turn in row.messages] == ["", "hello"]
    with pytest.raises(BadRowError, match="assistant turn with empty"):
        read_row({"messages": chat("hi", " ")}, "messages", "", need_assistant=True)
