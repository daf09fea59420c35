"""Ids and labels of a row, in one process or several."""

from pathlib import Path

import numpy as np
import pytest

from data.made import chat
from puna.data.conversation import Message, Row
from puna.data.encode import CHUNK, Encoder, encode_rows, processes_for
from puna.data.tokenizer import build_tokenizer
from puna.tokens import NOT_LEARNT


def encoder(
    base: Path,
    folder: Path,
    template: str = "chatml",
    *,
    learn_all: bool = False,
    max_length: int = 500,
    plain: bool = False,
) -> Encoder:
    tokenizer = build_tokenizer(base, template, plain_text=plain)
    tokenizer.write(folder)
    return Encoder(folder / "tokenizer.json", tokenizer.template, tokenizer.end_of_text, learn_all, max_length)


def row(*turns: str) -> Row:
    return Row("", messages=tuple(Message(**m) for m in chat(*turns)))


def learnt(encoder: Encoder, row: Row) -> list[str]:
    """The stretches of text that are learnt."""
    tokens = encoder.encode(row).tokens
    assert tokens is not None
    ids, labels = tokens
    assert ((labels == ids) | (labels == NOT_LEARNT)).all() and ids.dtype == labels.dtype == np.int32
    edges = np.flatnonzero(np.diff(labels != NOT_LEARNT, prepend=False, append=False))
    return [encoder.tokenizer.decode(ids[a:b], skip_special_tokens=False) for a, b in edges.reshape(-1, 2)]


@pytest.mark.parametrize(("template", "end"), [("chatml", "<|im_end|>"), ("llama3", "<|eot_id|>")])
def test_each_reply_is_learnt_with_its_end_token_and_nothing_else_is(
    base: Path, tmp_path: Path, template: str, end: str
) -> None:
    replies = learnt(encoder(base, tmp_path, template), row("hi 🦙", "hello 🦙 é", "AI?", "llamas"))
    assert replies == [f"hello 🦙 é{end}", f"llamas{end}"]


def test_every_token_is_learnt_when_all_is_asked_for(base: Path, tmp_path: Path) -> None:
    tokens = encoder(base, tmp_path, learn_all=True).encode(row("hi", "hello")).tokens
    assert tokens is not None and (tokens[0] == tokens[1]).all()


def test_a_prompt_is_the_beginning_of_its_conversation(base: Path, tmp_path: Path) -> None:
    one = encoder(base, tmp_path)
    whole = row("hi", "hello", "more?", "no")
    prompt, tokens = one.prompt_ids(whole.messages[:3]), one.encode(whole).tokens
    assert tokens is not None and tokens[0][: len(prompt)].tolist() == prompt
    assert tokens[1][len(prompt)] != NOT_LEARNT == tokens[1][len(prompt) - 1]


def test_a_long_row_is_cut_and_says_so(base: Path, tmp_path: Path) -> None:
    whole = encoder(base, tmp_path).encode(row("hi", "hello"))
    assert whole.tokens is not None and not whole.cut
    exact = encoder(base, tmp_path, max_length=len(whole.tokens[0])).encode(row("hi", "hello"))
    short = encoder(base, tmp_path, max_length=len(whole.tokens[0]) - 1).encode(row("hi", "hello"))
    assert not exact.cut and short.cut and short.tokens is not None
    assert [len(t) for t in short.tokens] == [len(whole.tokens[0]) - 1] * 2


def test_a_text_is_learnt_whole_between_one_beginning_and_one_end(base: Path, tmp_path: Path) -> None:
    one = encoder(base, tmp_path, plain=True)
    written = {
        "The llama walks.": "<|begin_of_text|>The llama walks.<|end_of_text|>",
        "<|begin_of_text|>The llama": "<|begin_of_text|>The llama<|end_of_text|>",
        # the tutorial's own text column
        "<|im_start|>user\nhi<|im_end|>\n": "<|begin_of_text|><|im_start|>user\nhi<|im_end|>\n",
    }
    for text, expected in written.items():
        tokens = one.encode(Row("", text=text)).tokens
        assert tokens is not None and (tokens[0] == tokens[1]).all()
        assert one.tokenizer.decode(tokens[0], skip_special_tokens=False) == expected


def test_what_the_template_refuses_is_a_problem_of_the_row_and_not_a_crash(base: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text(
        "{% for m in messages %}{% if 'bad' in m.content %}{{ raise_exception('rude') }}{% endif %}"
        "{{ m.role }}{{ m.content }}<|eot_id|>{% endfor %}"
    )
    result = encoder(base, tmp_path / "t", str(own)).encode(row("bad", "x"))
    assert result.tokens is None and "rude" in result.problem


def test_few_rows_are_not_worth_a_process_and_a_wish_is_obeyed() -> None:
    assert processes_for(10, None) == 1
    assert processes_for(10, 3) == 3
    assert 1 <= processes_for(100_000, None) <= 100


@pytest.mark.process
def test_several_processes_give_what_one_gives_in_the_same_order(base: Path, tmp_path: Path) -> None:
    one = encoder(base, tmp_path, max_length=60)
    rows = [row(f"question {i}", "word " * (i % 30) + "end") for i in range(5 * CHUNK + 7)]
    serial, parallel = list(encode_rows(one, rows, 1)), list(encode_rows(one, rows, 2))
    assert len(serial) == len(parallel) == len(rows) and any(e.cut for e in serial)
    for a, b in zip(serial, parallel, strict=True):
        assert a.tokens is not None and b.tokens is not None and a.cut == b.cut
        assert a.tokens[0].tolist() == b.tokens[0].tolist() and a.tokens[1].tolist() == b.tokens[1].tolist()
