"""The worker's command line: what makes no sense ends with the usage, before anything of the app runs."""

from __future__ import annotations

import pytest

from puna.worker.main import USAGE, parse


def test_each_command_takes_its_options() -> None:
    assert parse(["serve", "--socket", "s", "--app", "a"]) == ("serve", {"socket": "s", "app": "a"})
    assert parse(["validate", "--app", "a", "--report", "r"]) == ("validate", {"app": "a", "report": "r"})
    words = ["zygote", "--socket", "s", "--app", "a", "--parent-fd", "3", "--log", "cri"]
    assert parse(words)[1] == {"socket": "s", "app": "a", "parent-fd": "3", "log": "cri"}


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["watch", "--socket", "s", "--app", "a"],
        ["serve", "--app", "a"],
        ["zygote", "--socket", "s", "--app", "a"],
        ["serve", "--socket", "s", "--app", "a", "--log"],
        ["serve", "socket", "s", "--app", "a"],
        ["validate", "--app", "a", "--report", "r", "more"],
        ["serve", "--socket", "s", "--app", "a", "--app", "b"],
    ],
)
def test_what_makes_no_sense_ends_with_the_usage(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert ended.value.code == USAGE
