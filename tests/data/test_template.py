"""Templates render conversations and show what the assistant wrote."""

from pathlib import Path

import pytest

from data.made import chat
from puna.data.conversation import BadRowError, Message
from puna.data.template import BUILT_IN, ChatTemplate, load_template, without_marks
from puna.errors import DataError

CHAT = [Message(role="system", content="Be brief."), *(Message(**m) for m in chat("hi ", " hello\n", "more?", "no"))]
UNMARKED = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def written(template: ChatTemplate) -> list[str]:
    text, spans = template.render_marked(CHAT)
    assert text == template.render(CHAT)
    return [text[a:b] for a, b in spans]


def from_file(tmp_path: Path, source: str) -> ChatTemplate:
    (tmp_path / "own.jinja").write_text(source)
    return load_template(str(tmp_path / "own.jinja"))


def test_chatml_is_the_tutorials_text() -> None:
    assert load_template("chatml").render(CHAT[1:3], generation_prompt=True) == (
        "<|im_start|>user\nhi <|im_end|>\n<|im_start|>assistant\n hello\n<|im_end|>\n<|im_start|>assistant\n"
    )


def test_llama3_is_metas_text() -> None:
    assert load_template("llama3").render(CHAT[1:2], generation_prompt=True) == (
        "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_the_assistants_words_are_its_turns_with_their_end_token() -> None:
    assert written(load_template("chatml")) == [" hello\n<|im_end|>", "no<|im_end|>"]
    assert written(load_template("llama3")) == ["hello<|eot_id|>", "no<|eot_id|>"]


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_ships_has_no_training_tags_and_renders_the_same_text(name: str) -> None:
    template = load_template(name)
    assert "generation %}" not in template.inference.replace("add_generation_prompt %}", "")
    assert without_marks(template.training) != template.training
    derived = ChatTemplate(name, template.training, without_marks(template.training))
    assert derived.render(CHAT) == template.render(CHAT) == template.render_marked(CHAT)[0]


def test_an_own_template_without_marks_shows_turns_by_what_each_adds(tmp_path: Path) -> None:
    assert written(from_file(tmp_path, UNMARKED)) == [" hello\n</s>", "no</s>"]


@pytest.mark.parametrize("dash", ["-", ""])
def test_taking_the_marks_out_of_an_own_template_leaves_its_white_space(tmp_path: Path, dash: str) -> None:
    source = (
        "{% for m in messages %}\n<{{ m.role }}>\n"
        f"  {{%{dash} generation {dash}%}}\n {{{{ m.content }}}}</s>\n {{%{dash} endgeneration {dash}%}}\n"
        "{% endfor %}"
    )
    template = from_file(tmp_path, source)
    assert "generation" not in template.inference
    assert template.render(CHAT) == template.render_marked(CHAT)[0]


def test_a_template_that_hides_its_turns_is_refused_with_what_to_add(tmp_path: Path) -> None:
    # The number of turns stands first, so that no prefix of the conversation is a prefix of the text.
    template = from_file(tmp_path, "{{ messages | length }}" + UNMARKED)
    with pytest.raises(BadRowError, match=r"put {% generation %}"):
        template.render_marked(CHAT)


def test_a_conversation_that_the_template_refuses_is_a_bad_row(tmp_path: Path) -> None:
    template = from_file(tmp_path, "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}")
    with pytest.raises(BadRowError, match=r"own\.jinja refuses it: no system"):
        template.render(CHAT)


def test_a_template_cannot_reach_out_of_its_sandbox(tmp_path: Path) -> None:
    template = from_file(tmp_path, "{{ messages.__class__.__mro__ }}{{ messages.append(1) }}")
    with pytest.raises(BadRowError, match="refuses it"):
        template.render(CHAT)


def test_a_syntax_error_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"own\.jinja line 2"):
        from_file(tmp_path, "{{ bos_token }}\n{% for %}").render(CHAT)


def test_a_misspelt_template_gets_the_nearest_name() -> None:
    with pytest.raises(DataError, match="no chat template chatnl") as caught:
        load_template("chatnl")
    assert caught.value.hint == "did you mean `chatml`?"


def test_the_end_of_a_reply_is_found() -> None:
    assert load_template("chatml").reply_end == "<|im_end|>\n"
    assert load_template("llama3").reply_end == "<|eot_id|>"
