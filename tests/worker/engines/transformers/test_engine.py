"""Tokens become text: whole characters, nothing after a stop, and the ends that a request wants."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from puna.worker.engines.engine import Engine
from puna.worker.engines.transformers.engine import TextDecoder, TransformersEngine


class Letters:
    """A tokenizer with a token for each byte; half a character decodes to the replacement character."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return bytes(ids).decode("utf-8", "replace")


def told(decoder: TextDecoder, text: str) -> list[str]:
    """What each token makes certain, up to a stop; the last one says that it is the last."""
    said, ids = [], text.encode()
    for place, token in enumerate(ids):
        said.append(decoder.add(token, place == len(ids) - 1))
        if decoder.is_stopped:
            break
    return said


@pytest.mark.parametrize(
    ("stops", "has_stop", "text", "said"),
    [
        ([], False, "one two", "one two"),
        (["two"], False, "one two three", "one "),
        (["two"], True, "one two three", "one two"),
        (["three", "two"], False, "one two three", "one "),
        (["twx"], False, "one two", "one two"),
        (["é"], False, "café au lait", "caf"),
    ],
)
def test_text_ends_before_the_first_stop_or_with_it(stops: list[str], has_stop: bool, text: str, said: str) -> None:
    decoder = TextDecoder(Letters(), stops)
    decoder.has_stop = has_stop
    assert "".join(told(decoder, text)) == said
    assert decoder.is_stopped == any(stop in text for stop in stops)


def test_what_may_become_a_stop_is_held_back_and_half_a_character_too() -> None:
    assert told(TextDecoder(Letters(), ["end"]), "ending")[:3] == ["", "", ""]
    assert told(TextDecoder(Letters(), ["xyz"]), "abcd") == ["", "", "a", "bcd"]
    assert told(TextDecoder(Letters(), []), "aé!") == ["a", "", "é", "!"]
    assert TextDecoder(None, []).add(1, True) == "", "who warms up needs no text"


def test_a_reply_ends_at_the_models_tokens_unless_they_are_to_be_ignored() -> None:
    def ends(eos: Any, **params: Any) -> list[int]:
        engine = SimpleNamespace(_model=SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=eos)))
        return TransformersEngine._ends(engine, params)  # type: ignore[arg-type]

    assert (ends(None), ends(2), ends([2, 3])) == ([], [2], [2, 3])
    assert ends([2, 3], ignore_eos=True) == [] and ends(2, ignore_eos=False) == [2]


@pytest.mark.parametrize("fails", [False, True])
def test_who_warmed_up_tells_text_again(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def first_token(engine: TransformersEngine) -> None:
        seen.append(engine._is_warming)
        if fails:
            raise MemoryError

    monkeypatch.setattr(Engine, "first_token", first_token)
    engine = object.__new__(TransformersEngine)
    with contextlib.suppress(MemoryError):
        engine.first_token()
    assert seen == [True] and not engine._is_warming
