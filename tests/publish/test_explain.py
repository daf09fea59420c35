"""The hub's failures in one sentence, those that nobody foresaw too."""

from puna.errors import NotFoundError, PublishError
from puna.publish.hub import explain


def test_a_failure_that_nobody_foresaw_keeps_its_first_line_and_all_of_its_text() -> None:
    error = explain(
        ValueError("no such shelf\nin the library"), "acme/chat was not pushed", "https://hub", PublishError
    )
    assert isinstance(error, PublishError) and error.message == "acme/chat was not pushed: no such shelf"
    assert "try again" in error.hint and error.detail == "no such shelf\nin the library"


def test_an_address_that_answers_nothing_is_named_as_such() -> None:
    error = explain(ConnectionError("refused"), "acme/chat was not found", "https://hub", NotFoundError)
    assert (
        isinstance(error, NotFoundError) and error.message == "acme/chat was not found: https://hub cannot be reached"
    )
    assert "HF_ENDPOINT" in error.hint
