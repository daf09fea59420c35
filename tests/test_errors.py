"""The error tree: codes are distinct, drawn in the docstring, and carry a hint to whoever sees them."""

import inspect

import pytest

from puna import errors
from puna.errors import PunaError, QueueFullError, RecipeError, nearest

TREE = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, PunaError)]


@pytest.mark.parametrize("error", TREE, ids=lambda e: e.__name__)
def test_every_error_is_drawn_in_the_tree(error: type[PunaError]) -> None:
    assert error.__name__ in (errors.__doc__ or "")


def test_codes_are_distinct_and_readable() -> None:
    codes = [e("x").code for e in TREE]
    assert len(set(codes)) == len(codes)
    assert RecipeError("x").code == "recipe" and errors.NotFoundError("x").code == "not_found"


def test_no_error_exits_with_success() -> None:
    assert all(e.exit_code > 0 and e.http_status >= 400 for e in TREE)


def test_a_reply_stands_for_its_codes_kind_or_for_the_most_general_one_of_its_status() -> None:
    assert all(errors.kind_of(kind("x").code, 500) is kind for kind in TREE)
    kinds = {status: errors.kind_of("of a newer version", status) for status in range(400, 600)}
    assert {status: kind.__name__.removesuffix("Error") for status, kind in kinds.items() if kind is not PunaError} == {
        400: "Usage", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 405: "Method", 409: "Conflict",
        413: "TooLarge", 415: "Encoding", 422: "KeyReused", 429: "QueueFull", 502: "ReplicaDied", 503: "Unavailable",
        504: "Deadline", 507: "Machine",
    }  # fmt: skip


def test_an_error_as_json_has_message_hint_and_evidence() -> None:
    body = RecipeError("no", "do this", "line 3").as_json()
    assert body == {"error": {"code": "recipe", "message": "no", "hint": "do this", "detail": "line 3"}}
    assert QueueFullError("full", 4).retry_after_s == 4


def test_the_nearest_name_is_offered_only_when_it_is_near() -> None:
    assert nearest("lora_rank", ["lora_r", "seed"]) == "did you mean `lora_r`?"
    assert nearest("xyz", ["lora_r", "seed"]) == ""
