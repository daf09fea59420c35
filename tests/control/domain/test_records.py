"""Answers of the API from records."""

from __future__ import annotations

import pytest
from typing_extensions import TypedDict

from puna.control.domain.records import Step, view
from puna.control.domain.states import StepState


class Named(TypedDict):
    """What comes first in an answer of two classes."""

    title: str
    seconds: float | None


class Shown(Named):
    """An answer with a name of its own and two of a step's."""

    state: StepState


def test_an_answer_has_the_records_values_but_for_those_that_are_given_in_the_models_order() -> None:
    shown = view(Shown, Step("bundle", StepState.DONE, 1.5), state=StepState.FAILED, title="b")
    assert list(shown.items()) == [("title", "b"), ("seconds", 1.5), ("state", StepState.FAILED)]


def test_a_name_that_neither_has_is_an_error() -> None:
    with pytest.raises(AttributeError, match="title"):
        view(Shown, Step("bundle"))
