"""Options of commands that are settings of an endpoint: offered, judged and handed over as the settings say."""

from __future__ import annotations

import re
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from puna.cli.main import run
from puna.cli.options import takes_settings
from puna.config.settings import LIVE, RANGES, Settings, setting

WITH_OPTION = [name for name in Settings.model_fields if setting(name).option]


def given(*words: str) -> dict[str, Any]:
    """What a command that takes every setting gets."""
    got: list[dict[str, Any]] = []

    @takes_settings(WITH_OPTION)
    def command(name: str, *, settings: dict[str, Any]) -> None:
        got.append(settings)

    app = typer.Typer()
    app.command()(command)
    told = CliRunner().invoke(app, ["app", *words], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    return got[0]


def test_what_is_not_given_is_not_among_the_settings() -> None:
    assert given() == {}


@pytest.mark.parametrize("name", WITH_OPTION)
def test_each_spelling_of_each_setting_is_taken(name: str) -> None:
    for words in setting(name).option.split():
        default = getattr(Settings(), name)
        if isinstance(default, bool):
            on, _, off = words.partition("/")
            assert given(on) == {name: True} and (not off or given(off) == {name: False})
        else:
            value = RANGES[name].high if name in RANGES else "A100"
            assert given(words, f"{value:.12g}" if name in RANGES else "A100") == {name: value}


def test_help_shows_what_the_setting_is_and_its_range(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["scale", "--help"]) == 0
    shown = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    for name in LIVE & set(RANGES) - {"poll_s"}:
        assert f"({RANGES[name]})" in shown, name
    assert "Requests that may wait; more are refused with 429 (0 to 100000)." in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scale", "app", "--max", "0"], "--max-replica must lie in 1 to 1000, and is 0"),
        (["deploy", "--poll", "5", "--git", "https://a.b/c"], "--poll must be 0, or 30 to 604800, and is 5"),
        (["deploy", "--inference-time", "nan"], "--inference-time must lie in over 0, to 7200, and is nan"),
        (["scale", "app"], "nothing to change"),
    ],
)
def test_a_value_outside_is_refused_in_the_words_of_the_command(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == 2  # before anybody is asked: there is no `puna up`
    assert message in capsys.readouterr().err
