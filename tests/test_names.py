"""One grammar a kind of name, and names of wider grammars made fit for narrower ones."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from puna import names
from puna.errors import ProjectError, UsageError

BREAKERS = ["", "-a", ".", "..", "a/b/c", "a b", "é", "a\n", "a\0", "../../etc", "a:b", "a@b"]
VALID: dict[names.Kind, list[str]] = {
    "endpoint": ["a", "7", "llama-3", "a--b", "a" * 48],
    "volume": ["a", "My_Data", "data.v2-", "a" * 63],
    "recipe": ["a", "llama3.1-chat", "a-", "a" * 63],
    "model": ["a/b", "rbgo/inferless-llama-3-8B", f"{'a' * 96}/b_c.d"],
    "alias": ["a", "latest", "a-b_2"],
    "variable": ["A", "_a1", "HF_TOKEN"],
    "hub": ["a/b", "_x/y.z", "meta-llama/Meta-Llama-3-8B"],
}
INVALID: dict[names.Kind, list[str]] = {
    "endpoint": ["A", "a_b", "a.b", "a-", "a" * 49],
    "volume": ["_a", "a" * 64],
    "recipe": ["A", "_a", "a" * 64],
    "model": ["a", "a/", "a--b/c", "a/b..c", "a/b-", f"{'a' * 97}/b", "a/b:1"],
    "alias": ["1", "A", "_a"],
    "variable": ["1A", "A-B", "A=B"],
    "hub": ["a", "/a"],
}


@pytest.mark.parametrize("kind", VALID)
def test_each_kind_takes_its_names_and_nothing_that_breaks_an_address_or_a_path(kind: names.Kind) -> None:
    for text in VALID[kind]:
        assert names.check(kind, text) == text and re.search(names.pattern(kind), text)
    for text in INVALID[kind] + BREAKERS:
        with pytest.raises(UsageError, match="is not a name") as caught:
            names.check(kind, text)
        assert names.GRAMMARS[kind].rule in caught.value.hint


def test_endpoints_runtimes_and_secrets_have_one_grammar() -> None:
    assert names.GRAMMARS["endpoint"] is names.GRAMMARS["runtime"] is names.GRAMMARS["secret"]


def test_an_error_names_the_key_and_the_nearest_name() -> None:
    with pytest.raises(ProjectError, match=r"^--name 'My_App' is not a name$") as caught:
        names.check("endpoint", "My_App", what="--name", error=ProjectError)
    assert "`my-app` is one" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Llama-3", "llama-3"),
        ("llama3.1-chat", "llama3-1-chat"),
        ("My_App", "my-app"),
        ("Whisper large/v3!", "whisper-large-v3"),
        ("a--b", "a--b"),
        ("a_-b", "a-b"),
        ("-", ""),
        ("应用", ""),
        ("x" * 47 + "--y", "x" * 47),
    ],
)
def test_a_text_becomes_the_nearest_name(text: str, name: str) -> None:
    assert names.normalise(text) == name


@given(st.text(max_size=80))
@example("a" * 47 + "-b")
def test_what_is_made_fit_is_valid_or_empty_and_a_valid_name_is_itself(text: str) -> None:
    made = names.normalise(text)
    assert made == "" or names.fits("endpoint", made)
    assert names.normalise(made) == made
    if names.fits("endpoint", text):
        assert made == text


@given(st.from_regex(rf"\A{names.GRAMMARS['recipe'].form}\Z"))
@example("a-")
@example("a..--__b")
@example("a" * 63)
def test_every_recipe_becomes_a_model_and_an_endpoint(recipe: str) -> None:
    assert names.fits("endpoint", names.normalise(recipe))
    assert names.fits("model", names.model_of(recipe))


def test_no_other_module_has_a_grammar_of_names_of_its_own() -> None:
    """What begins with a letter or digit and goes on with more of them and dashes is a grammar of names."""
    looks_like_one = re.compile(r"\[[aA0]-[zZ9][^]]*\]\(?(\?:)?\[[^]]*0-9[^]]*-\][{*]")
    root = Path(names.__file__).parent
    others = {"repository.py", "runtime.py", "local.py"}  # addresses, packages, ids of replicas
    found = []
    for path in root.rglob("*.py"):
        here = path.relative_to(root).as_posix()
        if here == "names.py" or path.name in others:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and looks_like_one.search(node.value):
                found.append(f"{here}:{node.lineno}: {node.value}")
    assert found == []
