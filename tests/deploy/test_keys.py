"""API keys: what opens what, and that nothing but the whole key does."""

from __future__ import annotations

import dataclasses

import pytest

from puna.deploy import keys
from puna.errors import ForbiddenError, UnauthorizedError, UsageError


def test_a_key_opens_its_scope_and_what_lies_below() -> None:
    for scope, opens in {"infer": ["infer"], "deploy": ["infer", "deploy"], "admin": list(keys.SCOPES)}.items():
        key, text = keys.make("k", [scope], None, None, 0.0)
        assert keys.SHAPE.fullmatch(text) and keys.identify(text, [key], 1.0) == key
        for wanted in keys.SCOPES:
            if wanted in opens:
                keys.require(key, wanted)
            else:
                with pytest.raises(ForbiddenError, match=f"this needs {wanted}"):
                    keys.require(key, wanted)


def test_nothing_but_the_whole_key_is_the_key() -> None:
    key, text = keys.make("k", ["admin"], None, None, 0.0)
    other, _ = keys.make("k", ["admin"], None, None, 0.0)
    changed = text[:-1] + ("A" if text[-1] != "A" else "B")
    for wrong in (None, "", "puna_", text[:-1], text + "A", changed, text.replace(key.id, other.id), " " + text):
        with pytest.raises(UnauthorizedError):
            keys.identify(wrong, [other, key], 1.0)
    with pytest.raises(UnauthorizedError):
        keys.identify(text, [], 1.0)


def test_the_text_of_a_key_is_not_kept() -> None:
    key, text = keys.make("k", ["infer"], None, None, 0.0)
    secret = text.rsplit("_", 1)[-1] if text.count("_") == 2 else text[14:]
    assert secret not in str(dataclasses.asdict(key)) and key.sha256 == keys.digest(key.salt, text[14:])


def test_a_key_expires() -> None:
    key, text = keys.make("k", ["infer"], None, 10.0, 100.0)
    assert keys.identify(text, [key], 109.9) == key
    with pytest.raises(UnauthorizedError, match="expired"):
        keys.identify(text, [key], 110.0)


def test_a_key_for_some_endpoints_opens_no_other() -> None:
    key, _ = keys.make("k", ["deploy"], ["mine"], None, 0.0)
    keys.require(key, "deploy", "mine")
    with pytest.raises(ForbiddenError, match="opens mine, and not yours"):
        keys.require(key, "deploy", "yours")
    assert keys.visible(key, "mine") and not keys.visible(key, "yours") and keys.visible(None, "yours")


@pytest.mark.parametrize("scope", [[], ["root"], ["infer", "everything"]])
def test_a_key_without_sense_is_refused(scope: list[str]) -> None:
    with pytest.raises(UsageError):
        keys.make("k", scope, None, None, 0.0)


def test_bearer_reads_the_header_and_nothing_else() -> None:
    assert keys.bearer("Bearer abc") == keys.bearer("bearer  abc ") == "abc"
    assert [keys.bearer(h) for h in (None, "", "Basic abc", "Bearer ", "abc")] == [None] * 5


def test_keys_in_a_text_are_masked() -> None:
    _, text = keys.make("k", ["infer"], None, None, 0.0)
    assert keys.masked(f"curl -H 'Bearer {text}' x") == f"curl -H 'Bearer {text[:13]}_***' x"
